"""Parts of a model on their own: what flows into them in a forward pass, and copies of them that are really cut.

A *part* is what the sites of one block cut, such as the attention of a layer. It is run in the smallest module that
holds all of it: a block's own attention or MLP where these are modules, the whole layer where an MLP is spread over it.
Copies are cut by the surgery itself, so what is timed is the code that a compressed model runs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upop.structure import Plan, Site
from upop.surgery import shrink_

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of a module."""


@dataclass(frozen=True)
class Part:
    """The sites of one block, and where they can be run.

    Attributes:
        block: Module path of the block, as its sites have it.
        sites: Its sites.
        module: Path of the smallest module that holds everything that they cut.
        around: Sites of other blocks that lie in that module too.
    """

    block: str
    sites: tuple[Site, ...]
    module: str
    around: tuple[Site, ...]


@dataclass
class Replay:
    """Calls of a module that can be timed: over when it returns, on a GPU too.

    Attributes:
        module: Module in evaluation mode.
        calls: What it is called with, in turn.
        device: Where it is.
        times: How often all calls are made, one behind the other as in a model, before it waits for the device.
    """

    module: nn.Module
    calls: Sequence[Call]
    device: torch.device
    times: int = 1

    def __call__(self) -> None:
        """Make the calls."""
        with torch.inference_mode():
            for _ in range(self.times):
                for arguments, named in self.calls:
                    self.module(*arguments, **named)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def parts_of(sites: Sequence[Site]) -> list[Part]:
    """The parts that the sites of a model cut, in their order."""
    blocks: dict[str, list[Site]] = {}
    for site in sites:
        blocks.setdefault(site.block, []).append(site)
    modules = {block: _holding(own) for block, own in blocks.items()}
    parts = []
    for block, own in blocks.items():
        inside = [other for other in blocks if other != block and f"{modules[other]}.".startswith(f"{modules[block]}.")]
        parts.append(Part(block, tuple(own), modules[block], tuple(site for other in inside for site in blocks[other])))
    return parts


def _holding(sites: Iterable[Site]) -> str:
    """Path of the smallest module that holds every module that these sites name."""
    paths = [cut.layer.name.rpartition(".")[0] for site in sites for cut in site.cuts]
    paths += [size.module for site in sites for size in site.sizes]
    paths += [site.fold.module for site in sites if site.fold]
    common = itertools.takewhile(
        lambda names: len(set(names)) == 1, zip(*(path.split(".") for path in paths), strict=False)
    )
    return ".".join(names[0] for names in common)


def record(model: nn.Module, modules: Iterable[str], batch: Mapping[str, Tensor]) -> dict[str, list[Call]]:
    """What each module is called with in one forward pass of ``batch``.

    A cache of keys and values is left out: it would grow with each replay.

    Args:
        model: Model in evaluation mode.
        modules: Module paths.
        batch: Keyword arguments of the forward pass.

    Raises:
        ValueError: If the pass does not go through one of the modules.
    """
    calls: dict[str, list[Call]] = {name: [] for name in modules}

    def note(name: str) -> Any:  # noqa: ANN401 (a hook)
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            calls[name].append((_kept(arguments), _kept(named)))

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True) for name in calls]
    try:
        with torch.inference_mode():
            model(**batch)
    finally:
        for handle in hooks:
            handle.remove()
    for name, found in calls.items():
        if not found:
            raise ValueError(
                f"a forward pass of {type(model).__name__} does not go through {name}, so its latency cannot be "
                "measured; choose another search.of"
            )
    return calls


def _kept(value: Any) -> Any:  # noqa: ANN401 (whatever a module is called with)
    if isinstance(value, tuple | list):
        return type(value)(_kept(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _kept(entry) for key, entry in value.items()}
    return None if hasattr(value, "get_seq_length") else value  # a Cache of transformers


def alike(model: nn.Module, part: Part, calls: Sequence[Call]) -> str:
    """A text that is the same for parts that take the same time: code, shapes of the weights and of the inputs."""
    module = model.get_submodule(part.module)
    skip = len(part.module)
    sites = [(site.name[skip:], site.kind, site.units) for site in (*part.sites, *part.around)]
    return repr((module, sites, _shapes(calls)))


def _shapes(value: Any) -> Any:  # noqa: ANN401 (whatever a module is called with)
    if isinstance(value, Tensor):
        return (value.dtype, tuple(value.shape), value.is_contiguous())
    if isinstance(value, tuple | list):
        return [_shapes(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _shapes(entry) for key, entry in value.items()}
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


def cut_copy(model: nn.Module, part: Part, kept: Sequence[int]) -> nn.Module:
    """A copy of the module that holds a part, cut to ``kept`` units at each of its sites.

    Where other parts lie in the same module, theirs are cut to one unit: they are not what is to be timed.

    Args:
        model: Dense model.
        part: Part of it.
        kept: Units to keep, by site of the part.
    """
    module = copy.deepcopy(model.get_submodule(part.module))
    shell = module
    for name in reversed(part.module.split(".")):  # so that the paths that sites have lead to it
        outer = nn.Module()
        outer.add_module(name, shell)
        shell = outer
    keep = {site.name: range(count) for site, count in zip(part.sites, kept, strict=True)}
    keep |= {site.name: range(1) for site in part.around}
    sites = [*part.sites, *part.around]
    shrink_(shell, sites, Plan.of(keep, sites))
    return module
