"""The files that let a compressed directory load where upop is not installed, and what config.json says of them.

Each is a module of upop that needs nothing else of it, copied with its imports made local; the modelling file ends in
the one class that the directory is about. That class has the name of the dense one, which it is a subclass of, and
config.json keeps the dense ``model_type``: whatever goes by these names (pipelines, processors, losses) goes on
working. Who loads the weights without this code is told that they do not fit.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

UPOP = Path(__file__).parent.parent
MODELING, TIMM, ATTENTION, NLVR = "modeling_upop", "timm_upop", "blip_attention", "modeling_blip_nlvr"
SOURCES = {
    MODELING: UPOP / "export" / "modeling_upop.py",
    TIMM: UPOP / "export" / "timm_upop.py",
    ATTENTION: UPOP / "families" / "blip_attention.py",
    NLVR: UPOP / "families" / "blip_nlvr" / "modeling.py",
}
"""What can be shipped, by the name that it has in the directory."""

IMPORTS = "from torch import nn\n"
CLASS = '''

class {name}(Compressed, Dense):
    """A {name} in the sizes that ``compression`` in config.json leaves."""
'''
INIT = """
    def __init__(self, config: Any) -> None:  # noqa: ANN401 (a BlipConfig)
        super().__init__(config)
        swap_attention_(self)
"""


def remote_files(model: nn.Module) -> dict[str, str]:
    """The files that go beside the weights of a compressed model, by name.

    Args:
        model: From transformers, upop or timm, cut or not.
    """
    name = type(model).__name__
    if not is_hugging_face(model):
        files = {part: _local(part, "") for part in (MODELING, TIMM)}
    elif _is_ours(model):
        files = {MODELING: _with_class(name, NLVR), NLVR: _local(NLVR)}
    elif name.startswith("Blip"):
        files = {MODELING: _with_class(name, None, ATTENTION), ATTENTION: _local(ATTENTION)}
    else:
        files = {MODELING: _with_class(name)}
    return {f"{part}.py": text for part, text in files.items()}


def auto_map(model: nn.Module) -> dict[str, str]:
    """Which class in the files each of transformers' auto classes is to take; ``AutoModel`` is always among them.

    Args:
        model: From transformers or upop.
    """
    from transformers.models.auto import modeling_auto

    config, kind = getattr(model, "config"), type(model)  # noqa: B009 (transformers' own)
    reference = f"{MODELING}.{kind.__name__}"
    found = {"AutoModel": reference}
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if name.startswith("AutoModel") and mapping and type(config) in mapping:
            classes = mapping[type(config)]
            if kind in (classes if isinstance(classes, tuple) else (classes,)):
                found[name] = reference
    if _is_ours(model):
        found["AutoConfig"] = f"{NLVR}.{type(config).__name__}"
    return found


def is_hugging_face(model: nn.Module) -> bool:
    """Whether a model is built like those of transformers, and not like timm's."""
    return hasattr(getattr(model, "config", None), "to_json_string")


def _is_ours(model: nn.Module) -> bool:
    """Whether transformers lacks the class of a model."""
    return type(model).__module__.startswith(f"{UPOP.name}.")


def _with_class(name: str, module: str | None = None, attention: str | None = None) -> str:
    """The modelling file with its class at the end.

    Args:
        name: The dense class.
        module: File beside it that defines the dense class; by default transformers does.
        attention: File beside it with the attention that is to take the place of the dense class's.
    """
    dense = f"from {'.' + module if module else 'transformers'} import {name} as Dense\n"
    local = f"\nfrom .{attention} import swap_attention_\n" if attention else ""
    imports = f"{IMPORTS}\n{dense}" if module else f"{IMPORTS}{dense}{local}"
    return _local(MODELING).replace(IMPORTS, imports, 1) + CLASS.format(name=name) + (INIT if attention else "")


def _local(part: str, dot: str = ".") -> str:
    """The source of a part, with what it imports of upop taken from the files beside it."""
    text = SOURCES[part].read_text()
    return re.sub(r"^from upop(?:\.\w+)*\.(\w+) import", rf"from {dot}\1 import", text, flags=re.MULTILINE)
