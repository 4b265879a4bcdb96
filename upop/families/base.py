"""What the block patterns share: they turn a block's modules into sites.

A family file maps class names of transformer blocks to a function that lists the sites of one such block, built from
the two helpers here. Everything that would make a cut inexact (a norm over the head size, an activation that is not 0
at 0) is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upop.structure import Attention, Cut, Fold, Kind, Layer, Modality, Site, Size


@dataclass(frozen=True)
class Block:
    """One transformer block found in a model.

    Attributes:
        path: Module path of the block.
        module: The block; any class, so its attributes are not typed.
        kinds: Unit kinds that were asked for.
        depth: Number of the block within its tower, from 0.
    """

    path: str
    module: Any
    kinds: tuple[Kind, ...]
    depth: int

    def layer(self, name: str, tokens: str) -> Layer:
        """The linear layer at ``name`` below the block.

        Raises:
            TypeError: If it is not a plain linear layer.
        """
        linear = self.module.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"{self.path}.{name} is a {type(linear).__name__}, which cannot be cut; a plain torch.nn.Linear can "
                "(merge adapters and dequantise first)"
            )
        return Layer(f"{self.path}.{name}", linear.in_features, linear.out_features, linear.bias is not None, tokens)


@dataclass(frozen=True)
class Family:
    """Block patterns of one architecture.

    Attributes:
        name: What a user calls it.
        library: Top-level package whose classes are meant (``transformers``, ``timm`` or ``upop``).
        blocks: Function that lists the sites of a block, by the block's class name.
    """

    name: str
    library: str
    blocks: Mapping[str, Callable[[Block], list[Site]]]


@dataclass(frozen=True)
class AttentionNames:
    """Where an attention keeps its parts, relative to the block.

    Attributes:
        module: The attention module.
        projections: Query, key and value layers, or the one layer that fuses them in this order.
        out: Output projection.
        heads: Attribute that holds the number of heads.
        head_dim: Attribute that holds the size of a head.
        width: Attribute that holds heads x head size, where there is one.
        fold: Whether the module derives its scale from the current head size; otherwise it stores the dense scale.
    """

    module: str
    projections: tuple[str, ...]
    out: str
    heads: str = "num_heads"
    head_dim: str = "head_dim"
    width: str | None = None
    fold: bool = False


def attention_sites(
    block: Block, names: AttentionNames, modality: Modality, tokens: str, keys: str | None = None
) -> list[Site]:
    """The head site and the head-dim site of an attention, as far as they were asked for.

    Args:
        block: Block that holds the attention.
        names: Where its parts are.
        modality: Tower it belongs to.
        tokens: Stream whose tokens attend.
        keys: Stream whose tokens they attend to, where it is another one (cross-attention).

    Raises:
        TypeError: If a projection is not a plain linear layer.
    """
    attention = block.module.get_submodule(names.module)
    path = f"{block.path}.{names.module}"
    heads, head_dim = int(getattr(attention, names.heads)), int(getattr(attention, names.head_dim))
    parts = 3 // len(names.projections)
    sources = [tokens] + [keys or tokens] * (len(names.projections) - 1)  # queries come first
    producers = [block.layer(name, stream) for name, stream in zip(names.projections, sources, strict=True)]
    consumer = block.layer(names.out, tokens)
    products = Attention(path, heads, head_dim, tokens, keys or tokens)
    view: tuple[int, ...] = (parts, heads, head_dim)

    def site(kind: Kind, dim: int, attribute: str, fold: Fold | None) -> Site:
        cuts = [Cut(layer, "out", view, dim) for layer in producers] + [Cut(consumer, "in", view[1:], dim - 1)]
        sizes = [Size(path, attribute)]
        if names.width:
            sizes.append(Size(path, names.width, producers[0].name, parts))
        return Site(f"{path}.{kind}", kind, modality, block.depth, tuple(cuts), tuple(sizes), fold, products)

    sites = []
    if "head" in block.kinds:
        sites.append(site("head", 1, names.heads, None))
    if "head_dim" in block.kinds:
        fold = Fold(producers[0].name, parts, path) if names.fold else None
        sites.append(site("head_dim", 2, names.head_dim, fold))
    return sites


def neuron_site(
    block: Block,
    up: str,
    down: str,
    activation: Callable[[Tensor], Tensor],
    modality: Modality,
    tokens: str,
) -> list[Site]:
    """The neuron site of a two-layer MLP, if neurons were asked for.

    Args:
        block: Block that holds the MLP.
        up: Layer whose rows are the neurons.
        down: Layer whose columns are the neurons.
        activation: What stands between the two. It must map 0 to 0, or a neuron at mask 0 would not be gone.
        modality: Tower it belongs to.
        tokens: Stream whose tokens pass through.

    Raises:
        TypeError: If one of the layers is not a plain linear layer.
        ValueError: If the activation is not 0 at 0.
    """
    if "neuron" not in block.kinds:
        return []
    first, second = block.layer(up, tokens), block.layer(down, tokens)
    if float(activation(torch.zeros(1))) != 0.0:
        raise ValueError(
            f"the activation between {first.name} and {second.name} is not 0 at 0, so a removed neuron would leave a "
            "constant behind; leave 'neuron' out of the units"
        )
    cuts = (
        Cut(first, "out", (first.out_features,), 0),
        Cut(second, "in", (second.in_features,), 0),
    )
    path = f"{block.path}.{up}".rpartition(".")[0]
    return [Site(f"{path}.neuron", "neuron", modality, block.depth, cuts)]


def refuse_norms(block: Block, names: Iterable[str], kinds: Iterable[Kind], what: str) -> None:
    """Refuse unit kinds whose cut would change the statistics of a norm inside the block.

    Raises:
        ValueError: If one of ``names`` is a norm and one of ``kinds`` was asked for.
    """
    asked = sorted(set(kinds) & set(block.kinds))
    for name in names:
        norm = getattr(block.module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], None)
        if asked and isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
            raise ValueError(
                f"{block.path}.{name} normalises over the {what}, so removing {asked} there would change what is kept; "
                f"leave {asked} out of the units"
            )
