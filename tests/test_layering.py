"""The house as it is meant to be: who may import whom, and a test file for every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import upop

PACKAGE = Path(upop.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
ALL = {path.parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
ALLOWED = {
    **{part: set() for part in ("files", "messages", "shards", "structure", "metrics", "data")},
    **{part: {"structure"} for part in ("cost", "families", "masks", "search", "surgery")},
    "export": {"families", "surgery", "cost", "structure"},
    "tasks": {"families", "surgery", "metrics", "structure"},
    "callbacks": {"masks", "search", "cost", "structure"},
    "report": {"export", "cost", "structure"},
    "runs": ALL - {"cli", "__main__"},
    "cli": ALL - {"__main__"},
    "__main__": {"cli"},
    "__init__": {"export"},  # lazily
}


def imports(source, package):
    """Dotted names of everything below upop that ``source``, a module in ``package``, imports anywhere."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] == "upop"]


def parts(source, package="upop"):
    """Parts of upop that ``source`` imports; ``__init__`` for the package's own facts."""
    second = [[*name.split("."), "__init__"][1] for name in imports(source, package)]
    return {name if name in ALL else "__init__" for name in second}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_are_allowed(module):
    part = module.parts[0].removesuffix(".py")
    assert part in ALLOWED, f"{part} is new; say in ALLOWED what it may import"
    package = ".".join(["upop", *module.parts[:-1]])
    found = parts((PACKAGE / module).read_text(), package) - {part, "files", "messages", "shards", "__init__"}
    assert found <= ALLOWED[part], f"upop/{module} imports {sorted(found - ALLOWED[part])}"
    if part in ("files", "messages", "shards"):
        assert parts((PACKAGE / module).read_text(), package) == set()


def test_every_part_of_the_table_exists():
    assert set(ALLOWED) - {"__init__"} == ALL


def test_the_reader_of_imports_sees_all_of_them():
    source = """
import upop.masks
from upop import __version__, cost
from upop.search.budget import Budget
from . import runs
from .report import console
def late():
    from upop import data
    if True:
        import torch, upop.cli as cli
"""
    expected = {"__init__", "masks", "cost", "search", "runs", "report", "data", "cli"}
    assert parts(source) == expected
    assert parts("from ..families import base", "upop.export") == {"families"}
    assert parts("from .directory import load", "upop.export") == {"export"}


def test_importing_upop_needs_no_torch():
    code = "import sys, upop; assert upop.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_load_is_the_one_of_export():
    import upop.export

    assert upop.load is upop.export.load
    assert upop.__all__ == ["__version__", "load"]
    with pytest.raises(AttributeError, match="module 'upop' has no attribute 'lod'"):
        _ = upop.lod


@pytest.mark.parametrize("module", [path for path in MODULES if path.name != "__init__.py"], ids=str)
def test_every_module_has_its_tests(module):
    expected = TESTS / module.with_name(f"test_{module.name}")
    assert expected.is_file(), f"upop/{module} has no tests/{expected.relative_to(TESTS)}"


def test_folders_of_tests_are_packages():
    folders = {path.parent for path in TESTS.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
