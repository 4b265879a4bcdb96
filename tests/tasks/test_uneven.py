"""What three ranks make of samples that do not share out evenly, against one process that has all of them."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tests import tiny
from tests.recipes import tiny_checkpoint
from tests.tasks import test_reranked as blip
from tests.tasks.running import trainer
from upop.data import ShapesCaptioning, ShapesReasoning, ShapesRetrieval, ShapesVqa
from upop.export import load
from upop.families import image_features, text_features
from upop.tasks import (
    Captioning,
    Distillation,
    RerankedRetrieval,
    Retrieval,
    Training,
    VisualQuestionAnswering,
    VisualReasoning,
    captioning,
)
from upop.tasks.evaluated import EvaluatedTask
from upop.tasks.hidden import HiddenStates, distil_hidden
from upop.tasks.uneven import check_even

RANKS, SHARE = 3, 2  # of a batch of six
STEPS = 3
MODELS = Path(__file__).parents[2] / "configs/models"
SIZES = (2, 7)
"""Samples to evaluate: two leave the third rank without any, seven give the first rank one more than the others."""


def settings(size: int) -> dict[str, Any]:
    return {"train_scenes": 20, "test_scenes": size, "val_scenes": 1, "batch_size": SHARE, "eval_batch_size": 2}


def made(name: str, size: int, folder: Path) -> tuple[Any, Any]:
    """A task with a small model of random weights, and data of which ``size`` samples are evaluated."""
    torch.manual_seed(0)
    results = {"result_file": str(folder / f"{name}_{size}.txt")}
    source = folder / "clip" if name == "retrieval" else MODELS / f"shapes_blip_{name.removeprefix('re-ranked ')}"
    model, processor = load(source, from_scratch=name != "retrieval")
    tasks: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "retrieval": (lambda: Retrieval("x"), lambda: ShapesRetrieval(**settings(size))),
        "re-ranked retrieval": (
            lambda: RerankedRetrieval("x", k=size, eval_pairs=4), lambda: ShapesRetrieval(**settings(size)),
        ),
        "vqa": (
            lambda: VisualQuestionAnswering("x", k_test=4, **results),
            lambda: ShapesVqa(**settings(size), questions_per_scene=1),
        ),
        "captioning": (
            lambda: Captioning("x", metrics=["bleu_1"], max_length=12, num_beams=1, **results),
            lambda: ShapesCaptioning(**settings(size)),
        ),
        "nlvr": (
            lambda: VisualReasoning("x", **results),
            lambda: ShapesReasoning(**settings(20) | {"val_scenes": 20}, train_pairs=20, val_pairs=2, test_pairs=size),
        ),
    }  # fmt: skip
    task, data = (make() for make in tasks[name])
    task.adopt(model, processor)
    data.set_processor(processor)
    return task, data


EVALUATED = [
    (name, size) for name in ("retrieval", "re-ranked retrieval", "vqa", "captioning", "nlvr") for size in SIZES
]


def evaluate(name: str, size: int, folder: Path, run: Trainer) -> tuple[dict[str, float], str]:
    """Metrics, and what the task wrote, if it writes."""
    task, data = made(name, size, folder)
    task.eval()
    run.test(task, datamodule=data, verbose=False)
    file = folder / f"{name}_{size}.txt"
    return {key: float(value) for key, value in run.callback_metrics.items()}, file.read_text() if file.exists() else ""


class Gradients(Callback):
    """Gradients of every step as the optimizer sees them, averaged over the ranks, by parameter."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, run: Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.found.append({name: p.grad.clone() for name, p in named if p.grad is not None})


class Batches(LightningDataModule):
    """Batches of six pairs, of which each rank has two; texts of a rank are as wide as its longest."""

    def __init__(self) -> None:
        super().__init__()
        self.all = blip.Data()
        self.all.ids[torch.arange(blip.TEXTS), self.all.mask.sum(1) - 1] = 1  # CLIP takes the state of its end token
        self.texts = [[0, 1, 2, 3, 4, 28], [15, 5, 20, 7, 8, 24], [9, 10, 25, 29, 12, 13]]

    def batch(self, step: int, rank: int, ranks: int) -> dict[str, Tensor]:
        share = RANKS * SHARE // ranks
        return self.all.batch(self.texts[step][rank * share : (rank + 1) * share])

    def train_dataloader(self) -> DataLoader:
        parallel = torch.distributed.is_initialized()
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if parallel else (0, 1)
        rows: Any = [self.batch(step, rank, ranks) for step in range(STEPS)]
        return DataLoader(rows, batch_size=None)


def learner(name: str) -> Any:
    """A task that stays as it is, so that what every step does can be said without the steps before."""
    seed_everything(1, verbose=False)
    if name == "hard negatives":
        task = blip.new_task(contrast="queue", negatives="all_ranks", processor=blip.SALESFORCE)
        task.learn_from(tiny.build("blip_retrieval", seed=1), Distillation(1.0, 1.0))
    else:
        task = Retrieval("x", contrast=name, queue_size=8, momentum=0.9, soft_targets=0.4)  # type: ignore[arg-type]
        task.adopt(tiny.build("clip"), None)
        task.learn_from(tiny.build("clip", seed=1), Distillation(0.5, 2.0))
    task.training_settings = Training(epochs=1, lr=1e-12, lr_schedule="constant", weight_decay=0.0)
    return task


LEARNERS = ("batch", "queue", "hard negatives")


def train(name: str, run: Callable[..., Trainer]) -> list[dict[str, Tensor]]:
    gradients = Gradients()
    run(gradients).fit(learner(name), datamodule=Batches())
    return gradients.found


class Tails(LightningDataModule):
    """Loaders of nobody's making: the first rank has one sample more."""

    def train_dataloader(self) -> DataLoader:
        count = 7 - (torch.distributed.get_rank() > 0)
        rows: Any = [{key: value[0] for key, value in Batches().batch(0, 0, RANKS).items()}] * count
        return DataLoader(rows, batch_size=4)


def on_a_rank(rank: int, port: int, folder: Path, results: Any) -> None:
    """All that ranks do in these tests: starting them takes longer than what they do."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)

    def new(*callbacks: Callback) -> Trainer:
        return trainer(folder, *callbacks, devices=RANKS, strategy="ddp")

    with pytest.MonkeyPatch.context() as patch:
        count_captions(patch)
        for name, size in EVALUATED:
            results[rank, name, size] = evaluate(name, size, folder, new())
    _, data = made("retrieval", 7, folder)
    results[rank, "shares"] = [[batch["index"].tolist() for batch in part] for part in data.test_dataloader()]
    results[rank, "training"] = [list(epoch(data.train_dataloader(), number)) for number in range(4)]
    for name in LEARNERS:
        found = train(name, new)
        if rank == 0:
            torch.save(found, folder / f"{name}.pt")
    try:
        new().fit(learner("batch"), datamodule=Tails())
    except ValueError as error:
        results[rank, "refused"] = str(error)
    torch.distributed.destroy_process_group()


def count_captions(patch: pytest.MonkeyPatch) -> None:
    """Score captions without Java: what matters is which of them are there, and the result file tells."""
    patch.setattr(captioning, "check_metrics", lambda metrics: metrics)
    patch.setattr(captioning, "caption_scores", lambda found, truth, metrics: {"bleu_1": float(len(found))})


def epoch(loader: Any, number: int) -> Iterator[list[int]]:
    """The samples of each batch of a training loader."""
    loader.sampler.set_epoch(number)
    rows = [sample for _, sample in loader.sampler]
    sizes = [len(batch["image_index"]) for batch in loader]
    for size in sizes:
        yield rows[:size]
        rows = rows[size:]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], Path]:
    """What three ranks found, and the directory that they wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_checkpoint(folder / "clip")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(on_a_rank, args=(port, folder, results), nprocs=RANKS)
        return dict(results), folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), EVALUATED)
def test_metrics_are_those_of_one_process(
    ranks: tuple[dict[Any, Any], Path], name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, folder = ranks
    (tmp_path / "clip").symlink_to(folder / "clip")
    count_captions(monkeypatch)
    scores, written = evaluate(name, size, tmp_path, trainer(tmp_path))
    assert scores
    assert bool(written) == (name in ("vqa", "captioning", "nlvr"))
    for rank in range(RANKS):
        assert results[rank, name, size] == (pytest.approx(scores), written), f"rank {rank}"


@pytest.mark.slow
def test_evaluation_loses_no_sample_and_has_none_twice(ranks: tuple[dict[Any, Any], Path]) -> None:
    results, _ = ranks
    for part, count in ((0, 7), (1, 35)):  # images, captions
        shares = [list(itertools.chain.from_iterable(results[rank, "shares"][part])) for rank in range(RANKS)]
        assert len({len(share) for share in shares}) == 2, "they are uneven"
        assert sorted(itertools.chain.from_iterable(shares)) == list(range(count))


@pytest.mark.slow
def test_training_leaves_out_the_tail_and_every_batch_is_full(ranks: tuple[dict[Any, Any], Path]) -> None:
    results, _ = ranks
    left_out = []
    for number in range(4):
        batches = [results[rank, "training"][number] for rank in range(RANKS)]
        assert {len(batch) for of_rank in batches for batch in of_rank} == {SHARE}
        assert {len(of_rank) for of_rank in batches} == {20 // (RANKS * SHARE)}
        seen = [sample for of_rank in batches for batch in of_rank for sample in batch]
        assert len(seen) == len(set(seen)) == 18
        left_out.append(frozenset(range(20)) - frozenset(seen))
    assert len(set(left_out)) > 1, "every epoch leaves out others"


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_gradients_of_all_ranks_are_those_of_their_common_batch(
    ranks: tuple[dict[Any, Any], Path], name: str, tmp_path: Path
) -> None:
    found = torch.load(ranks[1] / f"{name}.pt", weights_only=True)
    if name == "hard negatives":  # tests/tasks/test_reranked.py holds one process against loops
        expected = train(name, lambda *callbacks: trainer(tmp_path, *callbacks))
    else:
        expected = by_loops(learner(name))
    assert len(found) == len(expected) == STEPS
    for step, gradients in enumerate(expected):
        assert set(found[step]) == set(gradients)
        for parameter, gradient in gradients.items():
            close(found[step][parameter], gradient, f"step {step}, {parameter}")


def close(found: Tensor, expected: Tensor, what: str) -> None:
    atol = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=atol, msg=lambda text: f"{what}: {text}")


def by_loops(task: Any) -> list[dict[str, Tensor]]:
    """Gradients of contrast and distillation, pair by pair, over the whole batch of every step."""
    model, teacher = task.model, task.teacher
    queue = None
    if task.contrast == "queue":
        queue = [(image, text, -1) for image, text in zip(task.image_queue, task.text_queue, strict=True)]
    found, place = [], 0
    for step in range(STEPS):
        batch = Batches().batch(step, 0, 1)
        images, texts = features(model, batch)
        index, scale = batch["image_index"].tolist(), model.logit_scale.exp()
        stored = list(zip(images.detach(), texts.detach(), index, strict=True))
        if queue is None:
            candidates, softness = list(zip(images, texts, index, strict=True)), 0.0
        else:
            candidates, softness = stored + queue, 0.4 * step / STEPS
        loss = contrast(images, texts, stored, candidates, scale, softness)
        with torch.no_grad():
            theirs, their_scale = features(teacher, batch), teacher.logit_scale.exp()
        ours = scale * images @ texts.t()
        target = their_scale * theirs[0] @ theirs[1].t()
        for student, wanted in ((ours, target), (ours.t(), target.t())):
            for row, truth in zip(student, wanted, strict=True):
                gap = truth.log_softmax(0) - row.log_softmax(0)
                loss = loss + 0.5 * 0.5 * (truth.softmax(0) * gap).sum() / len(index)
        for own, other in ((images, theirs[0]), (texts, theirs[1])):
            loss = loss + 2.0 * 0.5 * sum((a - b).square().sum() for a, b in zip(own, other, strict=True)) / len(index)
        model.zero_grad()
        loss.backward()
        found.append({f"model.{n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        for entry in stored if queue is not None else ():
            queue[place % len(queue)] = entry  # type: ignore[index]
            place += 1
    return found


def features(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    images = image_features(model, batch["pixel_values"])
    return F.normalize(images, dim=1), F.normalize(
        text_features(model, batch["input_ids"], batch["attention_mask"]), dim=1
    )


def contrast(
    images: Tensor, texts: Tensor, stored: list[Any], candidates: list[Any], scale: Tensor, softness: float
) -> Tensor:
    """Cross-entropy of each pair with its candidates, both ways, of soft targets."""
    loss = images.new_zeros(())
    for way, queries in ((1, images), (0, texts)):  # an image looks among texts, a text among images
        for row, query in enumerate(queries):
            logits = torch.stack([scale * query @ candidate[way] for candidate in candidates])
            believed = torch.stack([scale * stored[row][1 - way] @ candidate[way] for candidate in candidates]).detach()
            same = torch.tensor([float(candidate[2] == stored[row][2]) for candidate in candidates])
            target = softness * believed.softmax(0) + (1 - softness) * same / same.sum()
            loss = loss - 0.5 * (target * logits.log_softmax(0)).sum() / len(queries)
    return loss


@pytest.mark.slow
def test_loaders_that_share_out_unevenly_are_refused_on_every_rank(ranks: tuple[dict[Any, Any], Path]) -> None:
    for rank in range(RANKS):
        assert ranks[0][rank, "refused"].startswith(
            "ranks train in step, but their training batches differ: rank 0 has 2 of 4, the last of 3, rank 1 has 2 of "
            "4, the last of 2; share the samples out evenly and leave out the tail"
        )


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return itertools.count()


@pytest.mark.parametrize(
    ("loader", "facts"),
    [
        (DataLoader(range(7), batch_size=3), [3, 3, 1]),  # type: ignore[arg-type]
        (DataLoader(range(7), batch_size=3, drop_last=True), [2, 3, 3]),  # type: ignore[arg-type]
        (DataLoader(range(6), batch_size=3), [2, 3, 3]),  # type: ignore[arg-type]
        (DataLoader(range(6), batch_size=None), [6, 0, 0]),  # type: ignore[arg-type]
        (DataLoader(Endless(), batch_size=3), [0, 0, 0]),
        ([1, 2], [0, 0, 0]),
    ],
)
def test_what_ranks_compare(loader: Any, facts: list[int]) -> None:
    asked: list[list[int]] = []

    def two_alike(own: Tensor) -> Tensor:
        asked.append(own.tolist())
        return torch.stack([own, own])

    check_even(loader, two_alike)
    assert asked == [facts]


@pytest.mark.parametrize("other", [[4, 3, 1], [3, 2, 1], [3, 3, 2]])
def test_batches_that_differ_in_number_or_size_are_refused(other: list[int]) -> None:
    loader = DataLoader(range(7), batch_size=3)  # type: ignore[arg-type]
    told = f"rank 0 has 3 of 3, the last of 1, rank 2 has {other[0]} of {other[1]}, the last of {other[2]}; share"
    with pytest.raises(ValueError, match=told):
        check_even(loader, lambda own: torch.stack([own, own, torch.tensor(other)]))


class Counted(EvaluatedTask):
    """Counts what it is given to evaluate."""

    seen = 0

    def _start_evaluation(self) -> None: ...

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        self.seen += 1

    def _report(self, split: str) -> None: ...


def test_an_empty_batch_is_not_evaluated() -> None:
    task = Counted("x")
    for step in (task.validation_step, task.test_step):
        step({}, 0)
        assert task.seen == 0
        step({"index": torch.zeros(1)}, 0)
        assert task.seen == 1
        task.seen = 0


def test_hidden_states_of_ranks_average_to_those_of_all_their_tokens() -> None:
    student, teacher = (tiny.build("bert", seed=seed) for seed in (0, 1))
    ids = torch.randint(2, 50, (4, 8), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(8) < torch.tensor([[2], [3], [8], [7]])).long()

    def distance(rows: slice, **over: Any) -> float:
        with HiddenStates(student) as ours, HiddenStates(teacher) as theirs, torch.no_grad():
            for model in (student, teacher):
                model(input_ids=ids[rows], attention_mask=mask[rows])
        return float(distil_hidden(ours, theirs, {"encoder": mask[rows]}, **over))

    whole = distance(slice(4))
    mean = mask.sum() / 2  # tokens of a rank
    halves = [distance(rows, over_ranks=lambda count: mean) for rows in (slice(2), slice(2, 4))]
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5)
    alone = [distance(rows) for rows in (slice(2), slice(2, 4))]
    assert sum(alone) / 2 != pytest.approx(whole, rel=1e-3), "ranks of few tokens would count as much as others"
