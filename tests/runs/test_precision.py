"""Precision, accumulation, clipping, checkpointing and compilation: what each leaves of the search of plain fp32.

Where the arithmetic is the same, plan and weights are equal to the bit. Elsewhere the overlap of the kept sets, units
that both keep over units that either keeps, is bounded from below: units at the edge of the budget may change places.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

import upop.runs.training
import upop.tasks.base
from tests import tiny
from tests.callbacks.test_progressive_search import Regression, bound, loader, search, trainer
from tests.recipes import recipe, tiny_config
from tests.runs.test_blip import ROOT, made
from upop.runs import RunDirectory, fit
from upop.structure import Plan
from upop.tasks import Retrieval

Found = tuple[Plan, dict[str, Any]]


def searched(config: dict[str, Any], path: Path, **trainer: Any) -> Found:
    """The plan of a search, and its last checkpoint."""
    config = config | {"run_dir": str(path), "trainer": config["trainer"] | trainer}
    built = recipe(config, path.with_suffix(".yaml"))
    fit(built, RunDirectory(path, built.config), only="search")
    last = torch.load(path / "search" / "checkpoints" / "last.ckpt", weights_only=True)
    return Plan.load(path / "plan.json"), last


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The search in fp32, and nothing else."""
    path = tmp_path_factory.mktemp("plain") / "run"
    return searched(tiny_config(checkpoint, path), path)


def scores(found: Found) -> Tensor:
    """All that the policy has accumulated, in one vector."""
    states = found[1]["callbacks"]
    (policy,) = (state["policy"] for name, state in states.items() if name.startswith("ProgressiveSearch"))
    return torch.cat([policy["sums"][name].double() for name in sorted(policy["sums"])])


def overlap(one: Plan, two: Plan) -> float:
    """Units that both keep over units that either keeps."""
    kept, other = ({(name, unit) for name, units in plan.keep.items() for unit in units} for plan in (one, two))
    return len(kept & other) / len(kept | other)


def assert_equal(one: Found, two: Found) -> None:
    assert one[0].keep == two[0].keep
    assert torch.equal(scores(one), scores(two))
    for name, value in one[1]["state_dict"].items():
        assert torch.equal(two[1]["state_dict"][name], value), name


def test_another_seed_gives_another_plan_so_that_an_overlap_means_something(
    config: dict[str, Any], plain: Found, tmp_path: Path
) -> None:
    other, _ = searched(config | {"seed_everything": 2}, tmp_path / "other")
    assert overlap(plain[0], other) < 0.8


def test_bf16_keeps_nine_in_ten_units_of_fp32(config: dict[str, Any], plain: Found, tmp_path: Path) -> None:
    found = searched(config, tmp_path / "run", precision="bf16-mixed")
    assert overlap(plain[0], found[0]) >= 0.9
    assert found[0].keep != plain[0].keep or not torch.equal(scores(found), scores(plain)), "it was bf16"


@pytest.mark.parametrize("power", [10, 20])
def test_fp16_keeps_nine_in_ten_units_of_fp32_by_scores_without_its_scale(
    config: dict[str, Any], plain: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power: int
) -> None:
    def on_cpu(**arguments: Any) -> Trainer:
        """Lightning gives fp16 on a GPU only, but its plugin runs on the CPU, too."""
        if "max_epochs" not in arguments:
            return Trainer(**arguments)
        return Trainer(plugins=[plugin], **arguments)

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**power))
    monkeypatch.setattr(upop.runs.training, "Trainer", on_cpu)
    found = searched(config, tmp_path / "run")
    ratio = float(scores(found).norm() / scores(plain).norm())
    assert found[0].facts["steps_left_out"] == 0, "steps without which the scaler finds no scale are no fault"
    if power == 10:
        assert overlap(plain[0], found[0]) >= 0.9
        assert ratio == pytest.approx(1.0, rel=0.02), "a scale that stays in would make it 1024"
    else:
        assert plugin.scaler.get_scale() < 2.0**power, "some steps were skipped"
        assert 0.1 < ratio < 1.02


def test_accumulated_batches_give_the_plan_and_scores_of_one_large_batch(tmp_path: Path) -> None:
    kept, sums = [], []
    for batch_size, accumulated in ((8, 1), (4, 2), (2, 4)):
        task, callback = Regression(lr=0.01), search(interval=2)
        bound(callback, task, tmp_path / "plan.json")
        trainer(callback, tmp_path, accumulate_grad_batches=accumulated).fit(task, loader(batch_size))
        kept.append(Plan.load(tmp_path / "plan.json").keep)
        sums.append(torch.cat(list(callback._policy.state_dict()["sums"].values())))
    assert kept[0] == kept[1] == kept[2]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-4, atol=1e-6)


def test_clipping_that_clips_nothing_changes_nothing(config: dict[str, Any], plain: Found, tmp_path: Path) -> None:
    assert_equal(plain, searched(config, tmp_path / "run", gradient_clip_val=1e9))


def test_clipping_leaves_the_scores_of_a_first_step_alone(config: dict[str, Any], tmp_path: Path) -> None:
    config["search"] |= {"epochs": 1, "interval": 100, "lr": 1e-12}
    free, clipped = (searched(config, tmp_path / str(value), gradient_clip_val=value) for value in (None, 1e-8))
    torch.testing.assert_close(scores(free), scores(clipped), rtol=1e-5, atol=1e-8)
    assert free[0].keep == clipped[0].keep


@pytest.fixture
def recomputed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each block that keeps nothing of its inside."""
    calls: list[int] = []
    original = upop.tasks.base.checkpoint

    @functools.wraps(original)
    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return original(*arguments, **named)

    monkeypatch.setattr(upop.tasks.base, "checkpoint", counted)
    return calls


def test_checkpointed_gradients_change_nothing(
    config: dict[str, Any], plain: Found, tmp_path: Path, recomputed: list[int]
) -> None:
    config["search"]["gradient_checkpointing"] = True
    assert_equal(plain, searched(config, tmp_path / "run"))
    assert len(recomputed) == 8 * 4, "each block at each step, and none in an evaluation"


@pytest.mark.parametrize("task", ["retrieval", "vqa", "caption", "nlvr"])
def test_the_blocks_of_blip_checkpoint_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recomputed: list[int], task: str
) -> None:
    monkeypatch.chdir(ROOT)
    found = []
    for on in (False, True):
        options = {"finetune.gradient_checkpointing": on, "trainer.limit_val_batches": 0}
        built, directory = made(task, tmp_path / str(on), **options)
        fit(built, directory, only="finetune")
        assert bool(recomputed) == on
        last = torch.load(directory.phase("finetune") / "checkpoints" / "last.ckpt", weights_only=True)
        found.append(last)
    if task != "vqa":
        for name, value in found[0]["state_dict"].items():
            assert torch.equal(found[1]["state_dict"][name], value), name
    # The gradients of the states that all blocks of its decoder attend to are summed in another order.
    moments = [last["optimizer_states"][0]["state"] for last in found]
    for number, state in moments[0].items():
        torch.testing.assert_close(moments[1][number]["exp_avg"], state["exp_avg"], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_checkpointed_gradients_of_a_taught_search_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recomputed: list[int]
) -> None:
    monkeypatch.chdir(ROOT)
    found = []
    for on in (False, True):
        options = {"search.gradient_checkpointing": on, "distill.logits": 1.0, "distill.features": 1.0}
        built, directory = made("nlvr", tmp_path / str(on), **options)
        fit(built, directory, only="finetune")
        assert not recomputed
        fit(built, directory, only="search")
        last = torch.load(directory.phase("search") / "checkpoints" / "last.ckpt", weights_only=True)
        found.append((Plan.load(directory.path / "plan.json"), last))
    assert recomputed
    assert_equal(*found)


def test_a_model_without_blocks_to_checkpoint_is_refused_at_once() -> None:
    task = Retrieval("unused")
    task.model = tiny.build("timm_vit")
    with pytest.raises(
        ValueError, match=r"gradient_checkpointing is true, but VisionTransformer has no block .* retrain.gradient_ch"
    ):
        task.check_checkpointing()


def test_the_refusal_comes_before_any_training(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upop.tasks.base, "_recomputable", lambda model: [])
    config["retrain"]["gradient_checkpointing"] = True
    built = recipe(config, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="gradient_checkpointing is true, but CLIPModel has no block"):
        fit(built, RunDirectory(tmp_path / "run", built.config))
    assert not (tmp_path / "run" / "search").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_towers_keep_nine_in_ten_units(
    config: dict[str, Any], plain: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(compiled, backend=backend))
    config["model"]["init_args"]["compile"] = True
    found = searched(config, tmp_path / "run")
    assert overlap(plain[0], found[0]) >= 0.9
    torch.testing.assert_close(scores(found), scores(plain), rtol=0.05, atol=1e-3)
