import pytest
import torch
from torch import nn

from tests import tiny
from tests.cost.costing import MODELS, cost_of
from tests.plans import random_plan
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites
from upop.masks import Masks, mask_values
from upop.structure import KINDS, Cut, Layer, Site


def test_two_images_are_two_sequences():
    _, cost = cost_of(tiny.build("blip_nlvr"), ("head",))
    assert (cost.measured.tokens["vision"], cost.measured.sequences) == (10, {"vision": 2})
    assert cost.prunable("flops", "vision") == 2 * 2 * (2 * 5 * 4 * 32 * 32 + 4 * 5 * 5 * 32)


def test_streams_that_run_twice_count_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(2, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.down(self.up(self.down(self.up(x))))

    layers = Layer("up", 2, 6, True, "text"), Layer("down", 6, 2, True, "text")
    site = Site("neuron", "neuron", "text", 0, (Cut(layers[0], "out", (6,), 0), Cut(layers[1], "in", (6,), 0)))
    measured = measure(Twice(), [site], {"x": torch.zeros(1, 5, 2)})
    assert measured.tokens == {"text": 10}
    assert CostModel([site], measured).prunable("flops") == measured.flops == 2 * 2 * 5 * 2 * 2 * 6


@pytest.mark.parametrize("question", [lambda mask: mask.all(), lambda mask: mask.bool().all(), lambda mask: mask.any()])
def test_a_mask_is_whole_and_no_other_question_is_answered(question):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, mask):
            return self.layer(x) if question(mask) else x

    inputs = {"x": torch.zeros(1, 3, 2), "mask": torch.ones(1, 3)}
    if question(torch.tensor([True, False])):
        with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
            measure(Asks(), [], inputs)
    else:
        assert measure(Asks(), [], inputs).flops == 2 * 3 * 4


@MODELS
def test_masks_do_not_count(name):
    model = tiny.build(name)
    sites, cost = cost_of(model)
    masks = Masks(model, sites)
    masks.write_(mask_values(sites, random_plan(sites, 1)))
    before = tiny.outputs(model)
    assert measure(model, sites, example_inputs(model)) == cost.measured
    assert all(value.device.type == "cpu" for value in masks.values().values())
    assert torch.equal(tiny.outputs(model), before)


@MODELS
@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(name, training):
    model = tiny.build(name).train(training)
    frozen = list(model.modules())[5]
    frozen.train(not training)  # e.g. a frozen tower that stays in evaluation mode
    modes = [module.training for module in model.modules()]
    weights = {key: (id(value), value.data_ptr()) for key, value in model.named_parameters()}
    attributes = [sorted(vars(module)) for module in model.modules()]
    measure(model, find_sites(model, KINDS), example_inputs(model))
    assert [module.training for module in model.modules()] == modes
    assert {key: (id(value), value.data_ptr()) for key, value in model.named_parameters()} == weights
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_failing_measurement_leaves_no_trace_either():
    model = tiny.build("clip").train()
    with pytest.raises(AttributeError):  # whatever the model says
        measure(model, find_sites(model), {"nonsense": torch.zeros(1)})
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    measured = measure(Tied(), [], {"x": torch.zeros(3, 4)})
    assert (measured.params, measured.flops, measured.tokens) == (16 + 4 + 4, 2 * 2 * 3 * 16, {})


def test_text_length_changes_the_flops_only():
    model = tiny.build("clip")
    sites = find_sites(model)
    short, full = (measure(model, sites, example_inputs(model, length)) for length in (6, None))
    assert short.tokens == {"vision": 5, "text": 6}
    assert short.params == full.params
    assert full.flops - short.flops == 3 * (2 * 6 * (4 * 24 * 24 + 2 * 24 * 40) + 4 * (144 - 36) * 24)
