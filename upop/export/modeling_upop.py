"""Rebuild a model that upop has made smaller; upop itself need not be installed, torch is all that this file needs.

config.json says under ``compression`` which units each site keeps: attention heads, head-dim positions (the same index
in every head of a layer), MLP neurons. The dense model is built first, then its linear layers get the sizes that this
leaves, and the weights beside this file fit. Attention keeps the scale of the dense head size: models that store their
scale were built with it, and in those that go by the head size they find, upop has folded the factor into the weights.

Shapes: ``H`` heads and ``P`` head size that are kept, ``F`` projections that one layer fuses.
"""

from __future__ import annotations

from typing import Any

from torch import nn

COMPRESSION_FORMAT = 2
HEADS = ("num_heads", "num_attention_heads")
HEAD_DIMS = ("head_dim", "attention_head_size")
WIDTHS = ("all_head_size", "attn_dim")
PROJECTIONS = {"qkv": 3} | dict.fromkeys(("q_proj", "k_proj", "v_proj", "query", "key", "value"), 1)
OUTPUTS = ("out_proj", "o_proj", "projection", "proj")


class Compressed:
    """Stands before a dense model class among the bases of a model, and makes what that builds smaller."""

    _auto_class = "AutoModel"  # so that save_pretrained writes this file too

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (a Hugging Face config)
        dense: Any = super()
        dense.__init__(config, *args, **kwargs)
        model: Any = self
        resize_(model, getattr(config, "compression", None))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (as transformers)
        """As transformers does, but with the weights under the names that they have in the model."""
        dense: Any = super()
        dense.save_pretrained(*args, **{"save_original_format": False, **kwargs})


def resize_(model: nn.Module, compression: Any) -> None:  # noqa: ANN401 (what config.json holds)
    """Give every site of a dense model the size that is kept of it, in place; which values stay does not matter.

    Args:
        model: Dense model.
        compression: ``keep``: units kept by site name, such as ``"0-3,7"``. A site is named by the module that it is
            in and its kind: ``head``, ``head_dim`` or ``neuron``.

    Raises:
        ValueError: If it is of another format, or names a kind of site that is not known.
    """
    found = compression.get("format") if isinstance(compression, dict) else None
    if found != COMPRESSION_FORMAT:
        raise ValueError(
            f"compression in config.json has format {found!r}; this file reads format {COMPRESSION_FORMAT}, use the "
            "one that was written with the model"
        )
    attentions: dict[str, dict[str, int]] = {}
    for site, units in compression["keep"].items():
        path, _, kind = site.rpartition(".")
        if kind == "neuron":
            resize_mlp_(model, path, count(units))
        elif kind in ("head", "head_dim"):
            attentions.setdefault(path, {})[kind] = count(units)
        else:
            raise ValueError(f"site {site!r} in config.json is of unknown kind {kind!r}; known: head, head_dim, neuron")
    for path, kept in attentions.items():
        resize_attention_(model, path, kept.get("head"), kept.get("head_dim"))


def count(units: str) -> int:
    """How many units a list of numbers and ranges names.

    >>> count("0-3,7")
    5
    """
    ends = [part.split("-") for part in units.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def resize_mlp_(model: nn.Module, path: str, neurons: int) -> None:
    """Resize the two layers around some neurons: ``fc1`` and ``fc2``, or two modules with a ``dense`` each."""
    block: Any = model.get_submodule(path)
    if hasattr(block, "fc1"):
        first, second = block.fc1, block.fc2
    else:  # BERT's intermediate; its output is the module beside it
        first, second = block.dense, model.get_submodule(f"{path.rpartition('.')[0]}.output.dense")
    resize_linear_(first, outputs=neurons)
    resize_linear_(second, inputs=neurons)


def resize_attention_(model: nn.Module, path: str, heads: int | None, head_dim: int | None) -> None:
    """Resize the projections of an attention and the numbers that it keeps about itself; ``None`` leaves one whole."""
    attention: Any = model.get_submodule(path)
    heads_name = next(name for name in HEADS if hasattr(attention, name))
    head_dim_name = next(name for name in HEAD_DIMS if hasattr(attention, name))
    setattr(attention, heads_name, heads or getattr(attention, heads_name))
    setattr(attention, head_dim_name, head_dim or getattr(attention, head_dim_name))
    width = getattr(attention, heads_name) * getattr(attention, head_dim_name)  # H * P
    for name in WIDTHS:
        if hasattr(attention, name):
            setattr(attention, name, width)
    for name, fused in PROJECTIONS.items():
        if hasattr(attention, name):
            resize_linear_(getattr(attention, name), outputs=fused * width)
    output = next((getattr(attention, name) for name in OUTPUTS if hasattr(attention, name)), None)
    if output is None:  # BERT's is beside: self and output.dense, or self0, self1 and output.dense0, output.dense1
        parent, _, name = path.rpartition(".")
        output = model.get_submodule(f"{parent}.output.dense{name.removeprefix('self')}")
    resize_linear_(output, inputs=width)


def resize_linear_(linear: Any, outputs: int | None = None, inputs: int | None = None) -> None:  # noqa: ANN401 (a Linear)
    """Leave the first ``outputs`` rows and ``inputs`` columns; ``None`` leaves all."""
    linear.weight = nn.Parameter(linear.weight.detach()[:outputs, :inputs].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:outputs].clone())
