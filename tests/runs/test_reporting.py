"""The page of run directories: where it goes, what it is called there, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.report import samples
from tests.report.reading import read, tables, values
from upop.files import write_json
from upop.runs.reporting import write_report


def run(path: Path, **changes: Any) -> Path:
    write_json(path / "summary.json", samples.summary(**changes))
    return path


def headings(file: Path) -> list[str]:
    return [heading.text for heading in read(file.read_text()).all("h2")]


def test_one_run_has_its_page_beside_its_summary(tmp_path: Path) -> None:
    written = write_report([run(tmp_path / "<b>")])
    assert written == tmp_path / "<b>" / "report.html"
    root = read(written.read_text())
    assert [title.text for title in root.all("head")[0].all("title")] == ["upop: <b>"]
    assert not root.all("b")
    summary = json.loads((tmp_path / "<b>" / "summary.json").read_text())
    _, params, *_ = tables(root)["dense, cut and retrained"]
    assert values(params)[:3] == [summary["states"][state]["params"] for state in ("dense", "cut", "retrained")]
    assert [file.name for file in (tmp_path / "<b>").iterdir() if file.suffix != ".json"] == ["report.html"]


def test_it_is_written_again_the_same(tmp_path: Path) -> None:
    first = write_report([run(tmp_path / "one")]).read_bytes()
    assert write_report([tmp_path / "one"]).read_bytes() == first


def test_several_runs_have_theirs_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(tmp_path / "one"), run(tmp_path / "two", removed=0.75)]
    monkeypatch.chdir(tmp_path)
    assert write_report(runs) == Path("report.html")
    assert headings(tmp_path / "report.html") == ["2 runs compared", "one", "two"]
    assert write_report([*runs, run(tmp_path / "b" / "one")], tmp_path / "new" / "x.html").is_file()
    assert headings(tmp_path / "new" / "x.html")[1:] == [str(tmp_path / "one"), "two", str(tmp_path / "b" / "one")]


def test_the_working_directory_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run(tmp_path / "one"))
    assert headings(write_report(["."])) == ["one"]


def refused(*paths: Path, to: Path | None = None, error: type[Exception] = ValueError) -> str:
    """The message of a report that is refused; no file may be left behind."""
    before = {file for path in paths for file in path.rglob("*")}
    with pytest.raises(error) as caught:
        write_report(paths, to)
    assert before == {file for path in paths for file in path.rglob("*")}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none", error=FileNotFoundError) == (
        f"no run directory at '{tmp_path / 'none'}'; give one that `upop fit` has written"
    )
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == (
        f"'{tmp_path / 'empty'}' is no run directory: it has no config.yaml; give one that `upop fit` has written"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[]", "has format 'list'; this version reads format 2"),
        ('{"format": 1}', "has format 1; this version reads format 2"),
        ('{"format": 2}', "cannot be reported: it lacks 'search'"),
    ],
)
def test_a_summary_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    found = refused(tmp_path)
    assert found.startswith(f"'{tmp_path / 'summary.json'}' {message}")
    assert found.endswith(f"; `upop fit --config {tmp_path / 'config.yaml'}` writes it anew and repeats no phase")


def test_one_bad_run_of_several_leaves_no_page(tmp_path: Path) -> None:
    refused(run(tmp_path / "one"), tmp_path / "none", to=tmp_path / "x.html", error=FileNotFoundError)
    assert not (tmp_path / "x.html").exists()


def test_a_run_given_twice_and_a_directory_to_write_are_refused(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    assert re.fullmatch(r"run directory '.*one' is given twice; give each once", refused(one, one / ".." / "one"))
    assert refused(one, to=tmp_path, error=IsADirectoryError) == (
        f"'{tmp_path}' is a directory; give the name of a file"
    )
