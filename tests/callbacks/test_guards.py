"""Steps that are not finite: left out as if they had not been, counted, listed, and in the end fatal."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.cli.failing import fails
from tests.recipes import recipe, write
from tests.runs.processes import fit_here, over_two_ranks, settings, upop
from upop.callbacks import NONFINITE, Guards, StepGuard
from upop.callbacks.guards import _samples
from upop.data import ShapesRetrieval
from upop.runs import RunDirectory, fit

POISON, OMIT = "tests.callbacks.poison.Poison", "tests.callbacks.poison.Omit"


class Line(LightningModule):
    """Fits a line to numbers with AdamW, and keeps the last batch in a buffer, as a queue would."""

    def __init__(self, bad: dict[int, str] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.register_buffer("queue", torch.zeros(2))
        self.register_buffer("fence", torch.full((2,), -math.inf))
        self.bad = bad or {}
        self.steps: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.steps.append(self.model.weight.detach().clone())
        kind = self.bad.get(batch_idx, "")
        self.queue.copy_(batch * math.nan if kind == "nan loss" else batch)
        loss = (self.model(batch.unsqueeze(1)).squeeze(1) - 2 * batch).square().mean()
        if kind == "inf loss":
            loss = loss + math.inf  # its gradient is finite
        if kind == "nan loss":
            loss = loss * math.nan
        if kind == "nan gradient":
            loss = loss + (0 * self.model.weight.sum()).sqrt()  # 0, of slope 0 / 0
        if kind == "huge gradient":
            loss = loss * 1e30  # finite, but not its square
        self.log("loss/line", loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def trainer(path: Path, *callbacks: Callback, **arguments: Any) -> Trainer:
    given: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(callbacks=list(callbacks), default_root_dir=path, **(given | arguments))


def numbers(count: int = 6) -> DataLoader:
    return DataLoader(torch.linspace(-1, 1, 2 * count), batch_size=2)


@pytest.mark.parametrize("kind", ["nan loss", "inf loss", "nan gradient", "huge gradient"])
def test_a_fault_of_any_kind_leaves_weights_and_moments_as_they_were(tmp_path: Path, kind: str) -> None:
    line, guard = Line({2: kind}), StepGuard(phase="search", file=tmp_path / NONFINITE)
    run = trainer(tmp_path, guard)
    what = "the loss" if "loss" in kind else "a gradient"
    with pytest.warns(UserWarning, match=rf"search: {what} is not finite at step 2: left out \(1 so far\), weights un"):
        run.fit(line, numbers())
    assert torch.equal(line.steps[2], line.steps[3])
    assert not torch.equal(line.steps[3], line.steps[4])
    plain = Line()
    adam = plain.configure_optimizers()
    for index, batch in enumerate(numbers()):
        if index == 2:
            continue
        adam.zero_grad()
        (plain.model(batch.unsqueeze(1)).squeeze(1) - 2 * batch).square().mean().backward()
        adam.step()
    for found, expected in zip(line.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(found, expected)
        state, own = run.optimizers[0].state[found], adam.state[expected]
        assert all(torch.equal(state[name], own[name]) for name in ("exp_avg", "exp_avg_sq", "step"))
    assert torch.equal(line.fence, torch.full((2,), -math.inf)), "infinities that are meant stay"


def test_numbers_that_a_bad_batch_left_in_the_task_do_not_stay(tmp_path: Path) -> None:
    line = Line({5: "nan loss"})
    with pytest.warns(UserWarning, match="not finite at step 5"):
        trainer(tmp_path, StepGuard()).fit(line, numbers())
    assert line.queue.tolist() == [0.0, 0.0]


def test_of_accumulated_batches_the_whole_step_is_left_out(tmp_path: Path) -> None:
    line, guard = Line({3: "nan loss"}), StepGuard(file=tmp_path / NONFINITE)
    with pytest.warns(UserWarning, match="the loss is not finite at step 1"):
        trainer(tmp_path, guard, accumulate_grad_batches=2).fit(line, numbers())
    assert torch.equal(line.steps[2], line.steps[4])
    (row,) = json.loads((tmp_path / NONFINITE).read_text())["steps"]
    assert [entry["batch"] for entry in row["ranks"][0]["batches"]] == [2, 3]
    assert math.isfinite(row["ranks"][0]["losses"][0])
    assert row["ranks"][0]["losses"][1] == "nan"
    assert row["ranks"][0]["parts"] == {"loss/line": "nan"}


def test_several_in_a_row_end_the_run_and_others_do_not(tmp_path: Path) -> None:
    apart = Line(dict.fromkeys((0, 2, 4), "nan loss"))
    guard = StepGuard(stop_after=2)
    with pytest.warns(UserWarning, match=r"left out \(3 so far\)"):
        trainer(tmp_path, guard).fit(apart, numbers())
    assert guard.left_out == 3
    file = tmp_path / "retrain" / NONFINITE
    message = (
        rf"retrain: the loss is not finite at step 3, as in 2 steps in a row \(guards.stop_after\); its samples are in "
        rf"'{file}'; lower retrain.lr, raise retrain.warmup_steps, set trainer.gradient_clip_val, or take bf16-mixed"
    )
    with pytest.warns(UserWarning, match="step 2"), pytest.raises(ValueError, match=message):
        trainer(tmp_path, StepGuard(2, "retrain", file)).fit(Line(dict.fromkeys((2, 3), "nan loss")), numbers())
    assert [row["step"] for row in json.loads(file.read_text())["steps"]] == [2, 3]
    never = StepGuard(stop_after=0)
    with pytest.warns(UserWarning, match="6 so far"):
        trainer(tmp_path, never).fit(Line(dict.fromkeys(range(6), "nan loss")), numbers())
    assert never.left_out == 6


def test_asked_twice_it_counts_once_and_looks_at_what_it_is_given_besides(tmp_path: Path) -> None:
    verdicts = []

    class Asks(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
            beside = torch.tensor([1.0, math.inf if trainer.global_step == 1 else 0.0])
            verdicts.append(guard.check(trainer, pl_module, beside))

    guard = StepGuard()
    with pytest.warns(UserWarning, match="a gradient is not finite at step 1"):
        trainer(tmp_path, Asks(), guard).fit(Line(), numbers(3))
    assert verdicts == ["fine", "left out", "fine"]
    assert guard.left_out == 1


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")
                raise InterruptedError

    bad = dict.fromkeys((1, 2, 3), "nan loss")
    with pytest.warns(UserWarning, match="2 so far"), pytest.raises(InterruptedError):
        trainer(tmp_path, StepGuard(3, file=tmp_path / NONFINITE), Stop()).fit(Line(bad), numbers())
    again = StepGuard(3, file=tmp_path / NONFINITE)
    (tmp_path / NONFINITE).unlink()
    with pytest.raises(ValueError, match="at step 3, as in 3 steps in a row"):
        trainer(tmp_path, again).fit(Line(bad), numbers(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.left_out == 3
    assert [row["step"] for row in json.loads((tmp_path / NONFINITE).read_text())["steps"]] == [1, 2, 3]


def test_what_is_left_out_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="step 4"):
        trainer(tmp_path, StepGuard(), logger=logger).fit(Line(dict.fromkeys((1, 4), "nan loss")), numbers())
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["steps_left_out"]]
    assert [(row["step"], row["steps_left_out"]) for row in rows] == [("1", "1.0"), ("4", "2.0")]


class Steep(Line):
    """A gradient through fp16 that overflows where the scale is 8192 or more; or at any scale."""

    def __init__(self, at_any_scale: bool = False, bad: dict[int, str] | None = None) -> None:
        super().__init__(bad)
        self.slope = math.inf if at_any_scale else 8.0
        self.scales: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.steps.append(self.model.weight.detach().clone())
        if self._trainer is not None:
            self.scales.append(self.trainer.precision_plugin.scaler.get_scale())
        loss = Slope.apply(self.model.weight.half().float(), self.slope) + self.model.bias.sum()
        return loss * math.nan if batch_idx in self.bad else loss


class Slope(torch.autograd.Function):
    """The sum, with any slope."""

    @staticmethod
    def forward(context: Any, value: Tensor, slope: float) -> Tensor:
        context.slope = slope
        return value.sum()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * context.slope).expand(1, 1), None


def half() -> MixedPrecision:
    """fp16 with its scaler, which Lightning itself gives on a GPU only."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**16))


def test_steps_that_the_scaler_skips_to_find_its_scale_are_no_fault(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    line, guard = Steep(), StepGuard(stop_after=1)
    trainer(tmp_path, guard, plugins=[half()]).fit(line, numbers(7))
    assert guard.left_out == 0
    assert not [one for one in recwarn if "not finite" in str(one.message)]
    assert line.scales == [65536, 32768, 16384, 8192, 4096, 4096, 4096], "halved once for each, not twice"
    plain = Steep()
    adam, scaler = plain.configure_optimizers(), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for index, batch in enumerate(numbers(7)):
        adam.zero_grad()
        scaler.scale(plain.training_step(batch, index)).backward()
        scaler.step(adam)
        scaler.update()
    assert torch.equal(line.model.weight, plain.model.weight)
    assert torch.equal(line.model.bias, plain.model.bias)
    assert not torch.equal(line.model.weight, line.steps[0])


def test_overflow_that_no_scale_mends_is_a_fault(tmp_path: Path) -> None:
    line, guard = Steep(at_any_scale=True), StepGuard(stop_after=3)
    with pytest.warns(UserWarning, match="step 18"), pytest.raises(ValueError, match="a gradient is not finite at st"):
        trainer(tmp_path, guard, plugins=[half()]).fit(line, numbers(40))
    assert line.scales == [2.0**power for power in range(16, -4, -1)], "16 to 1 look for the scale, then three faults"


def test_under_fp16_a_loss_that_is_not_finite_counts_at_once(tmp_path: Path) -> None:
    line, guard = Steep(bad={5: "nan"}), StepGuard(file=tmp_path / NONFINITE)
    with pytest.warns(UserWarning, match="the loss is not finite at step 5"):
        trainer(tmp_path, guard, plugins=[half()]).fit(line, numbers(8))
    assert guard.left_out == 1
    assert line.scales[-3:] == [4096, 2048, 2048], "the scaler skips it once"
    assert torch.equal(line.steps[5], line.steps[6])
    assert not torch.equal(line.steps[6], line.steps[7])


@pytest.mark.parametrize("phase", ["finetune", "search", "retrain"])
@pytest.mark.parametrize("contrast", ["batch", "queue"])
def test_a_bad_batch_in_any_phase_is_as_if_it_had_not_been(
    config: dict[str, Any], tmp_path: Path, phase: str, contrast: str
) -> None:
    config["finetune"] = {"epochs": 1, "lr": 1e-3}
    config["model"]["init_args"] |= {"contrast": contrast, "queue_size": 24}
    runs = []
    for name, callback in (("poisoned", POISON), ("omitted", OMIT)):
        config["run_dir"] = str(tmp_path / name)
        config["trainer"]["callbacks"] = [{"class_path": callback, "init_args": {"steps": [1], "phase": phase}}]
        made = recipe(config, tmp_path / "config.yaml")
        for only in ("finetune", "search", "retrain"):
            fit(made, RunDirectory(tmp_path / name, made.config), only)
            if only == phase:
                break
        last = tmp_path / name / phase / "checkpoints" / "last.ckpt"
        runs.append(torch.load(last, weights_only=True))
    poisoned, omitted = runs
    assert all(torch.isfinite(value).all() for value in poisoned["state_dict"].values())
    (row,) = json.loads((tmp_path / "poisoned" / phase / NONFINITE).read_text())["steps"]
    assert row["step"] == 1
    assert not (tmp_path / "omitted" / phase / NONFINITE).exists()
    if contrast == "queue":
        return  # the features of a batch are in the queue or are not; see above for what becomes of NaN
    for name, value in omitted["state_dict"].items():
        assert torch.equal(poisoned["state_dict"][name], value), name
    moments = [run["optimizer_states"][0]["state"] for run in runs]
    for number, state in moments[1].items():
        assert all(torch.equal(moments[0][number][name], value) for name, value in state.items())
    if phase == "search":
        masks, others = (
            next(run["callbacks"][name] for name in run["callbacks"] if name.startswith("Progr")) for run in runs
        )
        assert masks["plan"]["keep"] == others["plan"]["keep"]
        assert all(torch.equal(masks["policy"]["sums"][name], sums) for name, sums in others["policy"]["sums"].items())
        assert (masks["left_out"], others["left_out"]) == (1, 0)
        assert all(math.isfinite(row["loss"]) for row in masks["history"])


def test_a_run_that_stays_bad_ends_in_one_line_that_names_a_file_with_the_samples(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["guards"] = {"stop_after": 2}
    config["trainer"]["callbacks"] = [{"class_path": POISON, "init_args": {"steps": [0, 5, 6], "phase": "search"}}]
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    file = Path(config["run_dir"]) / "search" / NONFINITE
    assert line.startswith("search: the loss is not finite at step 6, as in 2 steps in a row (guards.stop_after); its ")
    assert f"its samples are in '{file}'; lower search.lr" in line
    told = json.loads(file.read_text())
    assert (told["format"], told["phase"]) == (1, "search")
    assert [(row["step"], row["epoch"]) for row in told["steps"]] == [(0, 0), (5, 1), (6, 1)]
    data = ShapesRetrieval(**config["data"]["init_args"], seed=1)
    data.set_processor(recipe(config, tmp_path / "again.yaml").start()[1])
    loader = data.train_dataloader()
    for epoch, batch in ((0, 0), (1, 1), (1, 2)):
        loader.sampler.set_epoch(epoch)
        expected = list(loader)[batch]["image_index"].tolist()
        (found,) = next(row for row in told["steps"] if row["step"] == 4 * epoch + batch)["ranks"][0]["batches"]
        assert found == {"batch": batch, "samples": expected, "image_index": expected}


def test_samples_are_right_where_a_loader_goes_on_inside_an_epoch(config: dict[str, Any], tmp_path: Path) -> None:
    data = ShapesRetrieval(**config["data"]["init_args"])
    data.set_processor(recipe(config, tmp_path / "config.yaml").start()[1])
    whole, rest = data.train_dataloader(), data.train_dataloader()
    expected = [batch["image_index"].tolist() for batch in whole]
    rest.load_state_dict(whole.state_dict() | {"batches": 2})
    assert [batch["image_index"].tolist() for batch in rest] == expected[2:]
    run: Any = SimpleNamespace(train_dataloader=rest)
    assert [_samples(run, number) for number in (2, 3)] == [{"samples": expected[2]}, {"samples": expected[3]}]
    run.train_dataloader = DataLoader(data.train_dataloader().dataset, batch_size=2, shuffle=True)
    assert _samples(run, 0) == {}, "not drawn again, and not drawn wrongly"


@pytest.mark.slow
def test_what_is_bad_on_one_rank_is_left_out_on_both(checkpoint: Path, tmp_path: Path) -> None:
    config = settings(checkpoint, tmp_path / "one")
    config["trainer"]["callbacks"] = [{"class_path": POISON, "init_args": {"steps": [3], "phase": "search"}}]
    both = over_two_ranks(config, tmp_path / "two")
    both["trainer"]["callbacks"][0]["init_args"]["rank"] = 1
    result = upop("fit", both)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("the loss is not finite at step 3") == 1, "said once"
    one, two = fit_here(config), tmp_path / "two"
    plans = [json.loads((run / "plan.json").read_text()) for run in (one, two)]
    assert plans[0]["keep"] == plans[1]["keep"]
    assert [plan["facts"]["steps_left_out"] for plan in plans] == [1, 1]
    (row,) = json.loads((two / "search" / NONFINITE).read_text())["steps"]
    (alone,) = json.loads((one / "search" / NONFINITE).read_text())["steps"]
    assert [entry["rank"] for entry in row["ranks"]] == [0, 1]
    drawn = [entry["batches"][0]["samples"] for entry in row["ranks"]]
    assert drawn[0] + drawn[1] == alone["ranks"][0]["batches"][0]["samples"]


@pytest.mark.slow
def test_two_ranks_end_together(checkpoint: Path, tmp_path: Path) -> None:
    config = settings(checkpoint, tmp_path / "one") | {"guards": {"stop_after": 2}}
    both = over_two_ranks(config, tmp_path / "two")
    poison = {"steps": [3, 4], "phase": "search", "rank": 1}
    both["trainer"]["callbacks"] = [{"class_path": POISON, "init_args": poison}]
    result = upop("fit", both)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "upop: error: search: the loss is not finite at step 4, as in 2 steps in a row" in result.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stop_after": -1}, r"guards.stop_after is -1; give 0 \(never\) or more"),
        ({"stop_exploded": -3}, r"guards.stop_exploded is -3; give 0 \(never\) or more"),
        ({"explode": 0.5}, r"guards.explode is 0.5; give a factor of 1 or more, or 0 \(does not look\)"),
        ({"explode": math.nan}, "guards.explode is nan; give a factor of 1 or more"),
        ({"vanish": 0.5}, "guards.vanish is 0.5; it is a fraction kept, from 0 to below 0.5"),
    ],
)
def test_messages(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guards(**wrong)
