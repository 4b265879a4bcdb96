import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests import tiny
from tests.plans import random_plan
from upop.families import find_sites
from upop.masks import Masks, check_same, has_masks, mask_values, unit_norms
from upop.structure import KINDS, Cut, Layer, Plan, Site

MODELS = pytest.mark.parametrize("name", tiny.MODELS)


def masked(name, kinds=KINDS, seed=0):
    model = tiny.build(name, seed)
    sites = find_sites(model, kinds)
    return model, sites, Masks(model, sites)


def random_masks(sites, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {site.name: torch.rand(site.units, generator=generator) for site in sites}


@MODELS
def test_attaching_changes_nothing_bit_for_bit(name):
    dense = tiny.outputs(tiny.build(name))
    model, sites, masks = masked(name)
    assert has_masks(model)
    assert torch.equal(tiny.outputs(model), dense)
    masks.write_(mask_values(sites, Plan.whole(sites)))
    assert torch.equal(tiny.outputs(model), dense)


@MODELS
def test_masks_are_no_parameters(name):
    model = tiny.build(name)
    before = [id(parameter) for parameter in model.parameters()]
    numbers = sum(value.numel() for value in model.state_dict().values())
    sites = find_sites(model, KINDS)
    masks = Masks(model, sites)
    assert sorted(id(parameter) for parameter in model.parameters()) == sorted(before)
    assert sum(value.numel() for value in model.state_dict().values()) == numbers
    assert len(list(model.buffers())) == len(list(tiny.build(name).buffers()))
    assert not any(value is mask.value for value in model.parameters() for mask in masks._masks.values())


def traces(model):
    return [
        (path, type(module), len(module._forward_hooks), len(module._forward_pre_hooks), sorted(vars(module)))
        for path, module in model.named_modules()
    ]


@MODELS
def test_detaching_leaves_no_trace(name):
    model = tiny.build(name)
    dense, before = tiny.outputs(model), traces(model)
    parameters = {key: id(value) for key, value in model.named_parameters()}
    keys = set(model.state_dict())
    sites = find_sites(model, KINDS)
    for _ in range(2):  # attaching again works
        masks = Masks(model, sites)
        masks.write_(random_masks(sites))
        assert not torch.equal(tiny.outputs(model), dense)
        masks.detach()
        masks.detach()
        assert not has_masks(model)
        assert traces(model) == before
        assert {key: id(value) for key, value in model.named_parameters()} == parameters
        assert set(model.state_dict()) == keys
        assert all(isinstance(value, nn.Parameter) for value in model.parameters())
        assert torch.equal(tiny.outputs(model), dense)


def clip_with_activation_masks(model, sites):
    """Multiply the activations themselves, by hooks: what the row masks claim to be the same as."""
    masks = {site.name: torch.ones(site.units, requires_grad=True) for site in sites}
    for path, module in model.named_modules():
        if path.endswith("self_attn"):
            heads, dims = masks[f"{path}.head"], masks[f"{path}.head_dim"]

            def multiply(_, __, out, heads=heads, dims=dims):
                return (out.unflatten(-1, (len(heads), len(dims))) * heads[:, None] * dims).flatten(-2)

            for layer in (module.q_proj, module.k_proj, module.v_proj):
                layer.register_forward_hook(multiply)
        if path.endswith("mlp"):
            neurons = masks[f"{path}.neuron"]
            module.fc1.register_forward_hook(lambda _, __, out, neurons=neurons: out * neurons)
    return masks


def test_values_and_gradients_are_those_of_activation_masks():
    model, sites, masks = masked("clip")
    other = tiny.build("clip")
    reference = clip_with_activation_masks(other, sites)
    values = random_masks(sites)
    masks.write_(values)
    for name, value in values.items():
        reference[name].data.copy_(value)
    ours, theirs = tiny.compute(model), tiny.compute(other)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    gradients = masks.gradients()
    assert list(gradients) == [site.name for site in sites]
    for site in sites:
        expected = reference[site.name].grad
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(gradients[site.name], expected, atol=1e-3 * expected.abs().max().item(), rtol=1e-3)
    assert all(parameter.grad is not None for parameter in model.vision_model.encoder.parameters())


@MODELS
def test_gradients_are_the_slope(name):
    model, sites, masks = masked(name)
    model.double()
    masks.write_({key: 0.5 + 0.5 * value for key, value in random_masks(sites).items()})
    weights = torch.randn(tiny.outputs(model).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss():
        return (tiny.compute(model) * weights).sum()

    loss().backward()
    gradients, values, step = masks.gradients(), masks.values(), 2.0**-12  # kept exactly by fp32
    for site in sites[:: 2 if len(sites) > 6 else 1]:
        unit = site.units // 2
        ends = []
        for sign in (1, -1):
            value = values[site.name].clone()
            value[unit] = torch.round(value[unit] * 2**12) * step + sign * step
            masks.write_({site.name: value})
            with torch.no_grad():
                ends.append(loss().item())
        masks.write_({site.name: values[site.name]})
        slope = (ends[0] - ends[1]) / (2 * step)
        largest = gradients[site.name].abs().max().item()
        assert abs(slope - gradients[site.name][unit].item()) <= 1e-2 * largest


@MODELS
def test_gradients_under_autocast_are_fp32(name):
    model, _, masks = masked(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiny.compute(model).float().square().mean()
    loss.backward()
    found = masks.gradients()
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(value.ne(0).any() for value in found.values())
    rough = torch.cat(list(found.values()))
    masks.clear()
    tiny.compute(model).square().mean().backward()
    exact = torch.cat(list(masks.gradients().values()))
    assert torch.cosine_similarity(rough, exact, dim=0) > 0.9


def test_gradients_of_bf16_weights_are_fp32():
    model, _, masks = masked("clip")
    model.to(torch.bfloat16)
    tiny.compute(model).float().square().mean().backward()
    assert {value.dtype for value in masks.gradients().values()} == {torch.float32}
    assert {value.dtype for value in masks.values().values()} == {torch.float32}


def test_gradients_add_up_until_they_are_cleared():
    model, _, masks = masked("clip")
    assert all(value.eq(0).all() for value in masks.gradients().values())
    tiny.compute(model).square().mean().backward()
    once = {name: value.clone() for name, value in masks.gradients().items()}
    tiny.compute(model).square().mean().backward()
    for name, value in masks.gradients().items():
        torch.testing.assert_close(value, 2 * once[name])
    masks.clear()
    assert all(value.eq(0).all() for value in masks.gradients().values())


def test_values_are_copies_and_unnamed_sites_keep_theirs():
    _, sites, masks = masked("clip")
    name, other = sites[0].name, sites[1].name
    masks.values()[name].zero_()
    assert masks.values()[name].eq(1).all()
    masks.write_({name: torch.full((sites[0].units,), 0.25)})
    assert masks.values()[name].eq(0.25).all()
    assert masks.values()[other].eq(1).all()


def test_write_checks_all_before_it_writes_any():
    _, sites, masks = masked("clip")
    name, units = sites[0].name, sites[0].units
    good = torch.zeros(units)
    for bad, text in [
        ({"nowhere.head": good}, r"no mask at site 'nowhere\.head'; there are masks at \['text_model"),
        ({sites[1].name: torch.ones(99)}, rf"mask for site '{sites[1].name}' must be \d+ finite numbers, got \(99,\)"),
        ({sites[1].name: torch.full((sites[1].units,), float("nan"))}, r"must be \d+ finite numbers"),
    ]:
        with pytest.raises(ValueError, match=text):
            masks.write_({name: good, **bad})
        assert masks.values()[name].eq(1).all()


def test_frozen_weights_still_give_mask_gradients():
    model, _, masks = masked("clip")
    model.requires_grad_(False)
    tiny.compute(model).square().mean().backward()
    assert all(value.ne(0).any() for value in masks.gradients().values())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_dry_run_on_meta_leaves_the_masks_where_they_are():
    model, sites, masks = masked("clip")
    values = random_masks(sites)
    masks.write_(values)
    before = tiny.outputs(model)
    meta = {name: value.to("meta") for name, value in (*model.named_parameters(), *model.named_buffers())}
    given = {name: value.to("meta") for name, value in tiny.inputs(model).items()}
    torch.func.functional_call(model, meta, kwargs=given)
    assert all(value.device.type == "cpu" for value in masks.values().values())
    assert torch.equal(tiny.outputs(model), before)


def test_attach_messages():
    model, sites, masks = masked("clip")
    with pytest.raises(ValueError, match=r"no sites to mask; list them with upop\.families\.find_sites"):
        Masks(tiny.build("clip"), [])
    with pytest.raises(ValueError, match=r"q_proj has masks already; detach them first"):
        Masks(model, sites)
    masks.detach()
    assert not has_masks(model)

    path = sites[0].cuts[0].layer.name
    layer = model.get_submodule(path)
    parametrizations.weight_norm(layer)
    with pytest.raises(
        ValueError, match=rf"{path} is parametrised \(weight norm, \.\.\.\), which detaching masks would"
    ):
        Masks(model, sites)
    parametrize.remove_parametrizations(layer, "weight")

    small = tiny.build("clip")
    parent = small.get_submodule(path.rpartition(".")[0])
    parent.q_proj = nn.Linear(24, 12)
    with pytest.raises(ValueError, match=rf"{path} has 12 rows, its site says 24; list the sites of this model again"):
        Masks(small, sites)
    parent.q_proj = nn.Identity()
    with pytest.raises(TypeError, match=rf"cannot mask {path}: it is a Identity, a torch\.nn\.Linear can be masked"):
        Masks(small, sites)
    assert not has_masks(small)


def test_mask_values_of_a_plan():
    sites = find_sites(tiny.build("clip"), KINDS)
    plan = Plan.of({sites[0].name: [0, 2]}, sites)
    values = mask_values(sites, plan, dropped=0.25)
    assert values[sites[0].name].tolist() == [1.0, 0.25, 1.0]
    assert all(values[site.name].eq(1).all() for site in sites[1:])
    assert mask_values(sites, plan)[sites[0].name].tolist() == [1.0, 0.0, 1.0]


@MODELS
def test_masks_of_a_plan_take_out_just_its_units(name):
    """Cutting twice is cutting once: units that a plan drops have no influence, whatever their weights are."""
    model, sites, masks = masked(name)
    plan = random_plan(sites, 4)
    masks.write_(mask_values(sites, plan))
    before = tiny.outputs(model)
    with torch.no_grad():
        for site in sites:
            gone = [unit for unit in range(site.units) if unit not in plan.keep[site.name]]
            for cut in site.cuts:
                layer = model.get_submodule(cut.layer.name)
                rows = cut.positions()[gone].flatten()
                if cut.side == "out":
                    layer.parametrizations.weight.original[rows] += 1
                else:
                    layer.weight[:, rows] += 1
    torch.testing.assert_close(tiny.outputs(model), before, atol=1e-5, rtol=0)


def test_unit_norms_by_hand():
    model = nn.Module()
    model.up, model.down = nn.Linear(1, 2), nn.Linear(2, 1)
    with torch.no_grad():
        model.up.weight.copy_(torch.tensor([[3.0], [0.0]]))
        model.up.bias.copy_(torch.tensor([4.0, 0.0]))
        model.down.weight.copy_(torch.tensor([[5.0, 6.0]]))
    up, down = Layer("up", 1, 2, True, "text"), Layer("down", 2, 1, True, "text")
    site = Site("mlp.neuron", "neuron", "text", 0, (Cut(up, "out", (2,), 0), Cut(down, "in", (2,), 0)))
    expected = torch.tensor([(9 + 16 + 25) / 3, 36 / 3]).sqrt()
    torch.testing.assert_close(unit_norms(model, [site])["mlp.neuron"], expected)


@MODELS
def test_unit_norms_do_not_see_the_masks(name):
    model, sites, masks = masked(name)
    masks.write_(random_masks(sites))
    with_masks = unit_norms(model, sites)
    without = unit_norms(tiny.build(name), sites)
    assert with_masks.keys() == without.keys()
    assert all(torch.equal(value, without[key]) for key, value in with_masks.items())
    scaled = copy.deepcopy(tiny.build(name))
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(2)
    assert all(torch.allclose(value, 2 * without[key]) for key, value in unit_norms(scaled, sites).items())


def test_a_fingerprint_tells_any_bit_of_any_mask():
    _, sites, masks = masked("clip")
    values = random_masks(sites)
    masks.write_(values)
    _, _, twin = masked("clip")
    twin.write_(values)
    assert masks.fingerprint() == twin.fingerprint() < 2**63
    for site in sites:
        value = values[site.name].clone()
        value[-1] = torch.nextafter(value[-1], torch.tensor(2.0))
        twin.write_({site.name: value})
        assert twin.fingerprint() != masks.fingerprint()
        twin.write_(values)


def test_masks_that_are_not_the_same_on_all_ranks_are_refused_with_the_ranks():
    check_same([7, 7, 7], step=3)
    with pytest.raises(ValueError, match=r"at step 3 the masks of ranks \[1\] differ from those of the other 2"):
        check_same([7, 8, 7], step=3)
    with pytest.raises(ValueError, match=r"masks of ranks \[1\] differ from those of the other 1.*last checkpoint"):
        check_same([7, 8], step=3)
    with pytest.raises(ValueError, match=r"masks of ranks \[0, 3\] differ"):
        check_same([1, 7, 7, 2], step=3)
