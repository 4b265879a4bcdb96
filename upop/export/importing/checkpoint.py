"""Write a model directory of a checkpoint that a model's authors released.

Such a file holds weights and nothing else, so a model directory of the same kind lends its configuration, tokenizer
and image processor. Everything is checked before anything is written, and nothing in the file is executed. A
compressed file becomes a compressed directory: the sizes of its layers are read off the shapes of its weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upop.export.directory import save
from upop.export.importing.blip import Blip
from upop.export.importing.clip import Clip
from upop.export.importing.cuts import FIRST, attend_at_cut_scale, check, kept_units, plan_of, summary
from upop.export.importing.files import read
from upop.families import find_sites
from upop.families.openai_clip import is_openai_clip
from upop.families.salesforce import interpolate_positions
from upop.messages import some
from upop.surgery import shrink_

Source = Blip | Clip
BLIP_PARTS = ("visual_encoder.", "vision_model.", "text_encoder.", "text_decoder.")


@dataclass
class Imported:
    """What an import did, for a person to read.

    Attributes:
        directory: Model directory that was written.
        task: Task of the checkpoint: one of BLIP's, or ``clip``.
        tensors: Weights taken from the file.
        temperature: Temperature of the similarities that was trained with them, where the file holds one.
        dropped: Names of what was left behind.
        notes: What was set or changed on the way, a line each.
    """

    directory: Path
    task: str
    tensors: int = 0
    temperature: float | None = None
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The whole as lines of text."""
        dropped = [f"dropped {some(self.dropped, 4)}"] if self.dropped else []
        learned = (
            [f"its temperature is {self.temperature:.4f}: set model.init_args.temperature to that"]
            if self.temperature is not None
            else []
        )
        took = f"took {self.tensors} tensors, of {self.task}"
        return [took, *dropped, *learned, *self.notes, f"wrote {self.directory}"]


def import_checkpoint(file: str | Path, like: str, directory: str | Path, image_size: int | None = None) -> Imported:
    """Write a model directory that :func:`upop.load` reads, of a checkpoint in its authors' format.

    Read are BLIPs of retrieval, VQA, captioning and NLVR (Salesforce's and UPop's) and CLIPs with vision transformers
    (OpenAI's, open_clip's and UPop's). Those of UPop may be compressed; they compute what the authors' code computes
    with them, which attends at other scales than ours (see :mod:`upop.export.importing.cuts`).

    Args:
        file: The ``.pth``, ``.pt`` or ``.safetensors`` file: a state dict, or one under the key ``model`` or
            ``state_dict``.
        like: Model directory or hub name of a dense model of the same kind, task and size (for NLVR a BLIP of any
            task, as there is none on the hub). Only its configuration and processor are used.
        directory: Where to; it must not exist.
        image_size: Pixels along a side of the images that the model is to take. Position embeddings are interpolated
            if it is not what the file was trained with. By default that of ``like``, which must be the file's.

    Raises:
        FileExistsError: If ``directory`` exists.
        FileNotFoundError: If there is no such file, or a path was given as ``like`` and there is no model there.
        ValueError: If the file is not a state dict of such a model, holds masks of a search that is not over, or has
            shapes that no cut explains; if ``like`` is of another kind, task or size; or if its tokenizer does not fit.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{str(directory)!r} exists already; give a directory that does not")
    state = read(file)
    source = _source(str(file), state)
    _refuse_masks(str(file), {name: state[name] for name in source.dropped})
    build, config = source.architecture(like)
    processor = _processor(like)
    taken = len(state) - len(source.dropped)
    imported = Imported(directory, source.task, taken, source.temperature, source.dropped)
    imported.notes += source.configure(like, config) + _in_single_precision(source.weights)
    kept = _kept(source, like, _empty(build, config))
    imported.notes += _fit_images(source, like, config, image_size)
    imported.notes += source.fit_processor(like, processor, config)
    imported.notes += _write(source, _empty(build, config), kept, processor, directory)
    return imported


def _source(file: str, state: dict[str, Tensor]) -> Source:
    """What a file is of.

    Raises:
        ValueError: If it is of nothing that can be imported.
    """
    try:
        if is_openai_clip(state):
            return Clip(file, state)
        if any(name.startswith(BLIP_PARTS) for name in state):
            return Blip(file, state)
    except ValueError as error:
        raise ValueError(f"{file!r}: {error}") from error
    raise ValueError(
        f"{file!r}: these are the weights of neither a BLIP nor a CLIP: they are named {some(list(state))}; a BLIP's "
        "begin with 'visual_encoder.' and with 'text_encoder.' or 'text_decoder.', a CLIP's with 'visual.' and with "
        "'transformer.' or 'text.'"
    )


def _refuse_masks(file: str, dropped: Mapping[str, Tensor]) -> None:
    """Refuse a model in the middle of a search of UPop's authors: without its masks it computes something else."""
    for name, tensor in dropped.items():
        if name.endswith("alpha") and not torch.all(tensor == 1):
            raise ValueError(
                f"{file!r} is of a search: its mask {name} is not 1 everywhere, and its layers are not cut; give the "
                "checkpoint that the retraining wrote"
            )


def _processor(like: str) -> Any:  # noqa: ANN401 (any Hugging Face processor)
    """The processor of ``like``, with its tokenizer and image processor."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(like, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no processor at --like {like!r}: {str(error).strip().partition(chr(10))[0]}") from error


def _in_single_precision(weights: dict[str, Tensor]) -> list[str]:
    """Make every weight one of float32, as the model computes; say of which type they were."""
    found = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.values())
    for name, tensor in weights.items():
        weights[name] = tensor.float()
    others = [f"{count} tensors of {dtype}" for dtype, count in sorted(found.items()) if dtype != "float32"]
    return [f"converted {' and '.join(others)} to float32"] if others else []


def _empty(build: Callable[[Any], nn.Module], config: Any) -> Any:  # noqa: ANN401 (a model and its config)
    """The dense model without memory for its weights, with attentions that can be cut."""
    from transformers.initialization import no_init_weights

    from upop.families.blip_attention import swap_attention_

    with torch.device("meta"), no_init_weights():
        model: Any = build(config)
    model.tie_weights()
    swap_attention_(model)
    return model.eval()


def _kept(source: Source, like: str, dense: nn.Module) -> dict[str, int]:
    """Number of units that the file has left, by site of the dense model.

    Raises:
        ValueError: If its weights are not those of this model, whole or cut.
    """
    what, sites = f"{source.file!r} does not fit --like {like!r}", find_sites(dense)
    check(what, dense, sites, source.weights, source.named, free=[source.positions])
    return kept_units(what, sites, source.weights, source.named)


def _fit_images(source: Source, like: str, config: Any, image_size: int | None) -> list[str]:  # noqa: ANN401 (HF's)
    """Bring configuration and position embeddings to one image size; say what was changed.

    Raises:
        ValueError: If the sizes differ and none was asked for, or the one asked for is not a multiple of the patches.
    """
    vision, positions = config.vision_config, source.weights[source.positions]
    patches = positions.shape[-2] - 1
    trained = math.isqrt(patches) * vision.patch_size
    if math.isqrt(patches) ** 2 != patches:
        raise ValueError(
            f"{source.file!r}: {source.named(source.positions)} is for {patches} patches, which are no square"
        )
    if image_size is None and trained != vision.image_size:
        raise ValueError(
            f"{source.file!r} is for images of {trained} pixels, --like {like!r} for {vision.image_size}; give "
            f"--image-size {trained} to take it as it is, or another to interpolate its position embeddings"
        )
    wanted = vision.image_size if image_size is None else image_size
    if wanted < vision.patch_size or wanted % vision.patch_size:
        raise ValueError(
            f"--image-size is {wanted}; give a multiple of the patches, which are {vision.patch_size} pixels"
        )
    vision.image_size = wanted
    if wanted == trained:
        return []
    batch = positions.reshape(1, *positions.shape[-2:])  # BLIP's have this shape, CLIP's lack the first dimension
    made = interpolate_positions(batch, wanted // vision.patch_size)
    source.weights[source.positions] = made.reshape(*positions.shape[:-2], *made.shape[-2:])
    return [f"interpolated the position embeddings from {trained} to {wanted} pixels"]


def _write(
    source: Source,
    model: Any,  # noqa: ANN401 (a Hugging Face model)
    kept: Mapping[str, int],
    processor: Any,  # noqa: ANN401 (any Hugging Face processor)
    directory: Path,
) -> list[str]:
    """Cut the empty model to the sizes of the weights, fill it and write the directory; say what is cut."""
    sites = find_sites(model)
    cut = [site for site in sites if kept[site.name] < site.units]
    if not cut:
        _fill(model, source.weights)
        save(model, processor, directory)
        return []
    plan = plan_of(sites, kept)
    attentions = attend_at_cut_scale(source.at_cut_scale(sites), kept, source.weights)
    shrink_(model, sites, plan)
    _fill(model, source.weights)
    facts = {"file": Path(source.file).name, "units": FIRST}
    save(model, processor, directory, plan, plan.kinds(), facts)
    scale = f"{attentions} attentions run at the scale of their cut head size, as they were retrained"
    return [summary(sites, kept), FIRST, *([scale] if attentions else []), *source.cut_notes(cut)]


def _fill(model: Any, weights: Mapping[str, Tensor]) -> None:  # noqa: ANN401 (a Hugging Face model)
    """Put the weights, which were checked, into the empty model."""
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
