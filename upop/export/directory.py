"""Write and read a model directory, dense or compressed.

A compressed directory holds what the dense one holds (config.json of the dense architecture, model.safetensors,
processor files); its config.json also says what was kept of each site (:mod:`upop.export.compression`), and beside it
lie a model card and the code that loads it where upop is not installed (:mod:`upop.export.remote`). Loading with upop
runs none of that code: it builds the dense architecture without weights, cuts it by the plan and fills in the weights.
Nothing of a compressed directory is unpickled; a dense one may hold a ``pytorch_model.bin``, of which tensors alone are
read. What is wrong with the files is said before a model is built, as far as their headers tell
(:mod:`upop.export.vetting`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from upop.cost import CostModel, measure
from upop.export.card import Card
from upop.export.compression import CONFIG, KEY, block, plan_of
from upop.export.remote import auto_map, is_hugging_face, remote_files
from upop.export.vetting import WEIGHTS, blamed, read_object, vet, weight_files
from upop.families import build_dense, describe, example_inputs, find_sites, load_dense
from upop.files import umask, whole_directory
from upop.structure import Kind, Plan
from upop.surgery import shrink_

PROCESSORS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
PREPROCESSING = ("fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
"""What timm's pretrained_cfg says of how images are prepared."""


def save(
    model: nn.Module,
    processor: Any,  # noqa: ANN401 (any Hugging Face processor, or None)
    directory: str | Path,
    plan: Plan | None = None,
    kinds: Sequence[Kind] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model directory, all of it or nothing: it is filled under a temporary name and renamed.

    Args:
        model: Dense or cut model without masks.
        processor: Its processor; ``None`` for a model that has none.
        directory: Where to; an older directory there is replaced.
        plan: What ``model`` was cut by; ``None`` for a dense model.
        kinds: Unit kinds that the plan is about.
        facts: What a reader wants to know; not read back. The model card shows ``source`` (hub name or path of the
            dense model), ``metrics`` of this model by name and ``dense_metrics``.

    Returns:
        The directory.

    Raises:
        ValueError: If masks are attached, or the plan is not of this architecture and these unit kinds.
    """
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("the model has masks (or another parametrisation) attached; detach them before saving")
    directory = Path(directory)
    with whole_directory(directory) as temporary:
        config = _config(model)
        if plan is not None:
            config |= {KEY: block(plan, kinds, facts or {})}
            config |= {"auto_map": auto_map(model)} if is_hugging_face(model) else {}
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_file(_weights(model), temporary / WEIGHTS, metadata={"format": "pt"})
        if processor is not None:
            processor.save_pretrained(temporary)
        if plan is not None:
            for name, text in remote_files(model).items():
                (temporary / name).write_text(text)
            (temporary / "README.md").write_text(
                _card(temporary, config, plan, kinds, processor, facts or {}).text(), encoding="utf-8"
            )
        os.chmod(temporary / WEIGHTS, 0o666 & ~umask())  # safetensors writes for the owner alone
    return directory


def _config(model: nn.Module) -> dict[str, Any]:
    """What config.json says of the dense architecture, and for timm's models of their images."""
    config = {key: value for key, value in describe(model).items() if key not in (KEY, "auto_map")}
    if is_hugging_face(model):
        return config
    given: Any = getattr(model, "pretrained_cfg", None)
    prepared = {key: given[key] for key in PREPROCESSING if given.get(key) is not None}
    arguments = config["model_args"]
    size = {"input_size": [int(given["input_size"][0]), *arguments["img_size"]]}
    return config | {"pretrained_cfg": prepared | size | {"num_classes": arguments["num_classes"]}}


def _card(
    directory: Path,
    config: Mapping[str, Any],
    plan: Plan,
    kinds: Sequence[Kind],
    processor: Any,  # noqa: ANN401 (any Hugging Face processor, or None)
    facts: Mapping[str, Any],
) -> Card:
    """The card of a directory that holds a config.json; the dense model is built without memory for its weights."""
    with torch.device("meta"):
        dense = build_dense(str(directory))
    _tie(dense)  # what is tied on a real device is not on meta
    sites = find_sites(dense, kinds)
    plan.check(sites)
    cost = CostModel(sites, measure(dense, sites, example_inputs(dense)))
    autos = config.get("auto_map", {})
    return Card(
        config.get("architecture") or type(dense).__name__,
        cost,
        plan,
        [name for name in autos if name.startswith("AutoModel")],
        processor is not None,
        "AutoConfig" in autos,
        facts,
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, every tensor once: a tied one under the first of its names.

    safetensors' own ``save_model`` notes the other names beside the weights, in another order every time; the same
    model is to give the same bytes.
    """
    once: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        once.setdefault(id(tensor), (name, tensor.detach().contiguous()))
    return dict(once.values())


def load(checkpoint: str | Path, from_scratch: bool = False) -> tuple[nn.Module, Any]:
    """Load a dense or compressed model and its processor, ready for inference.

    Args:
        checkpoint: A directory that :func:`save` wrote, or any dense checkpoint that
            :func:`upop.families.load_dense` takes.
        from_scratch: Take the architecture of a dense checkpoint with random weights.

    Returns:
        The model in evaluation mode and its processor (``None`` where there is none).

    Raises:
        FileNotFoundError: If there is no such directory, or a file of it is missing.
        ValueError: If the plan, the weights and the config do not belong together, the format is another one, or a file
            is broken or asks for another.
    """
    with blamed(checkpoint):
        return _load(checkpoint, from_scratch)


def _load(checkpoint: str | Path, from_scratch: bool) -> tuple[nn.Module, Any]:
    path = Path(checkpoint)
    vet(path)
    found = plan_of(path)
    if found is None and not _is_timm(path):
        return load_dense(str(checkpoint), from_scratch)
    if from_scratch:
        raise ValueError(
            f"{str(checkpoint)!r} is compressed; from_scratch takes the architecture of a dense checkpoint"
        )
    model = build_dense(str(path))
    if _is_timm(path):
        _prepare_images(model, path)
    if found is not None:
        plan, kinds = found
        shrink_(model, find_sites(model, kinds), plan)
    _fill(model, path)
    processor = _processor(path)
    if found is not None and is_hugging_face(model):
        own: Any = model
        told = read_object(path / CONFIG).get(KEY, {}).get("facts", {})
        own.save_pretrained = partial(_save_again, model, processor, plan, kinds, told)
    return model.eval(), processor


def _save_again(
    model: nn.Module,
    processor: Any,  # noqa: ANN401 (any Hugging Face processor)
    plan: Plan,
    kinds: Sequence[Kind],
    facts: Mapping[str, Any],
    save_directory: str | Path,
    is_main_process: bool = True,
    **others: Any,  # noqa: ANN401 (transformers' own)
) -> None:
    """``save_pretrained`` of a compressed model: its plan and what loads it without upop belong to it.

    Args:
        model: The model, with the weights that it has now.
        processor: Its processor.
        plan: What it was cut by.
        kinds: Unit kinds that the plan is about.
        facts: What its model card tells.
        save_directory: Where to; an older directory there is replaced.
        is_main_process: Whether this process writes.
        **others: None; what else transformers takes is refused.

    Raises:
        TypeError: If there are others.
    """
    if others:
        raise TypeError(f"save_pretrained of a compressed model takes a directory alone; leave out {sorted(others)}")
    if is_main_process:
        save(model, processor, save_directory, plan, kinds, facts)


def _is_timm(path: Path) -> bool:
    """Whether a directory holds a timm model, which transformers cannot load."""
    config = path / CONFIG
    return config.is_file() and "architecture" in read_object(config)


def _prepare_images(model: nn.Module, path: Path) -> None:
    """Tell a timm model how images are prepared for the weights of a directory; timm's defaults may be of others."""
    said = read_object(path / CONFIG).get("pretrained_cfg") or {}
    given: Any = getattr(model, "pretrained_cfg", {})
    setattr(model, "pretrained_cfg", dict(given) | said)  # noqa: B010 (its class is not ours)


def _fill(model: nn.Module, path: Path) -> None:
    """Load the safetensors of a directory into a model of the right sizes."""
    weights = path / WEIGHTS
    files = [file for file in weight_files(path) if file.suffix == weights.suffix]
    if not files:
        raise FileNotFoundError(f"no weights at {str(weights)!r}; is the directory complete?")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    own = model.state_dict()
    wrong = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{str(weights)!r} holds {name} of shape {tuple(tensors[name].shape)}, the plan beside it says "
            f"{tuple(own[name].shape)}; do the plan and the weights belong together?"
        )
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    filled = {id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False) if name in tensors}
    _tie(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    lost = [name for name in missing if id(parameters.get(name)) not in filled]
    if lost or unexpected:
        raise ValueError(
            f"{str(weights)!r} lacks weights {lost[:3]} and has unexpected ones {unexpected[:3]}; is it complete, and "
            "does the config.json beside it belong to it?"
        )


def _tie(model: nn.Module) -> None:
    """Make one of the parameters that a model of transformers has under several names."""
    tie: Any = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()


def _processor(path: Path) -> Any:  # noqa: ANN401 (any Hugging Face processor)
    if not any((path / name).is_file() for name in PROCESSORS):
        return None
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(str(path), trust_remote_code=False)
