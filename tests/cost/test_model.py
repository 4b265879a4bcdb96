import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from tests.cost.costing import MODELS, cost_of
from tests.plans import random_plan
from upop.cost import CostModel, measure
from upop.families import example_inputs
from upop.structure import KINDS, Cut, Layer, Plan, Site
from upop.surgery import shrink_

CHOICES = [(kind,) for kind in KINDS] + [("head_dim", "neuron"), KINDS]


def count(model):
    """Parameters and FLOPs of one sample, counted on a real forward pass; older torch knows no fused CPU kernel."""
    seen = {id(parameter): parameter.numel() for parameter in model.parameters()}
    inputs = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in example_inputs(model).items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**inputs)
    return sum(seen.values()), counter.get_total_flops()


@MODELS
@pytest.mark.parametrize("kinds", CHOICES, ids="-".join)
@pytest.mark.parametrize("seed", range(2))
def test_remaining_is_what_the_cut_model_has(name, kinds, seed):
    model = tiny.build(name)
    sites, cost = cost_of(model, kinds)
    plan = random_plan(sites, seed)
    params, flops = (cost.remaining(plan.kept(), currency) for currency in ("params", "flops"))
    assert (cost.whole("params"), cost.whole("flops")) == count(model)
    shrink_(model, sites, plan)
    real_params, real_flops = count(model)
    assert params == real_params
    assert flops == real_flops
    again = measure(model, [], example_inputs(model))
    assert (again.params, again.flops) == (real_params, real_flops)


def linear(inputs, outputs):
    return inputs * outputs + outputs


# The tiny CLIP by hand: 4 patches and a class token of width 32 with 2 layers, 12 tokens of width 24 with 3.
VISION_LAYER = 4 * linear(32, 32) + linear(32, 48) + linear(48, 32) + 4 * 32
TEXT_LAYER = 4 * linear(24, 24) + linear(24, 40) + linear(40, 24) + 4 * 24
VISION = 32 + 3 * 8 * 8 * 32 + 5 * 32 + 2 * 32 + 2 * VISION_LAYER + 2 * 32 + 32 * 16
TEXT = 50 * 24 + 12 * 24 + 3 * TEXT_LAYER + 2 * 24 + 24 * 16
VISION_FLOPS = 2 * 4 * 192 * 32 + 2 * (2 * 5 * (4 * 32 * 32 + 2 * 32 * 48) + 4 * 5 * 5 * 32) + 2 * 32 * 16
TEXT_FLOPS = 3 * (2 * 12 * (4 * 24 * 24 + 2 * 24 * 40) + 4 * 12 * 12 * 24) + 2 * 24 * 16


def test_clip_by_hand():
    sites, cost = cost_of(tiny.build("clip"), ("head_dim", "neuron"))
    assert cost.measured.tokens == {"vision": 5, "text": 12}
    assert cost.whole("params") == VISION + TEXT + 1 == 37345
    assert cost.whole("flops") == VISION_FLOPS + TEXT_FLOPS + 2 * 16 == 546336
    # A unit owns its rows with their biases, and its columns; the bias after the columns belongs to nobody.
    assert cost.prunable("params", "vision") == 2 * (3 * linear(32, 32) + 32 * 32 + linear(32, 48) + 48 * 32) == 14624
    assert cost.prunable("params", "text") == 3 * (3 * linear(24, 24) + 24 * 24 + linear(24, 40) + 40 * 24) == 13008
    assert cost.prunable("params") == 14624 + 13008
    assert cost.prunable("flops", "vision") == 2 * (2 * 5 * (4 * 32 * 32 + 2 * 32 * 48) + 4 * 5 * 5 * 32)
    assert cost.prunable("params", "fusion") == 0
    # One head-dim position of one vision layer is 4 heads x (q, k, v rows with biases, one output column).
    name = next(site.name for site in sites if site.modality == "vision" and site.kind == "head_dim")
    assert cost.removed({name: 7}, "params") == 4 * (3 * 33 + 32)
    assert cost.removed({name: 7}, "flops") == 2 * 5 * 4 * 4 * 32 + 4 * 5 * 5 * 4
    assert cost.removed({name: 7}, "params", "text") == 0
    name = next(site.name for site in sites if site.modality == "text" and site.kind == "neuron")
    assert cost.removed({name: 39}, "params") == 24 + 1 + 24
    assert cost.removed({name: 39}, "flops") == 2 * 12 * 2 * 24
    assert cost.removed({}, "params") == cost.removed({}, "flops") == 0


def test_blip_by_hand():
    sites, cost = cost_of(tiny.build("blip_retrieval"), ("head_dim", "neuron"))
    assert cost.measured.tokens == {"vision": 5, "text_encoder": 12, "text_encoder.crossattention": 5}
    # Queries of the text at its width of 24, keys and values of the image at its width of 32.
    weights = 24 * 25 + 2 * 24 * 33 + 24 * 24
    assert cost.prunable("params", "fusion") == 3 * weights
    flops = 2 * (12 * 24 * 24 + 2 * 5 * 32 * 24 + 12 * 24 * 24) + 4 * 12 * 5 * 24
    assert cost.prunable("flops", "fusion") == 3 * flops
    name = next(site.name for site in sites if site.modality == "fusion")
    assert cost.removed({name: 7}, "params", "fusion") == weights // 8
    assert cost.removed({name: 7}, "flops") == flops // 8
    own = 2 * 12 * (4 * 24 * 24 + 2 * 24 * 40) + 4 * 12 * 12 * 24
    assert cost.prunable("flops", "text") == 3 * own


def test_heads_and_head_dims_multiply():
    sites, cost = cost_of(tiny.build("clip"))
    kept = {site.name: {"head": 1, "head_dim": 6}[site.kind] for site in sites if site.kind != "neuron"}
    kept = {name: value for name, value in kept.items() if name.startswith("vision_model.encoder.layers.0.")}
    assert cost.removed(kept, "params") == (32 - 6) * (3 * 33 + 32)
    row = next(share for share in cost.shares(kept) if share.kind == "head x head_dim" and share.modality == "vision")
    assert (row.sites, row.units, row.units_kept) == (4, 2 * (4 + 8), 2 * (4 + 8) - 3 - 2)
    assert row.params_removed == (32 - 6) * (3 * 33 + 32)


@MODELS
@pytest.mark.parametrize("kinds", CHOICES, ids="-".join)
def test_shares_sum_up(name, kinds):
    sites, cost = cost_of(tiny.build(name), kinds)
    kept = random_plan(sites, 5).kept()
    shares = cost.shares(kept)
    for currency in ("params", "flops"):
        for modality in {site.modality for site in sites}:
            rows = [share for share in shares if share.modality == modality]
            assert sum(getattr(row, f"{currency}_removed") for row in rows) == cost.removed(kept, currency, modality)
            assert sum(getattr(row, currency) for row in rows) == cost.prunable(currency, modality)
        total = sum(getattr(row, f"{currency}_removed") for row in shares)
        assert total == cost.removed(kept, currency) == cost.whole(currency) - cost.remaining(kept, currency)
        assert all(0 <= getattr(row, f"{currency}_removed") < getattr(row, currency) for row in shares)
    assert sum(row.sites for row in shares) == len(sites)
    assert sum(row.units for row in shares) == sum(site.units for site in sites)
    assert sum(row.units_kept for row in shares) == sum(kept.values())
    assert len({(row.modality, row.kind) for row in shares}) == len(shares)


def test_messages():
    sites, cost = cost_of(tiny.build("clip"))
    text = r"unknown currency 'flop'; known: \['flops', 'params'\]; did you mean 'flops'\?"
    for ask in (cost.whole, cost.prunable, lambda it: cost.removed({}, it), lambda it: cost.remaining({}, it)):
        with pytest.raises(ValueError, match=text):
            ask("flop")
    with pytest.raises(
        ValueError, match=r"no token count for stream 'text' of text_model\.encoder\.layers\.0\.self_attn"
    ):
        CostModel(sites, measure(tiny.build("clip"), [], example_inputs(tiny.build("clip"))))
    layer = Layer("up", 2, 6, True, "text")
    views = [(6,), (2, 3)]
    pair = [Site(f"mlp.{len(view)}", "neuron", "text", 0, (Cut(layer, "out", view, 0),)) for view in views]
    with pytest.raises(ValueError, match="sites see the out side of up in different shapes"):
        CostModel(pair, cost.measured)


def test_whole_plan_costs_the_whole():
    sites, cost = cost_of(tiny.build("siglip"))
    kept = Plan.whole(sites).kept()
    assert cost.remaining(kept, "params") == cost.whole("params")
    assert math.isclose(cost.remaining(kept, "flops"), cost.whole("flops"))
