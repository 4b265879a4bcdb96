"""Re-ranked retrieval: losses against plain loops, evaluation against the authors' one, phases, ranks and resuming."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests import tiny
from tests.plans import random_plan
from tests.tasks.running import Numbers, Processor, trainer
from upop.callbacks import ProgressiveSearch, RandomState
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites
from upop.masks import Masks, mask_values
from upop.metrics import retrieval_recalls
from upop.surgery import shrink_
from upop.tasks import Distillation, RerankedRetrieval, Retrieval, Training, reranked

IMAGES, TEXTS = 14, 30
ENC = 49


@dataclass(frozen=True)
class Tokenizer:
    words: tuple[tuple[str, int], ...]

    def get_vocab(self) -> dict[str, int]:
        return dict(self.words)


PLAIN, SALESFORCE = Processor(Tokenizer((("cat", 7),))), Processor(Tokenizer((("cat", 7), ("[ENC]", ENC))))


class Rows(Dataset):
    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()} | {"index": torch.tensor(row)}


@dataclass(frozen=True)
class Gallery:
    captions: list[tuple[str, ...]]


class Data(LightningDataModule):
    """Random pictures with one to three random texts each; two batches of six pairs, of which two show one picture."""

    def __init__(self, batch_size: int = 6, folds: int = 1) -> None:
        super().__init__()
        self.batch_size, self.folds = batch_size, folds
        generator = torch.Generator().manual_seed(5)
        self.images = torch.randn(IMAGES, 3, 16, 16, generator=generator)
        self.owner = torch.cat([torch.arange(IMAGES), torch.arange(IMAGES), torch.tensor([3, 11])])
        self.ids = torch.randint(2, 49, (TEXTS, 10), generator=generator)
        lengths = torch.randint(4, 11, (TEXTS, 1), generator=generator)
        self.mask = (torch.arange(10) < lengths).long()
        self.ids = self.ids * self.mask + (1 - self.mask)

    def gallery(self, split: str) -> Gallery:
        counts = torch.bincount(self.owner).tolist()
        return Gallery([("a text",) * count for count in counts])

    def batch(self, texts: list[int]) -> dict[str, Tensor]:
        """A training batch, no wider than its longest text."""
        mask = self.mask[texts]
        width = int(mask.sum(1).max())
        owner = self.owner[texts]
        return {
            "pixel_values": self.images[owner], "input_ids": self.ids[texts, :width], "attention_mask": mask[:, :width],
            "image_index": owner,
        }  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        mine = slice(rank * self.batch_size, (rank + 1) * self.batch_size)
        batches = [[0, 1, 2, 3, 4, 28], [15, 5, 20, 7, 8, 24]]
        assert self.owner[batches[0]].tolist().count(3) == 2
        rows: Any = [self.batch(texts[mine]) for texts in batches]
        return DataLoader(rows, batch_size=None, generator=torch.Generator())  # draws nothing that dropout would miss

    def val_dataloader(self) -> list[DataLoader]:
        texts = Rows(input_ids=self.ids, attention_mask=self.mask, image_index=self.owner)
        return [
            DataLoader(Rows(pixel_values=self.images), batch_size=4, sampler=Numbers(IMAGES)),
            DataLoader(texts, batch_size=7, sampler=Numbers(TEXTS)),
        ]

    test_dataloader = val_dataloader


def new_task(model: nn.Module | None = None, processor: Any = PLAIN, seed: int = 0, **arguments: Any) -> Any:
    """A task with a tiny BLIP; the seed is that of the queue."""
    torch.manual_seed(seed)
    made = RerankedRetrieval("unused", **({"k": 10, "eval_pairs": 16, "queue_size": 9, "momentum": 0.9} | arguments))
    made.adopt(model or tiny.build("blip_retrieval"), processor)
    made.training_settings = Training(epochs=1, lr=1e-3)
    return made


def evaluated(path: Path, task: Any, data: Data | None = None) -> dict[str, float]:
    task.eval()
    found = trainer(path).test(task, datamodule=data or Data(), verbose=False)
    return {name.removeprefix("test/"): value for result in found for name, value in result.items()}


def attached(path: Path, task: Any) -> Any:
    """The task with a Trainer, in evaluation mode."""
    task.trainer = trainer(path)
    return task.eval()


# losses


def matching_by_loop(model: Any, batch: dict[str, Tensor], pairs: Any) -> float:
    """Cross-entropy pair by pair, in Hugging Face's forward, over three forward passes per sample."""
    terms = []
    for image, ids, mask, label in zip(pairs.image, pairs.input_ids, pairs.attention_mask, pairs.labels, strict=True):
        length = int(mask.sum())
        logits = model(pixel_values=batch["pixel_values"][image][None], input_ids=ids[None, :length]).itm_score
        terms.append(float(F.cross_entropy(logits, label[None])) if label >= 0 else 0.0)
    return float(np.mean(terms))


@pytest.mark.parametrize("processor", [PLAIN, SALESFORCE])
def test_the_matching_loss_equals_a_loop_over_pairs(tmp_path: Path, processor: Processor) -> None:
    made, batch = attached(tmp_path, new_task(processor=processor)), Data().batch([0, 1, 2, 3, 4, 28])
    seen: list[Any] = []
    inner = made._pairs
    made._pairs = lambda *given: seen.append(inner(*given)) or seen[0]
    with torch.no_grad():
        found = made.losses(batch)
        assert float(found["matching"]) == pytest.approx(matching_by_loop(made.model, batch, seen[0]), rel=1e-4)
    pairs, first = seen[0], batch["input_ids"][:, 0]
    assert pairs.labels.tolist() == [1] * 6 + [0] * 12
    owner = batch["image_index"]
    assert (owner[pairs.image[6:12]] != owner).all(), "negative images"
    if processor is SALESFORCE:
        assert (pairs.input_ids[:, 0] == ENC).all()
        assert torch.equal(batch["input_ids"][:, 0], first), "the batch stays as it is"
        assert (first != ENC).all()
    else:
        assert torch.equal(pairs.input_ids[:6, 0], first)


def test_contrast_is_by_the_temperature_and_does_not_see_the_first_token(tmp_path: Path) -> None:
    batch = Data().batch([0, 1, 2, 4, 5, 6])
    found = [
        attached(tmp_path, new_task(processor=processor, temperature=0.2)).losses(batch)["contrast"].item()
        for processor in (PLAIN, SALESFORCE)
    ]
    model = tiny.build("blip_retrieval")
    with torch.no_grad():
        logits = model(
            pixel_values=batch["pixel_values"], input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
            use_itm_head=False,
        ).itm_score / 0.2  # fmt: skip
    row = torch.arange(6)
    expected = 0.5 * (F.cross_entropy(logits, row) + F.cross_entropy(logits.t(), row))
    assert found == pytest.approx([expected.item()] * 2, rel=1e-4)


def test_drawn_negatives_follow_from_seed_step_and_batch(tmp_path: Path) -> None:
    made, batch = attached(tmp_path, new_task()), Data().batch(list(range(14)))

    def drawn(batch_idx: int) -> list[int]:
        torch.rand(3)  # whatever else draws
        with torch.no_grad():
            images, texts = made.features(made.model, batch)
        return made._pairs(images, texts, batch, batch_idx).image.tolist()

    first = drawn(0)
    assert drawn(0) == first
    assert drawn(1) != first
    made._seed = 9
    assert drawn(0) != first


@pytest.mark.parametrize("contrast", ["batch", "queue"])
def test_a_batch_of_one_picture_trains(tmp_path: Path, contrast: str) -> None:
    made, data = new_task(contrast=contrast), Data()
    data.train_dataloader = lambda: DataLoader([data.batch([3, 17, 28])], batch_size=None)  # type: ignore[arg-type, method-assign]
    run = trainer(tmp_path)
    run.fit(made, datamodule=data)
    assert run.callback_metrics["loss"].isfinite()
    assert all(parameter.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize("contrast", ["batch", "queue"])
def test_training_lowers_the_loss(tmp_path: Path, contrast: str) -> None:
    made = new_task(contrast=contrast, queue_size=12)
    made.training_settings = Training(epochs=40, lr=2e-3, lr_schedule="constant")
    losses: list[tuple[float, float]] = []

    class Note(Callback):
        def on_train_batch_end(self, run: Trainer, *_: Any) -> None:
            losses.append(tuple(float(run.callback_metrics[f"loss/{name}"]) for name in ("contrast", "matching")))  # type: ignore[arg-type]

    trainer(tmp_path, Note(), max_epochs=40).fit(made, datamodule=Data())
    first, last = np.array(losses[:4]).mean(0), np.array(losses[-4:]).mean(0)
    assert (last < 0.7 * first).all(), (first, last)
    assert float(made.temp.detach()) != pytest.approx(0.07)


def test_the_temperature_stays_in_its_bounds(tmp_path: Path) -> None:
    made = new_task()
    made.temp.data.fill_(7.0)
    trainer(tmp_path, max_steps=1).fit(made, datamodule=Data())
    assert float(made.temp.detach()) == pytest.approx(0.5, abs=2e-3), "one step from its bound"


class Gradients(Callback):
    """Names of parameters that train, with and without a gradient."""

    def on_after_backward(self, run: Trainer, pl_module: Any) -> None:
        trained = {name: p.grad is not None for name, p in pl_module.named_parameters() if p.requires_grad}
        self.without = [name for name, has in trained.items() if not has]
        self.names = set(trained)


@pytest.mark.parametrize("contrast", ["batch", "queue"])
def test_everything_that_trains_gets_a_gradient(tmp_path: Path, contrast: str) -> None:
    gradients = Gradients()
    trainer(tmp_path, gradients, max_steps=1).fit(new_task(contrast=contrast), datamodule=Data())
    assert gradients.without == []
    assert {"temp", "model.itm_head.weight", "model.text_proj.bias"} <= gradients.names


# distillation


def test_distillation_of_an_equal_student_adds_nothing(tmp_path: Path) -> None:
    made = new_task()
    made.learn_from(tiny.build("blip_retrieval"), Distillation(1.0, 1.0))
    parts = attached(tmp_path, made).losses(Data().batch([0, 1, 2, 3, 4, 28]))
    assert float(parts["distillation"].detach()) == pytest.approx(0.0, abs=1e-5)


def kl(ours: Tensor, theirs: Tensor) -> Tensor:
    p, q = ours.double().log_softmax(1), theirs.double().log_softmax(1)
    return (q.exp() * (q - p)).sum(1).mean()


@torch.no_grad()
def test_distillation_is_of_similarities_and_matching_and_of_features_and_blocks(tmp_path: Path) -> None:
    made, batch = attached(tmp_path, new_task()), Data().batch([0, 1, 2, 4, 5, 6])
    teacher = tiny.build("blip_retrieval", seed=1)
    pairs = made._pairs(*made.features(made.model, batch), batch, 0)
    matching, features, blocks = [], [], []
    for model in (made.model, teacher):
        hidden: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _, __, out, hidden=hidden: hidden.append(out))
            for layer in (*model.vision_model.encoder.layers, *model.text_encoder.encoder.layer)
        ]
        states = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
        output = model.text_encoder(
            input_ids=pairs.input_ids, attention_mask=pairs.attention_mask, encoder_hidden_states=states[pairs.image]
        )
        for hook in hooks:
            hook.remove()
        blocks.append(hidden)
        matching.append(model.itm_head(output.last_hidden_state[:, 0]))
        features.append(made.features(model, batch))
    (images, texts), (their_images, their_texts) = features
    ours, theirs = images @ texts.t() / 0.07, their_images @ their_texts.t() / 0.07
    logits = 0.5 * (kl(ours, theirs) + kl(ours.t(), theirs.t())) + kl(*matching)
    made.learn_from(teacher, Distillation(logits=2.0))
    assert float(made.losses(batch)["distillation"]) == pytest.approx(2.0 * float(logits), rel=1e-4)

    distance = 0.5 * ((images - their_images).square().sum(1) + (texts - their_texts).square().sum(1)).mean()
    distances = []
    for ours, theirs in zip(*blocks, strict=True):
        apart = 2 - 2 * F.cosine_similarity(ours.double(), theirs.double(), dim=2)
        distances.append((apart[pairs.attention_mask.bool()] if len(apart) == 18 else apart).mean())
    assert len(distances) == 5
    made.learn_from(teacher, Distillation(features=3.0))
    expected = 3.0 * float(distance + torch.stack(distances).mean())
    assert float(made.losses(batch)["distillation"]) == pytest.approx(expected, rel=1e-4)


def test_distillation_does_not_train_the_temperature(tmp_path: Path) -> None:
    made = new_task()
    made.learn_from(tiny.build("blip_retrieval", seed=1), Distillation(1.0, 1.0))
    attached(tmp_path, made).losses(Data().batch([0, 1, 2, 4]))["distillation"].backward()
    assert made.temp.grad is None
    assert made.model.itm_head.weight.grad is not None


# evaluation


@torch.no_grad()
def authors_evaluation(model: Any, data: Data, k: int, first: int | None = None) -> dict[str, Any]:
    """BLIP's own: row by row, the k most similar get matching logit plus similarity, all others -100."""
    images = F.normalize(model.vision_proj(model.vision_model(data.images).last_hidden_state[:, 0]), dim=-1)
    texts = model.text_encoder(input_ids=data.ids, attention_mask=data.mask).last_hidden_state[:, 0]
    similarity = images @ F.normalize(model.text_proj(texts), dim=-1).t()
    ids = data.ids.clone()
    if first is not None:
        ids[:, 0] = first

    def matching(image: int, text: int) -> Tensor:
        return model(
            pixel_values=data.images[image][None], input_ids=ids[text][None], attention_mask=data.mask[text][None]
        ).itm_score[0, 1]

    i2t, t2i = torch.full((IMAGES, TEXTS), -100.0), torch.full((TEXTS, IMAGES), -100.0)
    for image in range(IMAGES):
        for text in similarity[image].topk(k).indices.tolist():
            i2t[image, text] = matching(image, text) + similarity[image, text]
    for text in range(TEXTS):
        for image in similarity[:, text].topk(k).indices.tolist():
            t2i[text, image] = matching(image, text) + similarity[image, text]
    found: dict[str, float] = {}
    best = [
        [int((row > row[data.owner == image].max()).sum()) for image, row in enumerate(i2t)],
        [int((row > row[data.owner[text]]).sum()) for text, row in enumerate(t2i)],
    ]
    for way, ranks in zip(("i2t", "t2i"), best, strict=True):
        found |= {f"{way}_r{at}": 100 * float(np.mean(np.array(ranks) < at)) for at in (1, 5, 10)}
    return {"recalls": found, "i2t": i2t, "t2i": t2i}


@pytest.mark.parametrize(("k", "eval_pairs", "processor"), [(10, 16, PLAIN), (12, 1000, SALESFORCE), (14, 3, PLAIN)])
def test_evaluation_equals_the_authors_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int, eval_pairs: int, processor: Processor
) -> None:
    given: list[tuple[Tensor, ...]] = []
    inner = reranked.reranked_recalls
    monkeypatch.setattr(reranked, "reranked_recalls", lambda *all_of: given.append(all_of) or inner(*all_of))
    made, data = new_task(processor=processor, k=k, eval_pairs=eval_pairs), Data()
    found = evaluated(tmp_path, made, data)
    expected = authors_evaluation(made.model, data, k, ENC if processor is SALESFORCE else None)
    for way, numbers, scores in (("i2t", *given[0][:2]), ("t2i", *given[0][2:4])):
        whole = torch.full_like(expected[way], -100.0).scatter(1, numbers, scores)
        torch.testing.assert_close(whole, expected[way], rtol=1e-5, atol=1e-5)
    for name, value in expected["recalls"].items():
        assert found[name] == pytest.approx(value), name
    assert found["i2t_mean"] == pytest.approx(np.mean([expected["recalls"][f"i2t_r{at}"] for at in (1, 5, 10)]))


def test_recalls_by_similarity_alone_stand_beside(tmp_path: Path) -> None:
    made, data = new_task(), Data()
    found = evaluated(tmp_path, made, data)
    with torch.no_grad():
        whole = {"pixel_values": data.images, "input_ids": data.ids, "attention_mask": data.mask}
        expected = retrieval_recalls(*made.features(made.model, whole), data.owner)
    assert {name: found[f"itc_{name}"] for name in expected} == pytest.approx(expected)
    assert set(found) == set(expected) | {f"itc_{name}" for name in expected}
    assert any(found[name] != found[f"itc_{name}"] for name in expected)


def test_folds_are_galleries_of_their_own(tmp_path: Path) -> None:
    found = evaluated(tmp_path, new_task(k=7), Data(folds=2))
    halves = []
    for half in (range(7), range(7, 14)):
        data = Data()
        chosen = torch.nonzero((data.owner >= half[0]) & (data.owner <= half[-1])).flatten()
        data.images, data.owner = data.images[list(half)], data.owner[chosen] - half[0]
        data.ids, data.mask = data.ids[chosen], data.mask[chosen]
        data.val_dataloader = data.test_dataloader = lambda data=data: [  # type: ignore[method-assign, misc]
            DataLoader(Rows(pixel_values=data.images), batch_size=4),
            DataLoader(Rows(input_ids=data.ids, attention_mask=data.mask, image_index=data.owner), batch_size=7),
        ]
        halves.append(evaluated(tmp_path, new_task(k=7), data))
    for name, value in found.items():
        assert value == pytest.approx((halves[0][name] + halves[1][name]) / 2), name


def test_states_in_half_precision_hardly_move_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Tensor, ...]] = []
    inner = reranked.reranked_recalls
    monkeypatch.setattr(reranked, "reranked_recalls", lambda *all_of: given.append(all_of) or inner(*all_of))
    for half in (False, True):
        evaluated(tmp_path, new_task(half_states=half))
    torch.testing.assert_close(given[0][1], given[1][1], rtol=0, atol=2e-2)
    assert not torch.equal(given[0][1], given[1][1])


@pytest.mark.parametrize("kinds", [("head_dim", "neuron"), ("head",)])
def test_recalls_and_losses_are_the_same_before_and_after_the_cut(tmp_path: Path, kinds: tuple[Any, ...]) -> None:
    made, batch = new_task(), Data().batch([0, 1, 2, 3, 4, 28])
    dense = evaluated(tmp_path, made)
    sites = find_sites(made.model, kinds)
    plan = random_plan(sites, seed=3)
    masks = Masks(made.model, sites)
    masks.write_(mask_values(sites, plan))
    before = evaluated(tmp_path, made)
    with torch.no_grad():
        losses = attached(tmp_path, made).losses(batch)
    masks.detach()
    shrink_(made.model, sites, plan)
    assert evaluated(tmp_path, made) == before != dense
    with torch.no_grad():
        torch.testing.assert_close(attached(tmp_path, made).losses(batch), losses, rtol=1e-5, atol=1e-5)


# phases


class LossAtTheEnd(Callback):
    """The losses of a batch in evaluation mode when the search ends, its masks still on."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch
        self.found: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_train_end(self, run: Trainer, pl_module: Any) -> None:
        self.found = losses_without_trace(pl_module, self.batch)


@torch.no_grad()
def losses_without_trace(task: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses in evaluation mode by the negatives of seed 0; momentum encoders and queue stay as they are."""
    kept = {name: value.clone() for name, value in task.carried().items()}
    training, momentum, task.momentum, task._seed = task.training, task.momentum, 1.0, 0
    task.eval()
    found = task.losses(batch, batch_idx=0)
    task.train(training)
    task.momentum = momentum
    task.carry(kept)
    return found


@pytest.mark.parametrize("contrast", ["batch", "queue"])
def test_retraining_starts_at_the_loss_that_the_search_ended_with(tmp_path: Path, contrast: str) -> None:
    made, batch = new_task(contrast=contrast), Data().batch([0, 1, 2, 3, 4, 28])
    made.learn_from(tiny.build("blip_retrieval"), Distillation(1.0, 1.0))
    at_end = LossAtTheEnd(batch)
    search = ProgressiveSearch(removed=0.5, interval=2, tolerance=0.05)
    sites = find_sites(made.model, search.units)
    search.bind(sites, CostModel(sites, measure(made.model, sites, example_inputs(made.model))), tmp_path / "plan.json")
    made.training_settings = Training(epochs=2, lr=1e-3)
    trainer(tmp_path, search, at_end, max_epochs=2).fit(made, datamodule=Data())
    assert search.finished
    assert search.plan is not None
    for module in made.pruned_modules():
        shrink_(module, sites, search.plan)
    retrained = new_task(made.model, contrast=contrast)
    retrained.training_settings = made.training_settings
    retrained.carry({name: value.clone() for name, value in made.carried().items()})
    retrained.learn_from(made.teacher, made.distillation)
    retrained.trainer = made.trainer
    found = losses_without_trace(retrained, batch)
    assert set(found) == {"contrast", "matching", "distillation"}
    for name, value in found.items():
        if (name, contrast) != ("contrast", "queue"):  # momentum encoders are dense until they are cut
            torch.testing.assert_close(value, at_end.found[name], rtol=1e-4, atol=1e-5)


def test_the_temperature_is_carried_and_not_exported() -> None:
    for contrast in ("batch", "queue"):
        made, after = new_task(contrast=contrast), new_task(contrast=contrast, seed=1)
        made.temp.data.fill_(0.123)
        after.carry({name: value.detach().clone() for name, value in made.carried().items()})
        assert float(after.temp.detach()) == pytest.approx(0.123)
        assert after.temp.requires_grad
        for name, value in made.carried().items():
            assert torch.equal(value, after.carried()[name]), name
        assert not any("temp" in name for name in made.model.state_dict())
        assert "temp" in made.state_dict()


def test_momentum_encoders_are_cut_too_and_never_trained() -> None:
    made = new_task(contrast="queue")
    assert made.pruned_modules() == [made.model, made.momentum_model]
    assert not any(parameter.requires_grad for parameter in made.momentum_model.parameters())
    assert new_task().pruned_modules()[1:] == []


class SaveAfterFirstEpoch(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, run: Trainer, pl_module: Any) -> None:
        if run.current_epoch == 0:
            run.save_checkpoint(self.path)


@pytest.mark.parametrize("negatives", ["batch", "all_ranks"])
def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path: Path, negatives: Any) -> None:
    states = []
    for resume in (None, tmp_path / "half.ckpt"):
        seed_everything(3, verbose=False)
        made = new_task(contrast="queue", negatives=negatives)
        for module in made.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1  # it draws, too
        made.training_settings = Training(epochs=2, lr=1e-3)
        callbacks: list[Callback] = [RandomState()]
        if resume is None:
            callbacks.append(SaveAfterFirstEpoch(tmp_path / "half.ckpt"))
        seed_everything(3, verbose=False)
        run = trainer(tmp_path, *callbacks, max_epochs=2)
        run.fit(made, datamodule=Data(), ckpt_path=resume, weights_only=False if resume else None)
        assert run.global_step == 4
        states.append(made.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


class SaveGradients(Callback):
    """Keeps the gradients of each step, averaged over the ranks: Adam would hide a wrong factor on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_before_optimizer_step(self, run: Trainer, pl_module: Any, optimizer: Any) -> None:
        if run.is_global_zero:
            found = {name: p.grad for name, p in pl_module.named_parameters() if p.requires_grad}
            torch.save(found, self.folder / f"{run.world_size}_{run.global_step}.pt")


@pytest.mark.slow
def test_two_ranks_train_and_evaluate_as_one(tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        seed_everything(1, verbose=False)
        made = new_task(contrast="queue", negatives="all_ranks", processor=SALESFORCE)
        # logits only: hidden states are averaged over the tokens of a rank, of which ranks have different numbers
        made.learn_from(tiny.build("blip_retrieval", seed=1), Distillation(1.0, 0.0))
        strategy = "ddp_spawn" if ranks == 2 else "auto"
        run = trainer(tmp_path, SaveGradients(tmp_path), devices=ranks, strategy=strategy, limit_val_batches=1.0)
        run.fit(made, datamodule=Data(6 // ranks))
        recalls = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}
        found.append((made.state_dict(), recalls))
    assert found[0][1] == pytest.approx(found[1][1])
    assert len(found[0][1]) == 20
    for step in (0, 1):
        one, two = (torch.load(tmp_path / f"{ranks}_{step}.pt") for ranks in (1, 2))
        close(two, one, rtol=1e-3, atol=1e-5 if step == 0 else 1e-3)
    close(found[1][0], found[0][0], rtol=1e-2, atol=3e-4)


def close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float, atol: float) -> None:
    for name, value in expected.items():
        if not name.endswith(("key.bias", "qkv.bias")):  # softmax cancels keys': rounding, which Adam blows up
            torch.testing.assert_close(
                found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.slow
def test_two_ranks_train_with_all_that_is_off_above(tmp_path: Path) -> None:
    made = new_task(contrast="batch", negatives="batch")
    made.learn_from(tiny.build("blip_retrieval", seed=1), Distillation(0.0, 1.0))
    trainer(tmp_path, devices=2, strategy="ddp_spawn").fit(made, datamodule=Data(3))
    assert all(parameter.isfinite().all() for parameter in made.parameters())


@pytest.mark.slow
def test_compiled_towers_train_to_the_same_weights(tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        made = new_task(compile=compiled)
        made.learn_from(tiny.build("blip_retrieval", seed=1), Distillation(1.0, 1.0))
        trainer(tmp_path).fit(made, datamodule=Data())
        weights.append(copy.deepcopy(made.model.state_dict()))
    for name, value in weights[0].items():
        if not name.endswith(("key.bias", "qkv.bias")):
            torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-3, msg=name)


# messages


def test_k_is_refused_before_anything_is_trained_or_encoded(tmp_path: Path) -> None:
    made = new_task(k=15)
    for stage in ("fit", "test", "validate"):
        run = trainer(tmp_path)
        with pytest.raises(ValueError, match=r"k is 15 candidates, but split '(test|val)' has 14 images per gallery"):
            getattr(run, stage)(made, datamodule=Data())
        assert run.global_step == 0
        assert not made._encoded
    with pytest.raises(ValueError, match="k is 9 candidates, but split 'test' reports R@10; set k to 10 or more"):
        trainer(tmp_path).test(new_task(k=9), datamodule=Data(), verbose=False)
    with pytest.raises(ValueError, match="k is 10 candidates, but split 'test' has 7 images per gallery; set k"):
        trainer(tmp_path).test(new_task(k=10), datamodule=Data(folds=2), verbose=False)
    with pytest.raises(ValueError, match="k is 15 candidates, but split 'test' has 14 images per gallery"):
        made.check_data(Data())


def test_k_is_refused_at_the_end_where_nobody_told_the_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="k is 15 candidates, but the data has 14 images per gallery; set k to 14"):
        trainer(tmp_path).test(new_task(k=15), dataloaders=Data().test_dataloader(), verbose=False)


def test_messages() -> None:
    with pytest.raises(ValueError, match="negatives is 'all'; give 'batch' or 'all_ranks'"):
        RerankedRetrieval("x", negatives="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"temperature is 0; give a number in \[0.001, 0.5\]"):
        RerankedRetrieval("x", temperature=0)
    with pytest.raises(ValueError, match="k is 0; give 1 or more"):
        RerankedRetrieval("x", k=0)
    with pytest.raises(ValueError, match="eval_pairs is 0; give 1 or more"):
        RerankedRetrieval("x", eval_pairs=0)
    with pytest.raises(ValueError, match="contrast is 'que'; give 'batch' or 'queue'"):
        RerankedRetrieval("x", contrast="que")
    for name in ("clip", "blip_vqa"):
        with pytest.raises(ValueError, match=r"has no image-text matching; re-ranked retrieval takes a BlipFor"):
            RerankedRetrieval("x").adopt(tiny.build(name), None)
    with pytest.raises(ValueError, match="TextRetrieval is no dual encoder.*; use upop.tasks.RerankedRetrieval"):
        Retrieval("x").adopt(tiny.build("blip_retrieval"), None)
    beyond = Processor(Tokenizer((("[ENC]", 50),)))
    with pytest.raises(ValueError, match=r"the tokenizer gives \[ENC\] number 50, but the model has 50 embeddings"):
        RerankedRetrieval("x").adopt(tiny.build("blip_retrieval"), beyond)
