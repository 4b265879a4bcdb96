"""What the shipped file rebuilds, against the surgery that it does not know of."""

import pytest
import torch
from torch import nn

from tests import tiny
from tests.export import samples
from tests.plans import random_plan
from upop.export.compression import block
from upop.export.modeling_upop import Compressed, count, resize_, resize_linear_
from upop.families import find_sites
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

SIZES = ("num_heads", "num_attention_heads", "head_dim", "attention_head_size", "all_head_size", "attn_dim")


def facts(model):
    """Everything about sizes that a model says of itself."""
    said = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            said[path] = (module.in_features, module.out_features)
        said |= {f"{path}.{name}": getattr(module, name) for name in SIZES if hasattr(module, name)}
    return said


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("kinds", [("head",), ("head_dim",), ("neuron",), KINDS], ids="-".join)
def test_sizes_are_those_of_the_surgery(name, kinds):
    cut, rebuilt = samples.model(name), samples.model(name)
    sites = find_sites(cut, kinds)
    plan = random_plan(sites, 3)
    shrink_(cut, sites, plan)
    compression = block(plan, kinds, {})
    resize_(rebuilt, compression)
    assert facts(rebuilt) == facts(cut)
    rebuilt.load_state_dict(cut.state_dict())
    assert torch.allclose(tiny.outputs(rebuilt), tiny.outputs(cut), atol=1e-6)
    resize_(rebuilt, compression)  # twice is like once
    assert facts(rebuilt) == facts(cut)


@pytest.mark.parametrize("name", ["clip", "blip_nlvr"])
def test_a_whole_plan_changes_nothing(name):
    model = samples.model(name)
    before = tiny.outputs(model)
    resize_(model, block(Plan.whole(find_sites(model, KINDS)), KINDS, {}))
    assert torch.equal(tiny.outputs(model), before)


def test_layers_without_bias_and_on_no_device():
    linear = nn.Linear(6, 4, bias=False, device="meta")
    resize_linear_(linear, outputs=3, inputs=2)
    assert (linear.in_features, linear.out_features, linear.weight.shape, linear.bias) == (2, 3, (3, 2), None)
    assert linear.weight.device.type == "meta"


def test_counting():
    assert [count(text) for text in ("0", "5-5", "0-11", "0,2,4-6")] == [1, 1, 12, 5]


def test_what_it_cannot_read_is_refused():
    model = samples.model("bert")
    text = "compression in config.json has format 3; this file reads format 2, use the one that was written with"
    with pytest.raises(ValueError, match=text):
        resize_(model, {"format": 3, "keep": {}})
    with pytest.raises(ValueError, match="compression in config.json has format None"):
        resize_(model, None)
    with pytest.raises(ValueError, match="site 'encoder.silly' in config.json is of unknown kind 'silly'; known: head"):
        resize_(model, {"format": 2, "keep": {"encoder.silly": "0"}})


def test_the_class_makes_what_its_config_says():
    class Small(Compressed, type(samples.model("bert"))):
        pass

    dense = samples.model("bert")
    dense.config.compression = {"format": 2, "keep": {"encoder.layer.1.intermediate.neuron": "3-9"}}
    small = Small(dense.config)
    assert small.encoder.layer[1].intermediate.dense.out_features == 7
    assert small.encoder.layer[0].intermediate.dense.out_features == tiny.TEXT["intermediate_size"]
    assert small.is_remote_code()
