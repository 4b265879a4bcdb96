"""Checkpoints that are damaged, or of another model, and what is said of them; whole ones go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipes import recipe, tiny_config
from tests.runs.breaking import stopped_in_the_second_epoch
from upop.runs import Recipe, RunDirectory, fit
from upop.runs.contents import CONTENTS, check_whole, contents, difference


def test_every_place_is_noted_with_what_is_there() -> None:
    value = {"a": [torch.zeros(2, 3), {"b": None}], 3: {"c": (1.5, "x")}, "d": {}, "e": list(range(100))}
    found = contents(value, "top")
    assert found == {
        "top.a[0]": "float32 (2, 3)",
        "top.a[1].b": "None",
        "top[3].c": "[1.5, 'x']",
        "top.d": "{}",
        "top.e": found["top.e"],
    }
    assert found["top.e"].startswith("[0, 1, 2, ")
    assert found["top.e"] != contents([*range(99), 0], "top.e")["top.e"]
    assert contents({0: 1}, "top") != contents({"0": 1}, "top")


def test_the_first_difference_is_said() -> None:
    assert difference({"a": "1"}, {"a": "1"}, "was written") == ""
    assert difference({"a": "1", "b": "2"}, {"a": "1"}, "was written") == "it lacks 'b'"
    assert difference({"a": "1"}, {"a": "2"}, "was written") == "its 'a' is 2, but 1 was written"
    assert difference({"a": "1"}, {"a": "1", "b": "2"}, "was written") == "it has 'b', which is not what was written"


Edit = Callable[[dict[str, Any]], object]
MOMENTS = "optimizer_states"
WEIGHT = "model.logit_scale"


@pytest.fixture(scope="module")
def stopped(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunDirectory, Path]:
    """A search that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    made = recipe(tiny_config(checkpoint, folder / "run"), folder / "recipe.yaml")
    directory = RunDirectory(folder / "run", made.config)
    with stopped_in_the_second_epoch():
        fit(made, directory)
    return made, directory, folder / "run/search/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(callbacks={}), r"is damaged: it lacks 'callbacks.RandomState"),
        (lambda c: c["callbacks"].pop("StepGuard"), r"is damaged: it lacks 'callbacks.StepGuard.left_out'"),
        (lambda c: c["callbacks"]["ProgressiveSearch"].pop("policy"), r"it lacks 'callbacks.ProgressiveSearch.policy"),
        (lambda c: c.update(optimizer_states=[]), r"is damaged: it lacks 'optimizer_states\[0\].state\[0\].step'"),
        (lambda c: c[MOMENTS][0]["state"].clear(), r"is damaged: it lacks 'optimizer_states\[0\].state\[0\].step'"),
        (lambda c: c[MOMENTS][0]["state"].pop(7), r"is damaged: it lacks 'optimizer_states\[0\].state\[7\].step'"),
        (
            lambda c: c[MOMENTS][0]["state"][7].update(exp_avg=torch.zeros(1)),
            r"its 'optimizer_states\[0\].state\[7\].exp_avg' is float32 \(1,\), but float32 \(16, 24\) was written",
        ),
        (lambda c: c[MOMENTS][0]["param_groups"][0].update(lr=0.5), r"param_groups\[0\].lr' is 0.5, but 0.0"),
        (lambda c: c["lr_schedulers"].clear(), r"is damaged: it lacks 'lr_schedulers\[0\]"),
        (lambda c: c["state_dict"].pop(WEIGHT), rf"is damaged: it lacks 'state_dict.{WEIGHT}'"),
        (
            lambda c: c["state_dict"].update({WEIGHT: torch.zeros(2)}),
            r"is float32 \(2,\), but float32 \(\) was",
        ),
        (lambda c: c["state_dict"].update(x=torch.zeros(2)), r"it has 'state_dict.x', which is not what was written"),
        (lambda c: c.update(loops={}), r"is damaged: it lacks 'loops.fit_loop"),
        (lambda c: c.pop("loops"), r"lacks \['loops'\]"),
        (lambda c: c.pop("pytorch-lightning_version"), r"is damaged: it lacks 'pytorch-lightning_version'"),
        (lambda c: c.update(global_step=7), r"is damaged: its 'global_step' is 7, but 4 was written"),
        (lambda c: c.pop(CONTENTS), r"does not note what it holds: another version of upop wrote it, or it is damaged"),
        (lambda c: c.update({CONTENTS: {"a": 3}}), r"does not note what it holds"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    stopped: tuple[Recipe, RunDirectory, Path], edit: Edit, message: str
) -> None:
    made, directory, last = stopped
    whole = last.read_bytes()
    found = torch.load(last, weights_only=True)
    edit(found)
    torch.save(found, last)
    try:
        with pytest.raises(ValueError, match=rf"last\.ckpt' .*{message}.*; delete it to start the phase again$"):
            fit(made, directory)
    finally:
        last.write_bytes(whole)


def test_another_byte_in_a_tensor_is_seen(stopped: tuple[Recipe, RunDirectory, Path]) -> None:
    made, _, last = stopped
    whole = last.read_bytes()
    weight = torch.load(last, weights_only=True)["state_dict"]["model.text_model.embeddings.token_embedding.weight"]
    place = whole.index(weight.numpy().tobytes())
    task = made.new_task(*made.start(), "search")
    try:
        last.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"last\.ckpt' is no checkpoint to go on from: it is broken"):
            check_whole(last, task)
    finally:
        last.write_bytes(whole)
    check_whole(last, task)


def test_what_nobody_reads_may_be_there(stopped: tuple[Recipe, RunDirectory, Path], tmp_path: Path) -> None:
    made, _, last = stopped
    found = torch.load(last, weights_only=True) | {"mine": 3}
    torch.save(found, tmp_path / "last.ckpt")
    check_whole(tmp_path / "last.ckpt", made.new_task(*made.start(), "search"))


def test_a_checkpoint_of_another_model_is_refused(stopped: tuple[Recipe, RunDirectory, Path]) -> None:
    _, _, last = stopped
    with pytest.raises(ValueError, match=r"last\.ckpt' is of another model: it lacks 'model.weight'; delete it"):
        check_whole(last, torch.nn.Linear(2, 3))
