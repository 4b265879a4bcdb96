import pytest
import torch
from torch import nn

from upop.families.base import AttentionNames, Block, attention_sites, neuron_site, refuse_norms
from upop.structure import KINDS, Cut, Fold, Layer, Size


class Attention(nn.Module):
    def __init__(self, heads=2, head_dim=3, width=5):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, head_dim, heads * head_dim
        self.qkv, self.proj = nn.Linear(width, 3 * heads * head_dim), nn.Linear(heads * head_dim, width, bias=False)
        self.norm, self.other = nn.LayerNorm(head_dim), nn.Identity()


def block(kinds=KINDS):
    module = nn.Module()
    module.attn, module.up, module.down = Attention(), nn.Linear(5, 7), nn.Linear(7, 5)
    return Block("layers.4", module, tuple(kinds), 4)


NAMES = AttentionNames("attn", ("attn.qkv",), "attn.proj", width="attn_dim", fold=True)


def test_a_fused_attention_by_hand():
    heads, positions = attention_sites(block(), NAMES, "vision", "image")
    qkv = Layer("layers.4.attn.qkv", 5, 18, True, "image")
    proj = Layer("layers.4.attn.proj", 6, 5, False, "image")
    assert heads.name == "layers.4.attn.head"
    assert heads.cuts == (Cut(qkv, "out", (3, 2, 3), 1), Cut(proj, "in", (2, 3), 0))
    assert positions.cuts == (Cut(qkv, "out", (3, 2, 3), 2), Cut(proj, "in", (2, 3), 1))
    # The rows of q, k and v of head 1, and of position 2 of both heads.
    assert heads.cuts[0].positions()[1].tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    assert positions.cuts[0].positions()[2].tolist() == [2, 5, 8, 11, 14, 17]
    assert positions.cuts[1].positions()[2].tolist() == [2, 5]
    width = Size("layers.4.attn", "attn_dim", "layers.4.attn.qkv", 3)
    assert heads.sizes == (Size("layers.4.attn", "num_heads"), width)
    assert positions.sizes == (Size("layers.4.attn", "head_dim"), width)
    assert (heads.fold, positions.fold) == (None, Fold("layers.4.attn.qkv", 3, "layers.4.attn"))
    assert (heads.attention.heads, heads.attention.head_dim, heads.attention.queries) == (2, 3, "image")
    assert heads.attention == positions.attention
    assert (heads.modality, heads.depth) == ("vision", 4)


def test_only_what_was_asked_for():
    assert [site.kind for site in attention_sites(block(["head_dim"]), NAMES, "text", "text")] == ["head_dim"]
    assert attention_sites(block(["neuron"]), NAMES, "text", "text") == []
    assert neuron_site(block(["head"]), "up", "down", torch.relu, "text", "text") == []


def test_neurons_by_hand():
    (site,) = neuron_site(block(), "up", "down", torch.relu, "text", "words")
    assert site.name == "layers.4.neuron"
    up, down = Layer("layers.4.up", 5, 7, True, "words"), Layer("layers.4.down", 7, 5, True, "words")
    assert site.cuts == (Cut(up, "out", (7,), 0), Cut(down, "in", (7,), 0))
    assert (site.sizes, site.fold, site.attention) == ((), None, None)


def test_messages():
    with pytest.raises(ValueError, match=r"between layers\.4\.up and layers\.4\.down is not 0 at 0"):
        neuron_site(block(), "up", "down", torch.exp, "text", "text")
    with pytest.raises(
        TypeError, match=r"layers\.4\.attn is a Attention, which cannot be cut; a plain torch\.nn\.Linear can"
    ):
        neuron_site(block(), "attn", "down", torch.relu, "text", "text")
    text = (
        r"layers\.4\.attn\.norm normalises over the head size, so removing \['head_dim'\] there would change what is "
        r"kept; leave \['head_dim'\] out of the units"
    )
    with pytest.raises(ValueError, match=text):
        refuse_norms(block(), ["attn.other", "attn.absent", "attn.norm"], ["head_dim"], "head size")
    refuse_norms(block(["head"]), ["attn.norm"], ["head_dim"], "head size")
    refuse_norms(block(), ["attn.other", "attn.absent"], ["head_dim"], "head size")
