"""Parts of a model: where they are, what flows into them, and that a cut copy is what the cut model has there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests import tiny
from upop.families import find_sites
from upop.runs.replays import Replay, alike, cut_copy, parts_of, record
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

MODELS = pytest.mark.parametrize("name", tiny.MODELS)


def calls_of(model: nn.Module, modules: set[str]) -> dict:
    return record(model, modules, tiny.inputs(model))


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("clip", {"text_model.encoder.layers.0.self_attn", "vision_model.encoder.layers.1.mlp"}),
        ("bert", {"encoder.layer.0.attention", "encoder.layer.0"}),
        ("vit", {"layers.0.attention", "layers.1.mlp"}),
        ("timm_vit", {"blocks.0.attn", "blocks.0.mlp"}),
        ("blip_vqa", {"text_decoder.bert.encoder.layer.2.crossattention", "text_encoder.encoder.layer.0"}),
        ("blip_nlvr", {"text_encoder.encoder.layer.1.crossattention", "text_encoder.encoder.layer.2.attention"}),
    ],
)
def test_the_smallest_module_that_holds_a_part(name: str, modules: set[str]) -> None:
    parts = parts_of(find_sites(tiny.build(name), KINDS))
    assert modules <= {part.module for part in parts}, {part.module for part in parts}
    for part in parts:
        for site in (*part.sites, *part.around):
            assert all(cut.layer.name.startswith(f"{part.module}.") for cut in site.cuts)


def test_a_part_knows_what_lies_around_it() -> None:
    sites = find_sites(tiny.build("bert"), ("head_dim", "neuron"))
    by_module = {part.module: part for part in parts_of(sites)}
    layer = by_module["encoder.layer.1"]
    assert [site.kind for site in layer.sites] == ["neuron"]
    assert [site.name for site in layer.around] == ["encoder.layer.1.attention.self.head_dim"]
    assert by_module["encoder.layer.1.attention"].around == ()


@MODELS
@pytest.mark.parametrize("kinds", [("head_dim", "neuron"), KINDS], ids="-".join)
def test_a_cut_copy_computes_what_the_cut_model_computes_there(name: str, kinds: tuple) -> None:
    model = tiny.build(name)
    sites = find_sites(model, kinds)
    before = tiny.outputs(model)
    different = {(part.sites[0].kind, part.sites[0].modality): part for part in parts_of(sites)}.values()
    calls = calls_of(model, {part.module for part in different})
    for part in different:
        kept = [max(1, site.units // 2) for site in part.sites]
        small = cut_copy(model, part, kept)
        keep = {site.name: range(count) for site, count in zip(part.sites, kept, strict=True)}
        keep |= {site.name: range(1) for site in part.around}
        cut = copy.deepcopy(model)
        shrink_(cut, sites, Plan.of(keep, sites))
        there = cut.get_submodule(part.module)
        assert repr(small) == repr(there)
        for arguments, named in calls[part.module]:
            with torch.inference_mode():
                assert torch.equal(first(small(*arguments, **named)), first(there(*arguments, **named)))
    assert torch.equal(tiny.outputs(model), before), "the model is left as it was"
    assert not any(module._forward_pre_hooks for module in model.modules())


def first(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output  # type: ignore[return-value]


@MODELS
def test_recorded_calls_give_what_the_module_gave(name: str) -> None:
    model = tiny.build(name)
    modules = {part.module for part in parts_of(find_sites(model))}
    seen: dict[str, list[torch.Tensor]] = {module: [] for module in modules}
    hooks = []
    for module in modules:
        hook = lambda _, __, output, module=module: seen[module].append(first(output))  # noqa: E731
        hooks.append(model.get_submodule(module).register_forward_hook(hook))
    calls = calls_of(model, modules)
    for handle in hooks:
        handle.remove()
    for module, outputs in seen.items():
        assert len(calls[module]) == len(outputs) > 0
        for (arguments, named), output in zip(calls[module], outputs, strict=True):
            with torch.inference_mode():
                again = first(model.get_submodule(module)(*arguments, **named))
            torch.testing.assert_close(again, output, rtol=1e-5, atol=1e-6)


def test_no_cache_of_keys_and_values_grows_with_the_replays() -> None:
    model = tiny.build("blip_captioning")
    model.text_decoder.config.use_cache = True
    part = next(part for part in parts_of(find_sites(model)) if part.module.startswith("text_decoder"))
    ((arguments, named),) = calls_of(model, {part.module})[part.module]
    assert not any(hasattr(value, "get_seq_length") for value in (*arguments, *named.values()))


def test_parts_are_alike_where_shapes_and_inputs_are() -> None:
    model = tiny.build("clip")
    parts = parts_of(find_sites(model))
    calls = calls_of(model, {part.module for part in parts})
    keys = [alike(model, part, calls[part.module]) for part in parts]
    assert len(parts) == 2 * 2 + 2 * 3
    assert len(set(keys)) == 4
    longer = record(model, {parts[0].module}, tiny.inputs(model, batch=4))
    assert alike(model, parts[0], longer[parts[0].module]) != keys[0], "another batch, another time"


def test_a_module_that_is_not_called_is_named() -> None:
    model = tiny.build("clip")
    model.vision_model.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"does not go through vision_model\.spare, so its latency cannot be measured"):
        calls_of(model, {"vision_model.spare"})
    assert not model.vision_model.spare._forward_pre_hooks


def test_a_replay_makes_every_call_as_often_as_it_is_told() -> None:
    seen = []

    class Counter(nn.Module):
        def forward(self, x: int, scale: int = 1) -> None:
            seen.append((x, scale, torch.is_inference_mode_enabled()))

    Replay(Counter(), [((1,), {}), ((2,), {"scale": 3})], torch.device("cpu"), times=2)()
    assert seen == [(1, 1, True), (2, 3, True)] * 2
