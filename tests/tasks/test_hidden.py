"""Recorded hidden states against those that transformers returns, and their distance against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.plans import random_plan
from upop.families import find_blocks, find_sites
from upop.masks import Masks, mask_values
from upop.surgery import shrink_
from upop.tasks.hidden import HiddenStates, distil_hidden


def given(model: nn.Module, rows: int = 3) -> dict[str, Tensor]:
    """Inputs with padded texts."""
    inputs = tiny.inputs(model, batch=rows)
    inputs["attention_mask"] = (
        torch.arange(inputs["input_ids"].shape[1]) < torch.tensor([[12], [7], [9]])[:rows]
    ).long()
    return inputs


def recorded(model: nn.Module) -> HiddenStates:
    with HiddenStates(model) as states:
        model(**given(model))
    return states


def test_states_are_those_that_transformers_returns() -> None:
    model = tiny.build("clip")
    found = recorded(model).states
    inputs = given(model)
    vision = model.vision_model(pixel_values=inputs["pixel_values"], output_hidden_states=True).hidden_states
    text = model.text_model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
    ).hidden_states
    assert list(found) == find_blocks(model)
    expected = {path: (text if "text" in path else vision)[int(path.split(".")[-1]) + 1] for path in found}
    for path, state in found.items():
        torch.testing.assert_close(state, expected[path])


@pytest.mark.parametrize("name", ["clip", "blip_vqa", "blip_retrieval", "blip_captioning", "dual_encoder"])
def test_every_block_of_a_model_is_recorded_and_no_hook_stays(name: str) -> None:
    model = tiny.build(name)
    states = recorded(model)
    assert list(states.states) == find_blocks(model)
    assert all(state.requires_grad for state in states.states.values())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_model_fails() -> None:
    model = tiny.build("clip")
    with pytest.raises(RuntimeError, match="the model broke"), HiddenStates(model):
        raise RuntimeError("the model broke")
    assert not any(module._forward_hooks for module in model.modules())


def test_the_last_call_stays_and_a_second_with_block_starts_anew() -> None:
    model = tiny.build("clip")
    inputs = given(model)
    states = HiddenStates(model)
    with states:
        model.vision_model(pixel_values=torch.zeros_like(inputs["pixel_values"]))
        model.vision_model(pixel_values=inputs["pixel_values"])
    assert list(states.states) == [path for path in find_blocks(model) if path.startswith("vision_model")]
    expected = recorded(model).states
    assert all(torch.equal(state, expected[path]) for path, state in states.states.items())
    with states:
        model.text_model(input_ids=inputs["input_ids"])
    assert all(path.startswith("text_model") for path in states.states)


@pytest.mark.parametrize("name", ["clip", "blip_vqa"])
def test_masked_and_cut_models_have_the_same_states(name: str) -> None:
    model = tiny.build(name)
    dense = recorded(model)
    sites = find_sites(model)
    plan = random_plan(sites, seed=1)
    cut = copy.deepcopy(model)
    shrink_(cut, sites, plan)
    masks = Masks(model, sites)
    masks.write_(mask_values(sites, plan))
    masked, after = recorded(model), recorded(cut)
    assert distil_hidden(masked, after).item() == pytest.approx(0.0, abs=1e-9)
    distance = distil_hidden(masked, dense)
    assert distance.item() > 1e-3
    distance.backward()
    assert all(float(gradient.abs().max()) > 0 for gradient in masks.gradients().values())


def test_the_distance_is_the_mean_over_blocks_of_the_mean_over_valid_tokens() -> None:
    student, teacher = (recorded(tiny.build("blip_vqa", seed)) for seed in (0, 1))
    mask = given(tiny.build("blip_vqa"))["attention_mask"]
    answer = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    found = distil_hidden(student, teacher, {"text_encoder": mask, "text_decoder": answer})
    means = []
    for path, state in student.states.items():
        ours, theirs = state.detach().numpy(), teacher.states[path].detach().numpy()
        valid = {"text_e": mask.numpy(), "text_d": answer.numpy()}.get(path[:6], np.ones(ours.shape[:2]))
        distances = []
        for row, token in np.argwhere(valid):
            one, other = ours[row, token].astype(np.float64), theirs[row, token].astype(np.float64)
            distances.append(2 - 2 * one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        means.append(np.mean(distances))
    assert len(means) == 8
    assert found.item() == pytest.approx(float(np.mean(means)), rel=1e-5)


def test_equal_states_are_at_no_distance_and_lengths_do_not_count() -> None:
    model = tiny.build("blip_vqa")
    student, teacher = recorded(model), recorded(copy.deepcopy(model))
    assert distil_hidden(student, teacher).item() == 0.0
    for state in teacher.states.values():
        state.data.mul_(3.0)
    assert distil_hidden(student, teacher).item() == pytest.approx(0.0, abs=1e-9)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = tiny.build("clip"), tiny.build("clip", seed=1)
    distil_hidden(recorded(student), recorded(teacher)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_a_compiled_model_leaves_its_states_too() -> None:
    model = tiny.build("blip_vqa")
    plain = copy.deepcopy(model)
    for tower in (model.vision_model, model.text_encoder, model.text_decoder):
        tower.compile()
    for rows in (3, 2):
        inputs = given(model, rows)
        with HiddenStates(model) as states:
            model(**inputs)
        with HiddenStates(plain) as expected:
            plain(**inputs)
        assert distil_hidden(states, expected).item() == pytest.approx(0.0, abs=1e-9)


def test_messages() -> None:
    model = tiny.build("blip_vqa")
    states = recorded(model)
    nothing = HiddenStates(model)
    with pytest.raises(
        ValueError,
        match=r"8 blocks of the student ran and 0 of the teacher, not in both: \['text_decoder.bert.encoder.layer.0', ",
    ):
        distil_hidden(states, nothing)
    with pytest.raises(ValueError, match=r"0 blocks of the student ran and 0 of the teacher; run both models"):
        distil_hidden(nothing, nothing)
    other = tiny.blip_vqa()
    del other.text_encoder.encoder.layer[2]
    with pytest.raises(
        ValueError, match=r"7 of the teacher, not in both: \['text_encoder.encoder.layer.2'\]; run both"
    ):
        distil_hidden(states, recorded(other))
    with HiddenStates(model) as fewer:
        model(**given(model, 2))
    with pytest.raises(
        ValueError,
        match=r"states of vision_model.encoder.layers.0 have shape \(3, 5, 24\) in the student and \(2, 5, 24\) in the",
    ):
        distil_hidden(states, fewer)
    ones = torch.ones(3, 12)
    with pytest.raises(
        ValueError,
        match=r"a mask is given for 'text_encodr', in which no block ran; blocks ran in \['text_decoder', "
        r"'text_encoder', 'vision_model'\]; did you mean 'text_encoder'\?",
    ):
        distil_hidden(states, states, {"text_encodr": ones})
    with pytest.raises(
        ValueError,
        match=r"mask for text_decoder.bert.encoder.layer.0 has shape \(3, 12\), its tokens have \(3, 4\); give",
    ):
        distil_hidden(states, states, {"text_decoder": ones})
    with pytest.raises(ValueError, match="nothing to cut in this Linear"):
        HiddenStates(nn.Linear(2, 2))
