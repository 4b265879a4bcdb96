"""Load compressed directories as somebody does who has no upop: run as a script, with any Python that has torch.

    python outside.py DIRECTORY [DIRECTORY ...]

Beside ``DIRECTORY`` lies ``DIRECTORY.inputs.safetensors``; what was found is written to ``DIRECTORY.found.json`` and
``DIRECTORY.outputs.safetensors``. This file imports nothing of upop and refuses that anybody else does.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Refuse:
    """Makes upop look as if it were not installed."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name.partition(".")[0] == "upop":
            raise ModuleNotFoundError("upop is not installed here")


def tensors(value: Any) -> list[Tensor]:
    """All float tensors in the output of a model, in its order."""
    if isinstance(value, Tensor):
        return [value.flatten().float()] if value.is_floating_point() else []
    entries = value.values() if hasattr(value, "values") else value if isinstance(value, (list, tuple)) else ()
    return [tensor for entry in entries for tensor in tensors(entry)]


@torch.no_grad()
def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Everything that a model says of its inputs, in its own precision, and what it writes where it writes."""
    dtype = next(model.parameters()).dtype
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    if type(model).__name__ == "VisionTransformer":
        return torch.cat(tensors(model(given["x"])))
    said = tensors(model(**given))
    if hasattr(model, "text_decoder"):
        asked = {} if "decoder_input_ids" not in given else {"input_ids": given["input_ids"]}
        said.append(model.generate(pixel_values=given["pixel_values"], **asked, max_new_tokens=4).flatten().float())
    return torch.cat(said)


def problem(load: Any) -> str:
    """The message of the error that something gives."""
    try:
        load()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def hugging_face(path: Path, inputs: dict[str, Tensor], said: dict[str, Tensor]) -> dict[str, Any]:
    """Load with transformers in every way there is, save and load again."""
    import transformers
    from transformers import AutoConfig, AutoModel, AutoProcessor

    trust = {"trust_remote_code": True}
    again, third = (path.with_name(f"{path.name}_{name}") for name in ("again", "third"))
    model, info = AutoModel.from_pretrained(path, output_loading_info=True, **trust)
    said["first"] = outputs(model, inputs)
    config = AutoConfig.from_pretrained(path, **trust)
    autos = sorted(set(config.auto_map) - {"AutoConfig"})
    classes = [getattr(transformers, auto).from_pretrained(path, **trust) for auto in autos]
    model.save_pretrained(again)
    second = AutoModel.from_pretrained(again, **trust)
    said["again"] = outputs(second, inputs)
    second.save_pretrained(third)
    half = AutoModel.from_pretrained(path, dtype=torch.bfloat16, **trust)
    said["half"] = outputs(half, inputs)
    processor = None
    if [*path.glob("*processor_config.json"), *path.glob("tokenizer_config.json")]:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code="AutoConfig" in config.auto_map)
    return {
        "keys": {name: sorted(map(str, found)) for name, found in info.items() if not isinstance(found, str)},
        "class": [type(model).__name__, type(model).__module__.rpartition(".")[2], type(config).__name__],
        "configs": [plain(part.to_dict()) for part in (config, AutoConfig.from_pretrained(again, **trust))],
        "autos": {auto: type(found).__name__ for auto, found in zip(autos, classes, strict=True)},
        "training": model.training,
        "dtypes": sorted({str(value.dtype) for value in half.parameters()}),
        "processor": type(processor).__name__,
        "from_config": shapes(AutoModel.from_config(config, **trust)),
        "shapes": shapes(model),
        "untrusted": problem(lambda: AutoModel.from_pretrained(path, trust_remote_code=False)),
    }


def plain(value: Any) -> Any:
    """A configuration without the precision, which transformers notes as it saves."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key not in ("dtype", "_name_or_path")}
    return value


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.named_parameters()}


def timm(path: Path, inputs: dict[str, Tensor], said: dict[str, Tensor]) -> dict[str, Any]:
    """Load with the file beside the weights, in the way that the card says."""
    sys.path.insert(0, str(path))
    model = importlib.import_module("timm_upop").load()
    from timm.data import resolve_model_data_config

    said["first"] = outputs(model, inputs)
    return {"training": model.training, "shapes": shapes(model), "data": resolve_model_data_config(model)}


def main(paths: list[str]) -> None:
    installed = importlib.util.find_spec("upop") is not None
    sys.meta_path.insert(0, Refuse())
    assert problem(lambda: importlib.import_module("upop")) == "ModuleNotFoundError: upop is not installed here"
    for path in map(Path, paths):
        said: dict[str, Tensor] = {}
        load = timm if (path / "timm_upop.py").is_file() else hugging_face
        try:
            found = load(path, load_file(path.with_name(f"{path.name}.inputs.safetensors")), said)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        found |= {"installed": installed}
        save_file(said, path.with_name(f"{path.name}.outputs.safetensors"))
        path.with_name(f"{path.name}.found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
