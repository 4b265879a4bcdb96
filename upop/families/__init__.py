"""Where a model can be cut. One file per block pattern; a new file with a ``FAMILY`` in it joins by itself."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterable

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
    "find_sites",
    "image_features",
    "load_dense",
    "text_features",
]


def families() -> list[Family]:
    """Every family in this folder, in the order of their file names."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return [module.FAMILY for module in modules if hasattr(module, "FAMILY")]


def find_sites(model: nn.Module, kinds: Iterable[Kind] = ("head_dim", "neuron")) -> list[Site]:
    """List every site of ``model`` whose units are of one of ``kinds``, in the order of its modules.

    Args:
        model: A dense model: Hugging Face CLIP, SigLIP, ViT, DeiT, BERT, a dual encoder of these, or a timm ViT.
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
    patterns = {(family.library, name): find for family in families() for name, find in family.blocks.items()}
    sites: list[Site] = []
    for path, module in model.named_modules():
        find = patterns.get((type(module).__module__.partition(".")[0], type(module).__name__))
        if find:
            sites.extend(find(Block(path, module, wanted, _depth(path, model))))
    _check_towers(model, sites)
    return sites


def _depth(path: str, model: nn.Module) -> int:
    """Number of the block in its tower: the last number in its path, or one past the stack that it closes."""
    numbers = re.findall(r"\.(\d+)(?=\.|$)", path)
    if numbers:
        return int(numbers[-1])
    tower = path.rpartition(".")[0]
    inside = [name for name, _ in model.named_modules() if name.startswith(f"{tower}.")]
    return 1 + max((int(found) for name in inside for found in re.findall(r"\.(\d+)$", name)), default=-1)


def _check_towers(model: nn.Module, sites: list[Site]) -> None:
    """Refuse a model, or a tower of a dual encoder, in which nothing can be cut."""
    towers = [name for name in ("vision_model", "text_model") if isinstance(getattr(model, name, None), nn.Module)]
    for tower in towers or [""]:
        if not any(site.name.startswith(tower) for site in sites):
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
