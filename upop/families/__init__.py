"""Where a model can be cut. One file per block pattern; a new file with a ``FAMILY`` in it joins by itself."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from torch import nn

from upop.families.base import Block, Family
from upop.families.models import build_dense, describe, example_inputs, image_features, load_dense, text_features
from upop.messages import closest
from upop.structure import KINDS, Kind, Site

__all__ = [
    "build_dense",
    "describe",
    "example_inputs",
    "families",
    "find_blocks",
    "find_sites",
    "image_features",
    "load_dense",
    "text_features",
]

TOWERS = ("vision_model", "visual_encoder", "text_model", "text_encoder", "text_decoder")
"""What models of several towers call them."""


def families() -> list[Family]:
    """Every family in this folder, in the order of their file names."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return [module.FAMILY for module in modules if hasattr(module, "FAMILY")]


def find_sites(model: nn.Module, kinds: Iterable[Kind] = ("head_dim", "neuron")) -> list[Site]:
    """List every site of ``model`` whose units are of one of ``kinds``, in the order of its modules.

    Args:
        model: A dense model: Hugging Face CLIP, SigLIP, BLIP, ViT, DeiT, BERT, a dual encoder of these, BLIP for visual
            reasoning, or a timm ViT.
        kinds: Unit kinds wanted. Heads and head-dims may be searched together.

    Raises:
        ValueError: If a kind is unknown, no block of the model is known, a tower of it holds none, or a block is built
            in a way that cannot be cut exactly (the message names the module).
        TypeError: If a layer to cut is not a plain linear layer.
    """
    wanted = tuple(dict.fromkeys(kinds))
    for kind in wanted:
        if kind not in KINDS:
            raise ValueError(f"unknown unit kind {kind!r}; known: {sorted(KINDS)}{closest(kind, KINDS)}")
    if not wanted:
        raise ValueError(f"no unit kind given; choose from {sorted(KINDS)}")
    sites: list[Site] = []
    for path, module, find in _known(model):
        sites.extend(find(Block(path, module, wanted, _depth(path, model))))
    _check_towers(model, [site.name for site in sites])
    return sites


def find_blocks(model: nn.Module) -> list[str]:
    """Module paths of the transformer blocks that :func:`find_sites` looks into, in the order of the modules.

    Only the layers of a stack count, whose outputs are hidden states; SigLIP's pooling head is none. A cut model has
    the blocks of its dense one.

    Args:
        model: A dense or cut model.

    Raises:
        ValueError: If no block of the model is known, or a tower of it holds none.
    """
    paths = [path for path, _, _ in _known(model) if path.rpartition(".")[2].isdigit()]
    _check_towers(model, paths)
    return paths


def _known(model: nn.Module) -> Iterator[tuple[str, nn.Module, Callable[[Block], list[Site]]]]:
    """Path, module and pattern of everything in ``model`` that a family knows."""
    patterns = {(family.library, name): find for family in families() for name, find in family.blocks.items()}
    for path, module in model.named_modules():
        find = patterns.get((type(module).__module__.partition(".")[0], type(module).__name__))
        if find:
            yield path, module, find


def _depth(path: str, model: nn.Module) -> int:
    """Number of the block in its tower: the last number in its path, or one past the stack that it closes."""
    numbers = re.findall(r"\.(\d+)(?=\.|$)", path)
    if numbers:
        return int(numbers[-1])
    tower = path.rpartition(".")[0]
    inside = [name for name, _ in model.named_modules() if name.startswith(f"{tower}.")]
    return 1 + max((int(found) for name in inside for found in re.findall(r"\.(\d+)$", name)), default=-1)


def _check_towers(model: nn.Module, found: list[str]) -> None:
    """Refuse a model, or a tower of one that has several, without any of the paths ``found`` in it."""
    towers = [name for name in TOWERS if isinstance(getattr(model, name, None), nn.Module)]
    for tower in towers or [""]:
        if not any(path.startswith(tower) for path in found):
            module = model.get_submodule(tower)
            looked = Counter(
                type(part).__name__ for part in module.modules() if next(part.children(), None) is not None
            )
            names = ", ".join(sorted(looked)) or type(module).__name__
            supported = "; ".join(family.name for family in families())
            raise ValueError(
                f"nothing to cut in {tower or 'this'} {type(module).__name__}: looked at {names}; "
                f"supported: {supported}"
            )
