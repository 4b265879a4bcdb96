"""Write and read a model directory, dense or compressed.

A compressed directory holds what the dense one holds (config.json of the dense architecture, model.safetensors,
processor files) and compression.json: the plan and the unit kinds it is about. Loading builds the dense architecture
without weights, cuts it by the plan and fills in the weights. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from upop import __version__
from upop.families import build_dense, describe, find_sites, load_dense
from upop.files import sync, umask, write_json
from upop.structure import Kind, Plan
from upop.surgery import shrink_

COMPRESSION = "compression.json"
COMPRESSION_FORMAT = 1
WEIGHTS = "model.safetensors"
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


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
        facts: What a reader wants to know (source, budget, metrics); not read back.

    Returns:
        The directory.

    Raises:
        ValueError: If masks are attached.
    """
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("the model has masks (or another parametrisation) attached; detach them before saving")
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        (temporary / "config.json").write_text(json.dumps(describe(model), indent=2, sort_keys=True) + "\n")
        save_file(_weights(model), temporary / WEIGHTS, metadata={"format": "pt"})
        if processor is not None:
            processor.save_pretrained(temporary)
        if plan is not None:
            content = {
                "format": COMPRESSION_FORMAT,
                "upop": __version__,
                "kinds": list(kinds),
                "facts": dict(facts or {}),
                "plan": plan.to_dict(),
            }
            write_json(temporary / COMPRESSION, content)
        os.chmod(temporary / WEIGHTS, 0o666 & ~umask())  # safetensors writes for the owner alone
        os.chmod(temporary, 0o777 & ~umask())
        sync(temporary)
        _replace(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return directory


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, every tensor once: a tied one under the first of its names.

    safetensors' own ``save_model`` notes the other names beside the weights, in another order every time; the same
    model is to give the same bytes.
    """
    once: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        once.setdefault(id(tensor), (name, tensor.detach().contiguous()))
    return dict(once.values())


def _replace(temporary: Path, directory: Path) -> None:
    """Put ``temporary`` in the place of ``directory``."""
    if directory.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
        os.rename(directory, old / directory.name)
        try:
            os.rename(temporary, directory)
        except BaseException:
            os.rename(old / directory.name, directory)
            old.rmdir()
            raise
        shutil.rmtree(old)
    else:
        os.rename(temporary, directory)


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
        ValueError: If the plan, the weights and the config do not belong together, or the format is another one.
    """
    path = Path(checkpoint)
    found = plan_of(path)
    if found is None and not _is_timm(path):
        return load_dense(str(checkpoint), from_scratch)
    if from_scratch:
        raise ValueError(
            f"{str(checkpoint)!r} is compressed; from_scratch takes the architecture of a dense checkpoint"
        )
    model = build_dense(str(path))
    if found is not None:
        plan, kinds = found
        shrink_(model, find_sites(model, kinds), plan)
    _fill(model, path / WEIGHTS)
    return model.eval(), _processor(path)


def _is_timm(path: Path) -> bool:
    """Whether a directory holds a timm model, which transformers cannot load."""
    config = path / "config.json"
    return config.is_file() and '"architecture"' in config.read_text()


def plan_of(directory: str | Path) -> tuple[Plan, list[Kind]] | None:
    """The plan and the unit kinds of a compressed directory; ``None`` for a dense checkpoint."""
    path = Path(directory)
    if not (path / COMPRESSION).is_file():
        return None
    content = _compression(path)
    return Plan.from_dict(content["plan"]), list(content["kinds"])


def _compression(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / COMPRESSION).read_text())
    except ValueError as error:
        raise ValueError(f"{str(path / COMPRESSION)!r} is not JSON: {error}") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != COMPRESSION_FORMAT:
        raise ValueError(
            f"{str(path / COMPRESSION)!r} has format {found!r}; this version reads format {COMPRESSION_FORMAT}"
        )
    missing = [key for key in ("plan", "kinds") if key not in content]
    if missing:
        raise ValueError(f"{str(path / COMPRESSION)!r} lacks {missing}; is it complete?")
    return dict(content)


def _fill(model: nn.Module, weights: Path) -> None:
    """Load safetensors into a model of the right sizes."""
    if not weights.is_file():
        raise FileNotFoundError(f"no weights at {str(weights)!r}; is the directory complete?")
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{str(weights)!r} cannot be read as safetensors: {error}; copy it again") from error
    own = model.state_dict()
    wrong = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{str(weights)!r} holds {name} of shape {tuple(tensors[name].shape)}, the plan beside it says "
            f"{tuple(own[name].shape)}; do {COMPRESSION} and the weights belong together?"
        )
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    filled = {id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False) if name in tensors}
    tie: Any = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    lost = [name for name in missing if id(parameters.get(name)) not in filled]
    if lost or unexpected:
        raise ValueError(
            f"{str(weights)!r} lacks weights {lost[:3]} and has unexpected ones {unexpected[:3]}; is it complete, and "
            "does the config.json beside it belong to it?"
        )


def _processor(path: Path) -> Any:  # noqa: ANN401 (any Hugging Face processor)
    if not any((path / name).is_file() for name in PROCESSORS):
        return None
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(str(path))
