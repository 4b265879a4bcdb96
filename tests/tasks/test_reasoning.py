"""The visual reasoning task against loops over its model, and both official scores counted by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests import tiny
from tests.plans import random_plan
from tests.tasks.running import LossAtTheEnd, trainer
from upop.callbacks import ProgressiveSearch
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites
from upop.masks import Masks, mask_values
from upop.surgery import shrink_
from upop.tasks import Distillation, Training, VisualReasoning

PAIRS = 8


@dataclass(frozen=True)
class Pair:
    identifier: str
    label: bool
    group: str


class Data(LightningDataModule):
    """Random pairs with statements of several lengths; two steps to train on, eight to judge."""

    def __init__(self, batch_size: int = 6) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.batches = [batch(seed=seed) for seed in (1, 2)]
        self.judged = batch(PAIRS, seed=3) | {"index": torch.arange(PAIRS)}

    def train_dataloader(self) -> DataLoader:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        mine = slice(rank * self.batch_size, (rank + 1) * self.batch_size)
        rows = [{name: value[mine] for name, value in given.items()} for given in self.batches]
        return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        """Three batches in no order; of two ranks the first has five pairs and the second three."""
        parts = [torch.tensor(rows) for rows in ([7, 2], [1, 0, 4], [3, 6, 5])]
        if torch.distributed.is_initialized():
            parts = parts[2:] if torch.distributed.get_rank() else parts[:2]
        rows = [{name: value[part] for name, value in self.judged.items()} for part in parts]
        return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader

    def pairs(self, split: str) -> list[Pair]:
        """Two pairs to a statement; the labels are the images' own, and all wrong in validation."""
        labels = [bool(label) == (split == "test") for label in self.judged["labels"]]
        return [Pair(f"test1-{i // 2}-{i % 2}-0", label, f"statement {i // 2}") for i, label in enumerate(labels)]


def batch(rows: int = 6, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 11, (rows,), generator=generator)
    mask = (torch.arange(10) < lengths[:, None]).long()
    return {
        "pixel_values": torch.randn(rows, 2, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(2, 50, (rows, 10), generator=generator) * mask + 1 - mask,
        "attention_mask": mask,
        "labels": torch.randint(0, 2, (rows,), generator=generator),
    }


def task(seed: int = 0, **arguments: Any) -> VisualReasoning:
    made = VisualReasoning("unused", **arguments)
    made.adopt(tiny.build("blip_nlvr", seed=seed), None)
    made.training_settings = Training(epochs=1, lr=1e-3)
    return made


def alone(model: Any, given: dict[str, Tensor], row: int) -> Tensor:
    """Logits of one sample without padding."""
    length = int(given["attention_mask"][row].sum())
    images = given["pixel_values"][row : row + 1]
    return model(pixel_values=images, input_ids=given["input_ids"][row : row + 1, :length]).logits[0]


def test_the_loss_equals_a_loop_over_pairs() -> None:
    made, given = task(), batch()
    made.eval()
    with torch.no_grad():
        terms = [-alone(made.model, given, row).log_softmax(0)[label] for row, label in enumerate(given["labels"])]
        torch.testing.assert_close(made.loss(given), torch.stack(terms).mean())


def test_both_scores_and_the_file_are_as_counted_by_hand(tmp_path: Path) -> None:
    made, data = task(result_file=str(tmp_path / "out" / "predictions.csv")), Data()
    found = trainer(tmp_path).test(made, datamodule=data, verbose=False)[0]
    made.eval()
    with torch.no_grad():
        judged = [bool(alone(made.model, data.judged, row).argmax()) for row in range(PAIRS)]
    right = [judged[row] == bool(data.judged["labels"][row]) for row in range(PAIRS)]
    assert 0 < sum(right) < PAIRS
    consistent = [right[row] and right[row + 1] for row in range(0, PAIRS, 2)]
    expected = {"accuracy": 100 * sum(right) / PAIRS, "consistency": 100 * sum(consistent) / 4}
    assert found == pytest.approx({f"test/{name}": value for name, value in expected.items()})
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert lines == [f"test1-{row // 2}-{row % 2}-0,{judged[row]}" for row in range(PAIRS)]


def test_validation_scores_its_own_split_and_writes_nothing(tmp_path: Path) -> None:
    made, data = task(result_file=str(tmp_path / "predictions.csv")), Data()
    run = trainer(tmp_path, limit_val_batches=1.0)
    validated = run.validate(made, datamodule=data, verbose=False)[0]
    assert not (tmp_path / "predictions.csv").exists()
    tested = trainer(tmp_path).test(made, datamodule=data, verbose=False)[0]
    assert validated["val/accuracy"] == pytest.approx(100 - tested["test/accuracy"])


def test_half_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 of 8 pairs have no result, the first ones \[3, 5, 6\]"):
        trainer(tmp_path, limit_test_batches=2).test(task(), datamodule=Data(), verbose=False)


@pytest.mark.parametrize("kinds", [("head_dim", "neuron"), ("head",), ("head", "head_dim", "neuron")])
def test_masked_and_cut_have_one_loss(kinds: tuple[Any, ...]) -> None:
    made, given = task(), batch()
    made.eval()
    sites = find_sites(made.model, kinds)
    plan = random_plan(sites, seed=3)
    masks = Masks(made.model, sites)
    with torch.no_grad():
        dense = made.loss(given)
        masks.write_(mask_values(sites, plan))
        loss = made.loss(given)
        masks.detach()
        shrink_(made.model, sites, plan)
        torch.testing.assert_close(made.loss(given), loss, rtol=1e-5, atol=1e-5)
    assert abs(float(dense - loss)) > 1e-3


def test_retraining_starts_at_the_loss_that_the_search_ended_with(tmp_path: Path) -> None:
    made, at_end = task(), LossAtTheEnd(batch(seed=9))
    made.learn_from(tiny.build("blip_nlvr"), Distillation(1.0, 1.0))
    search = ProgressiveSearch(removed=0.5, interval=2, tolerance=0.05)
    sites = find_sites(made.model, search.units)
    search.bind(sites, CostModel(sites, measure(made.model, sites, example_inputs(made.model))), tmp_path / "plan.json")
    trainer(tmp_path, search, at_end, max_epochs=2).fit(made, datamodule=Data())
    assert search.finished
    assert search.plan is not None
    shrink_(made.model, sites, search.plan)
    retrained = VisualReasoning("unused")
    retrained.adopt(made.model, None)
    retrained.eval()
    with torch.no_grad():
        torch.testing.assert_close(retrained.loss(at_end.given), at_end.loss, rtol=1e-5, atol=1e-5)


class Gradients(Callback):
    """Names of parameters that train but got no gradient."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        trained = {name: p.grad is not None for name, p in pl_module.named_parameters() if p.requires_grad}
        self.without = [name for name, has in trained.items() if not has]
        self.count = len(trained)


def test_everything_that_trains_gets_a_gradient(tmp_path: Path) -> None:
    gradients = Gradients()
    made = task()
    trainer(tmp_path, gradients, max_steps=1).fit(made, datamodule=Data())
    assert gradients.without == []
    assert gradients.count == len(list(made.model.parameters())) > 90


class Still(Callback):
    """Trains in evaluation mode, without dropout and dropped paths."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.model.eval()


def first_loss(path: Path, made: VisualReasoning, distillation: Distillation) -> float:
    made = copy.deepcopy(made)
    made.learn_from(tiny.build("blip_nlvr", seed=1), distillation)
    run = trainer(path, Still(), max_steps=1)
    run.fit(made, datamodule=Data())
    return float(run.callback_metrics["loss"])


def test_distillation_adds_the_divergence_of_the_two_classes(tmp_path: Path) -> None:
    made, given, teacher = task(), Data().batches[0], tiny.build("blip_nlvr", seed=1)
    made.eval()
    with torch.no_grad():
        terms = []
        for row in range(6):
            ours, theirs = (alone(model, given, row).double().log_softmax(0) for model in (made.model, teacher))
            terms.append((theirs.exp() * (theirs - ours)).sum())
        expected = float(made.loss(given) + 2.0 * torch.stack(terms).mean())
    assert first_loss(tmp_path, made, Distillation(logits=2.0)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def distance_of_states(model: Any, teacher: Any, given: dict[str, Tensor]) -> Tensor:
    """Mean over both models' blocks of the squared distance of their normalised outputs, padding left out."""
    inputs = {name: given[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    blocks = []
    for network in (model, teacher):
        states: list[Tensor] = []
        layers = [*network.visual_encoder.blocks, *network.text_encoder.encoder.layer]
        hooks = [layer.register_forward_hook(lambda _, __, out, states=states: states.append(out)) for layer in layers]
        network(**inputs)
        for hook in hooks:
            hook.remove()
        blocks.append(states)
    distances = []
    for ours, theirs in zip(*blocks, strict=True):
        distance = 2 - 2 * nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=2)
        text = distance.shape == given["attention_mask"].shape
        distances.append((distance[given["attention_mask"].bool()] if text else distance).mean())
    assert len(distances) == 5
    return torch.stack(distances).mean()


def test_distillation_adds_the_distance_of_hidden_states_without_padding(tmp_path: Path) -> None:
    made, given, teacher = task(), Data().batches[0], tiny.build("blip_nlvr", seed=1)
    made.eval()
    expected = float(made.loss(given).detach() + 3.0 * distance_of_states(made.model, teacher, given))
    assert first_loss(tmp_path, made, Distillation(features=3.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_two_ranks_train_and_score_as_one(tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        made = task()
        strategy = "ddp_spawn" if ranks == 2 else "auto"
        run = trainer(tmp_path, Still(), devices=ranks, strategy=strategy, limit_val_batches=1.0)
        run.fit(made, datamodule=Data(6 // ranks))
        scores = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}
        found.append((made.model.state_dict(), scores))
    assert found[0][1] == found[1][1]
    assert set(found[0][1]) == {"val/accuracy", "val/consistency"}
    for name, value in found[0][0].items():
        if not name.endswith(("key.bias", "qkv.bias")):  # softmax cancels keys': rounding, which Adam blows up
            torch.testing.assert_close(found[1][0][name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_messages() -> None:
    with pytest.raises(
        ValueError, match="BertModel does not judge statements about two images; visual reasoning takes"
    ):
        VisualReasoning("x").adopt(tiny.build("bert"), None)
