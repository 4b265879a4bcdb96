"""The search on Lightning's clock, against a plain loop that restates algorithm 1 of the paper."""

from __future__ import annotations

import copy
import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests import tiny
from upop.callbacks import ProgressiveSearch
from upop.cost import CostModel, Curve, LatencyTable, measure
from upop.families import example_inputs, find_sites
from upop.masks import has_masks
from upop.search import Price
from upop.structure import Plan, Site

ROWS = 16


class Regression(LightningModule):
    """A tiny ViT that fits random targets: deterministic, no dropout."""

    def __init__(self, lr: float = 0.0) -> None:
        super().__init__()
        self.model: Any = tiny.build("vit")
        self.lr = lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        loss = (self.model(pixel_values=images).pooler_output - targets).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=self.lr)


class Saver(Callback):
    """Saves a checkpoint after the first epoch and stops the run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        trainer.should_stop = True


def loader(batch_size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(ROWS, 3, 16, 16, generator=generator)
    targets = torch.randn(ROWS, 32, generator=generator)
    return DataLoader(TensorDataset(images, targets), batch_size=batch_size)


def bound(search: ProgressiveSearch, task: Regression, path: Path) -> list[Site]:
    sites = find_sites(task.model, search.units)
    search.bind(sites, CostModel(sites, measure(task.model, sites, example_inputs(task.model))), path)
    return sites


def trainer(search: ProgressiveSearch, path: Path, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": path,
    }
    return Trainer(callbacks=[search], **(settings | arguments))


def search(**arguments: Any) -> ProgressiveSearch:
    settings: dict[str, Any] = {"removed": 0.5, "interval": 3, "tolerance": 0.05}
    return ProgressiveSearch(**(settings | arguments))


def reference_plan(
    task: Regression, sites: list[Site], cost: CostModel, interval: int, steps: int
) -> dict[str, set[int]]:
    """Algorithm 1 with activation masks and a linear walk down the list, restated without anything of the search."""
    batches = [batch for _ in range(2) for batch in loader()]
    masks = {site.name: torch.ones(site.units, requires_grad=True) for site in sites}
    model = copy.deepcopy(task.model)
    for site in sites:
        module = model.get_submodule(site.block)
        layers = [module.fc1] if site.kind == "neuron" else [module.q_proj, module.k_proj, module.v_proj]
        for layer in layers:
            repeat = layer.out_features // site.units
            name = site.name
            layer.register_forward_hook(lambda _, __, out, name=name, repeat=repeat: out * masks[name].repeat(repeat))
    total = {site.name: torch.zeros(site.units) for site in sites}
    dropped: set[tuple[str, int]] = set()
    for step, (images, targets) in enumerate(batches[:steps]):
        loss = (model(pixel_values=images).pooler_output - targets).square().mean()
        for name, gradient in zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True):
            total[name] += gradient
        if (step + 1) % interval and step + 1 != steps:
            continue
        share = math.sqrt((1 - math.cos(math.pi * (step + 1) / steps)) / 2)
        ranked = []
        for kind in ("head_dim", "neuron"):
            names = [site.name for site in sites if site.kind == kind]
            values = torch.cat([total[name] for name in names]).double()
            mean, deviation = values.mean(), values.std(correction=0)
            ranked += [
                ((float(total[n][u]) - float(mean)) / float(deviation), n, u)
                for n in names
                for u in range(len(total[n]))
            ]
        ranked.sort(key=lambda entry: -entry[0])
        units = {site.name: site.units for site in sites}
        target = 0.5 * share * cost.prunable("params")
        best, dropped = math.inf, set()
        current: set[tuple[str, int]] = set()
        kept = dict(units)
        for _, name, unit in ranked:
            if kept[name] == 1:
                continue
            kept[name] -= 1
            current.add((name, unit))
            gap = abs(cost.removed(kept, "params") - target)
            if gap < best:
                best, dropped = gap, set(current)
        with torch.no_grad():
            for name in masks:
                masks[name].fill_(1.0)
            for name, unit in dropped:
                masks[name][unit] = 1.0 - share
    return {site.name: {u for u in range(site.units) if (site.name, u) not in dropped} for site in sites}


def test_plan_equals_the_paper_s_algorithm_restated(tmp_path: Path) -> None:
    task, callback = Regression(), search()
    sites = bound(callback, task, tmp_path / "plan.json")
    cost = CostModel(sites, measure(task.model, sites, example_inputs(task.model)))
    expected = reference_plan(task, sites, cost, interval=3, steps=8)
    trainer(callback, tmp_path).fit(task, loader())
    plan = Plan.load(tmp_path / "plan.json")
    agreed = sum(len(set(plan.keep[name]) & expected[name]) for name in expected)
    union = sum(len(set(plan.keep[name]) | expected[name]) for name in expected)
    assert agreed / union > 0.98, "the refinement may move a unit or two at the edge of the budget"


@pytest.mark.parametrize("policy", ["unified", "taylor", "magnitude", "random"])
@pytest.mark.parametrize("schedule", ["sine", "cubic", "one_shot"])
def test_budget_is_met_and_masks_leave_no_trace(tmp_path: Path, policy: str, schedule: str) -> None:
    task, callback = Regression(lr=0.01), search(policy=policy, schedule=schedule, tolerance=0.02)
    keys = list(task.state_dict())
    sites = bound(callback, task, tmp_path / "plan.json")
    trainer(callback, tmp_path).fit(task, loader())
    assert list(task.state_dict()) == keys
    assert not has_masks(task)
    cost = CostModel(sites, measure(task.model, sites, example_inputs(task.model)))
    removed = cost.removed(Plan.load(tmp_path / "plan.json").kept(), "params") / cost.prunable("params")
    assert removed == pytest.approx(0.5, rel=0.02)


def test_accumulated_batches_give_the_plan_of_one_large_batch(tmp_path: Path) -> None:
    plans = []
    for batch_size, accumulated in ((4, 1), (2, 2)):
        task, callback = Regression(), search()
        bound(callback, task, tmp_path / "plan.json")
        trainer(callback, tmp_path, accumulate_grad_batches=accumulated).fit(task, loader(batch_size))
        plans.append(Plan.load(tmp_path / "plan.json"))
    assert plans[0].keep == plans[1].keep


def test_clipping_does_not_touch_the_scores(tmp_path: Path) -> None:
    plans = []
    for clip in (None, 1e-6):
        task, callback = Regression(), search()
        bound(callback, task, tmp_path / "plan.json")
        trainer(callback, tmp_path, gradient_clip_val=clip).fit(task, loader())
        plans.append(Plan.load(tmp_path / "plan.json"))
    assert plans[0].keep == plans[1].keep


def test_bf16_selects_nearly_the_same_units_and_accumulates_in_fp32(tmp_path: Path) -> None:
    plans = []
    for precision in ("32-true", "bf16-mixed"):
        task, callback = Regression(), search()
        bound(callback, task, tmp_path / "plan.json")
        trainer(callback, tmp_path, precision=precision).fit(task, loader())
        plans.append(Plan.load(tmp_path / "plan.json"))
        assert all(value.dtype == torch.float32 for value in callback._policy.scores(None).values())
    agreed = sum(len(set(plans[0].keep[name]) & set(plans[1].keep[name])) for name in plans[0].keep)
    assert agreed / sum(plans[0].kept().values()) > 0.8


class Poisoned(Regression):
    """One step in the middle has a loss that is not finite."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 2 else loss


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    task, callback = Poisoned(), search()
    bound(callback, task, tmp_path / "plan.json")
    with pytest.warns(
        UserWarning, match=r"search: a gradient is not finite at step 2: left out \(1 so far\), weights unchanged"
    ):
        trainer(callback, tmp_path).fit(task, loader())
    assert callback.left_out == 1
    assert callback._policy.steps == 7
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())
    assert Plan.load(tmp_path / "plan.json").facts["steps_left_out"] == 1


@pytest.mark.parametrize("policy", ["magnitude", "random"])
def test_policies_without_gradients_are_guarded_too(tmp_path: Path, policy: str) -> None:
    task, callback = Poisoned(lr=0.01), search(policy=policy)
    bound(callback, task, tmp_path / "plan.json")
    with pytest.warns(UserWarning, match="search: a gradient is not finite"):
        trainer(callback, tmp_path).fit(task, loader())
    assert callback.left_out == 1
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())


@pytest.mark.parametrize("settle", [1.0, 0.3])
def test_resumed_search_equals_the_unbroken_one(tmp_path: Path, settle: float) -> None:
    whole, callback = Regression(lr=0.01), search(settle=settle)
    bound(callback, whole, tmp_path / "whole.json")
    trainer(callback, tmp_path).fit(whole, loader())

    broken, first = Regression(lr=0.01), search(settle=settle)
    bound(first, broken, tmp_path / "broken.json")
    half = trainer(first, tmp_path)
    half.callbacks.append(Saver(tmp_path / "half.ckpt"))
    half.fit(broken, loader())
    assert not (tmp_path / "broken.json").exists()

    resumed, second = Regression(lr=0.01), search(settle=settle)
    bound(second, resumed, tmp_path / "resumed.json")
    trainer(second, tmp_path).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert Plan.load(tmp_path / "resumed.json").keep == Plan.load(tmp_path / "whole.json").keep
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert second.history == callback.history  # the losses since the last update included


def dropped_at_updates(callback: ProgressiveSearch, path: Path) -> list[set[tuple[str, int]]]:
    """Units selected to go at each update."""
    task = Regression(lr=0.05)
    sites = bound(callback, task, path / "plan.json")
    found: list[set[tuple[str, int]]] = []

    class Watch(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if callback.plan and len(found) < len(callback.history):
                keep = callback.plan.keep
                found.append({(s.name, u) for s in sites for u in range(s.units) if u not in keep[s.name]})

    running = trainer(callback, path)
    running.callbacks.append(Watch())
    running.fit(task, loader(batch_size=2))
    return found


def test_a_settled_search_exchanges_no_unit(tmp_path: Path) -> None:
    free, settled = search(interval=2), search(interval=2, settle=0.5)
    moving, still = dropped_at_updates(free, tmp_path), dropped_at_updates(settled, tmp_path)
    assert len(moving) == len(still) == 8
    assert moving[:4] == still[:4], "up to the half of 16 steps the same"
    assert all(earlier <= later for earlier, later in itertools.pairwise(still[3:]))
    assert not all(earlier <= later for earlier, later in itertools.pairwise(moving[3:]))
    returned = [len(earlier - later) for earlier, later in itertools.pairwise(moving)]
    assert [row["units_returned"] for row in free.history] == [0, *returned]
    assert sum(row["units_returned"] for row in settled.history[4:]) == 0


def test_what_is_logged(tmp_path: Path) -> None:
    task, callback = Regression(), search()
    bound(callback, task, tmp_path / "plan.json")
    logger = CSVLogger(tmp_path)
    trainer(callback, tmp_path, logger=logger, log_every_n_steps=50).fit(task, loader())
    names = {"removed/params", "removed/flops", "removed/params/vision", "removed/params/vision/neuron"}
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("removed/params")]
    assert [int(row["step"]) for row in rows] == [3, 6, 8], "every update, and the last, whatever log_every_n_steps"
    assert names <= set(rows[-1])
    assert float(rows[-1]["steps_left_out"]) == 0
    assert float(rows[-1]["removed/params"]) == pytest.approx(0.5, rel=0.05)
    assert [row["step"] for row in callback.history] == [3.0, 6.0, 8.0]
    assert all(math.isfinite(row["loss"]) for row in callback.history)


def test_fractions_alone_say_what_is_removed(tmp_path: Path) -> None:
    fractions = {"vision": 0.4}
    task, callback = Regression(), search(removed=None, allocation="per_modality", fractions=fractions)
    sites = bound(callback, task, tmp_path / "plan.json")
    trainer(callback, tmp_path).fit(task, loader())
    cost = CostModel(sites, measure(task.model, sites, example_inputs(task.model)))
    removed = cost.removed(Plan.load(tmp_path / "plan.json").kept(), "params") / cost.prunable("params")
    assert removed == pytest.approx(0.4, rel=0.05)
    assert ProgressiveSearch().budget.removed == 0.5


def test_auto_multiples_follow_the_device_and_say_what_they_cost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, callback = Regression(), search(multiple_of="auto", tolerance=0.1)
    sites = find_sites(task.model, callback.units)
    assert callback.multiples(sites, "cpu") == callback.multiples(sites, "cuda") == {"head_dim": 2, "neuron": 8}
    bound(callback, task, tmp_path / "plan.json")
    assert callback.budget.multiple_of == {"head_dim": 2, "neuron": 8}
    with caplog.at_level("INFO"):
        trainer(callback, tmp_path).fit(task, loader())
    plan = Plan.load(tmp_path / "plan.json")
    assert {len(plan.keep[site.name]) % {"head_dim": 2, "neuron": 8}[site.kind] for site in sites} == {0}
    assert plan.facts["multiple_of"] == {"head_dim": 2, "neuron": 8}
    price = Price(**plan.facts["alignment"])
    assert price.removed == sum(site.units for site in sites) - sum(plan.kept().values())
    assert price.line().startswith("aligned to head_dim 2, neuron 8: ")
    assert price.line() in caplog.text


def test_auto_gives_way_where_the_budget_could_not_be_met(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, callback = Regression(), search(removed=0.37, multiple_of="auto", tolerance=0.005)
    sites = bound(callback, task, tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"lower search\.multiple_of, or raise search\.tolerance"):
        bound(
            search(removed=0.37, multiple_of={"head_dim": 2, "neuron": 8}, tolerance=0.005),
            task,
            tmp_path / "plan.json",
        )
    assert callback.budget.multiple_of != callback.multiples(sites, "cpu")
    with caplog.at_level("INFO"):
        trainer(callback, tmp_path).fit(task, loader())
    assert "search.multiple_of: {'head_dim': 2, 'neuron': 8} is too coarse for search.tolerance 0.005;" in caplog.text
    cost = CostModel(sites, measure(task.model, sites, example_inputs(task.model)))
    removed = cost.removed(Plan.load(tmp_path / "plan.json").kept(), "params") / cost.prunable("params")
    assert removed == pytest.approx(0.37, rel=0.005)


def test_without_multiples_there_is_no_alignment(tmp_path: Path) -> None:
    task, callback = Regression(), search()
    bound(callback, task, tmp_path / "plan.json")
    trainer(callback, tmp_path).fit(task, loader())
    assert not {"multiple_of", "alignment", "latency"} & set(Plan.load(tmp_path / "plan.json").facts)


def table_of(sites: list[Site]) -> LatencyTable:
    """A microsecond for each unit of a head-dim site, a hundred nanoseconds for each neuron."""
    curves = [
        Curve(((1, one.units),), np.array([1.0, one.units]) * (1000 if one.kind == "head_dim" else 100))
        for one in sites
    ]
    blocks, axes = {one.block: number for number, one in enumerate(sites)}, {one.block: (one.name,) for one in sites}
    return LatencyTable({"device": "abacus"}, 10**6, 1.0, tuple(curves), blocks, axes)


def test_a_budget_of_latency_is_met_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, callback = Regression(), search(of="latency", removed=0.4)
    sites = find_sites(task.model, callback.units)
    cost = CostModel(sites, measure(task.model, sites, example_inputs(task.model)), table_of(sites))
    callback.bind(sites, cost, tmp_path / "plan.json")
    with caplog.at_level("INFO"):
        trainer(callback, tmp_path).fit(task, loader())
    plan = Plan.load(tmp_path / "plan.json")
    gone = {one.name: one.units - plan.kept()[one.name] for one in sites}
    removed = sum(count * (1000 if "head_dim" in name else 100) for name, count in gone.items())
    assert removed == pytest.approx(0.4 * 2 * (7 * 1000 + 47 * 100), rel=0.05)
    assert plan.facts["latency"] == {"dense": 10**6, "left": 10**6 - removed}
    assert callback.history[-1]["removed/latency"] == pytest.approx(removed / (2 * (7000 + 4700)))
    assert "of the prunable latency go" in caplog.text


def test_other_ranks_select_by_the_table_of_rank_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, callback = Regression(), search(of="latency", removed=0.4, multiple_of="auto")
    sites = find_sites(task.model, callback.units)
    cost = CostModel(sites, measure(task.model, sites, example_inputs(task.model)))
    with pytest.raises(ValueError, match="the latency of this model was not measured"):
        callback.bind(sites, cost, tmp_path / "plan.json")
    with monkeypatch.context() as patched:
        patched.setattr(rank_zero_only, "rank", 1)
        callback.bind(sites, cost, tmp_path / "plan.json")
    assert callback.budget.multiple_of == {}
    running = trainer(callback, tmp_path)
    asked = []
    shared = table_of(sites).to_dict()
    monkeypatch.setattr(running.strategy, "broadcast", lambda own, src=0: asked.append(own) or shared)
    callback.setup(running, task, "fit")
    assert asked == [None]
    assert callback.target.cost.latency is not None
    assert callback.target.cost.latency.to_dict() == shared
    assert callback.budget.multiple_of, "chosen by the same numbers as on rank 0"
    callback.teardown(running, task, "fit")


def test_messages() -> None:
    with pytest.raises(
        ValueError, match=r"search.multiple_of is 'sometimes'; give 'auto', or a multiple by kind, such as {head_dim: 8"
    ):
        ProgressiveSearch(multiple_of="sometimes")
    with pytest.raises(ValueError, match=r"search.of is 'time'; choose one of \['flops', 'latency', 'params'\]"):
        ProgressiveSearch(of="time")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"search.interval is 0; give the optimizer steps " "between two updates, 1 or more"
    ):
        ProgressiveSearch(interval=0)
    with pytest.raises(ValueError, match=r"search.settle is 0.0; it is a fraction of the search, above 0 "):
        ProgressiveSearch(settle=0.0)
    with pytest.raises(ValueError, match=r"search.removed is 1.3; it is the fraction to remove, between 0 and 1"):
        ProgressiveSearch(removed=1.3)
    with pytest.raises(ValueError, match=r"did you mean 'taylor'"):
        ProgressiveSearch(policy="tailor")
    with pytest.raises(ValueError, match=r"did you mean 'cubic'"):
        ProgressiveSearch(schedule="cubik")  # type: ignore[arg-type]


def test_search_without_sites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the search knows no sites; call bind"):
        trainer(search(), tmp_path).fit(Regression(), loader())


def test_one_step_is_no_search(tmp_path: Path) -> None:
    task, callback = Regression(), search()
    bound(callback, task, tmp_path / "plan.json")
    with pytest.raises(ValueError, match="the search has 1 optimizer steps; give it more epochs or smaller batches"):
        trainer(callback, tmp_path, max_epochs=1).fit(task, loader(ROWS))


def test_nn_modules_stay_out_of_the_state(tmp_path: Path) -> None:
    task, callback = Regression(), search()
    bound(callback, task, tmp_path / "plan.json")
    run = trainer(callback, tmp_path)
    run.callbacks.append(Saver(tmp_path / "half.ckpt"))
    run.fit(task, loader())
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert not any(isinstance(value, nn.Module) for value in state["callbacks"].values())
    assert any("ProgressiveSearch" in key for key in state["callbacks"])
