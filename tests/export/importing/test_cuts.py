import math

import pytest
import torch

from tests import tiny
from tests.plans import random_plan
from upop.export.importing.cuts import FIRST, attend_at_cut_scale, check, kept_units, plan_of, summary
from upop.families import find_sites
from upop.surgery import shrink_

NAMES = pytest.mark.parametrize("name", ["clip", "blip_retrieval", "blip_vqa", "blip_captioning", "blip_nlvr"])


def cut(name, seed=0):
    """Sites of a dense model, a random plan for it, and the weights that it leaves."""
    model = tiny.build(name)
    sites = find_sites(model)
    plan = random_plan(sites, seed)
    shrink_(model, sites, plan)
    return sites, plan, dict(model.state_dict())


@NAMES
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sizes_of_a_cut_model_are_found(name, seed):
    sites, plan, weights = cut(name, seed)
    check("it", tiny.build(name), sites, weights, str)
    assert kept_units("it", sites, weights, str) == plan.kept()


@NAMES
def test_a_whole_model_keeps_everything(name):
    model = tiny.build(name)
    sites, weights = find_sites(model), dict(model.state_dict())
    check("it", model, sites, weights, str)
    kept = kept_units("it", sites, weights, str)
    assert kept == {site.name: site.units for site in sites}
    assert attend_at_cut_scale(sites, kept, weights) == 0
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in weights.items())


def test_the_plan_keeps_the_first_units():
    sites, plan, weights = cut("clip")
    made = plan_of(sites, kept_units("it", sites, weights, str))
    assert made.kept() == plan.kept()
    assert all(units == tuple(range(len(units))) for units in made.keep.values())
    made.check(sites)
    assert "first ones" in FIRST


@NAMES
def test_queries_take_the_factor_where_the_module_stores_its_scale(name):
    """Attention of BLIP's texts divides by the root of the head size that it has; all others store a scale."""
    sites, plan, weights = cut(name)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    held = dict(weights)
    kept = plan.kept()
    attentions = [site for site in sites if site.kind == "head_dim" and kept[site.name] < site.units]
    assert attend_at_cut_scale(sites, kept, weights) == len(attentions)
    factors = {
        site.cuts[0].layer.name: math.sqrt(site.units / kept[site.name]) for site in attentions if site.fold is None
    }
    assert factors
    assert any(site.fold for site in attentions) == (name not in ("clip", "blip_nlvr"))
    for tensor_name, tensor in weights.items():
        layer = tensor_name.rpartition(".")[0]
        expected = before[tensor_name].clone()
        if layer in factors:
            rows = len(expected) // (3 if layer.endswith("qkv") else 1)
            expected[:rows] *= factors[layer]
        torch.testing.assert_close(tensor, expected)
    assert all(torch.equal(held[tensor_name], before[tensor_name]) for tensor_name in before), "none is written to"


def test_the_summary_counts_both_kinds():
    sites, plan, _ = cut("clip")
    kept = plan.kept()
    positions = sum(count for name, count in kept.items() if name.endswith("head_dim"))
    neurons = sum(count for name, count in kept.items() if name.endswith("neuron"))
    assert (
        summary(sites, kept) == f"compressed: keeps {positions} of 40 head-dim positions and {neurons} of 216 neurons"
    )
    only = [site for site in sites if site.kind == "neuron"]
    assert summary(only, kept) == f"compressed: keeps {neurons} of 216 neurons"


LAYER = "text_model.encoder.layers.1"


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        (f"{LAYER}.self_attn.k_proj.weight", (23, 24), "k_proj.* is .23, 24., and 23 is no multiple of 3, as a cut of"),
        (
            f"{LAYER}.self_attn.k_proj.bias",
            (21,),
            "q_proj.weight> keeps 8 of 8 head-dim positions, .*k_proj.bias> keeps 7",
        ),
        (f"{LAYER}.self_attn.out_proj.weight", (24, 12), "q_proj.weight> keeps 8 of .*out_proj.weight> keeps 4; a cut"),
        (
            f"{LAYER}.mlp.fc2.weight",
            (24, 39),
            "fc1.weight> keeps 40 of 40 neurons, .*fc2.weight> keeps 39; a cut leaves",
        ),
    ],
)
def test_layers_that_do_not_agree(name, shape, text):
    model = tiny.build("clip")
    sites, weights = find_sites(model), dict(model.state_dict()) | {name: torch.zeros(shape)}
    check("it", model, sites, weights, str)
    with pytest.raises(ValueError, match=f"^it: .*{text}") as caught:
        kept_units("it", sites, weights, "<{}>".format)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        (
            "logit_scale",
            (1,),
            r"<logit_scale> is \(1,\) in the file, \(\) in the model; give a --like of the same size",
        ),
        (f"{LAYER}.mlp.fc1.weight", (41, 24), r"fc1\.weight> is \(41, 24\) in the file, \(40, 24\) in the model"),
        (f"{LAYER}.mlp.fc1.weight", (0, 24), r"fc1\.weight> is \(0, 24\) in the file, \(40, 24\) in the model"),
        (f"{LAYER}.mlp.fc1.weight", (40, 23), r"fc1\.weight> is \(40, 23\) in the file, \(40, 24\) in the model"),
        (f"{LAYER}.mlp.fc2.bias", (23,), r"fc2\.bias> is \(23,\) in the file, \(24,\) in the model"),
        ("more", (1,), r"the model has no place for \['<more>'\]; give a --like of the same size, and a whole file"),
    ],
)
def test_shapes_that_are_not_a_cut_of_the_model(name, shape, text):
    model = tiny.build("clip")
    weights = dict(model.state_dict()) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=f"^it: .*{text}"):
        check("it", model, find_sites(model), weights, "<{}>".format)
    if name != "more":
        check("it", model, find_sites(model), weights, str, free=[name])


def test_what_is_missing_is_named_unless_it_is_tied():
    model = tiny.build("blip_captioning")
    weights = dict(model.state_dict())
    del weights["text_decoder.cls.predictions.decoder.weight"]
    check("it", model, find_sites(model), weights, str)
    del weights["text_decoder.bert.embeddings.LayerNorm.bias"]
    with pytest.raises(
        ValueError, match=r"it: the file lacks \['<text_decoder\.bert\.embeddings\.LayerNorm\.bias>'\];"
    ):
        check("it", model, find_sites(model), weights, "<{}>".format)
