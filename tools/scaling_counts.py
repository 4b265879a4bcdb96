"""What one training step needs, counted by running it on fake tensors, which have shapes but hold no numbers.

``bench_scaling.py`` and ``project_scaling.py`` share this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

GB = 1e9
ADAMW = 16  # bytes per parameter: fp32 weight, gradient and two moments


@dataclass(frozen=True)
class Count:
    """What one training step needs.

    Attributes:
        params: Numbers that train.
        frozen: Numbers of frozen weights: momentum encoders.
        buffers: Bytes of buffers: the queue.
        units: Numbers of all masks.
        largest: Numbers of the largest part that is gathered at a time where weights are sharded.
        gathered: Numbers gathered for a forward pass then, parts that run twice counted twice.
        flops: FLOPs of the step, backward pass and momentum encoders included.
        kept: Bytes that autograd keeps for the backward pass, weights and buffers not counted.
    """

    params: int
    frozen: int
    buffers: int
    units: int
    largest: int
    gathered: int
    flops: int
    kept: int


@contextmanager
def pretending() -> Iterator[None]:
    """Everything made and computed inside is fake: shapes, no numbers. Who asks for one gets 0, and true of a truth."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers.initialization import no_init_weights

    class Answers(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
            if func is torch.ops.aten._local_scalar_dense.default:
                return True if args[0].dtype == torch.bool else 0
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(allow_non_fake_inputs=True), Answers(), no_init_weights():  # drawing until all fit never ends
        yield


def count(make: Callable[[], tuple[Any, Callable[[], Any]]], bf16: bool) -> Count:
    """Run one masked step on fake tensors.

    Args:
        make: Makes a model, or a task with one, and its step, which returns the loss.
        bf16: As ``precision: bf16-mixed`` runs it.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from upop.families import find_sites
    from upop.masks import Masks

    kept: dict[int, int] = {}
    with ExitStack() as stack:
        stack.enter_context(pretending())
        module, step = make()
        model = getattr(module, "model", module)
        trained = [part.numel() for part in module.parameters() if part.requires_grad]
        frozen = [part.numel() for part in module.parameters() if not part.requires_grad]
        sizes, again = shards(model), text_encoder(model)
        sites = find_sites(model)
        Masks(model, sites)
        own = {part.untyped_storage()._cdata for part in (*module.parameters(), *module.buffers())}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        flops = stack.enter_context(FlopCounterMode(display=False))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = step()
            found = sum(kept.values())
        loss.backward()
        buffers = sum(part.numel() * part.element_size() for part in module.buffers())
    return Count(
        params=sum(trained), frozen=sum(frozen), buffers=buffers, units=sum(site.units for site in sites),
        largest=max(sizes), gathered=sum(sizes) + again, flops=flops.get_total_flops(), kept=found,
    )  # fmt: skip


def shards(model: Any) -> list[int]:  # noqa: ANN401
    """Numbers of each part that is gathered at a time: the blocks, and what towers hold besides."""
    from upop.families import find_blocks

    def size(path: str) -> int:
        return sum(part.numel() for part in model.get_submodule(path).parameters())

    blocks = {path: size(path) for path in find_blocks(model)}
    towers = {path: size(path) for path in dict.fromkeys(path.partition(".")[0] for path in blocks)}
    rest = {
        tower: towers[tower] - sum(n for path, n in blocks.items() if path.startswith(f"{tower}.")) for tower in towers
    }
    return [*blocks.values(), *rest.values()]


def text_encoder(model: Any) -> int:  # noqa: ANN401
    """Numbers of BLIP's text encoder, which a step of re-ranked retrieval runs twice; nothing where there is none."""
    return sum(part.numel() for part in model.text_encoder.parameters()) if hasattr(model, "text_encoder") else 0
