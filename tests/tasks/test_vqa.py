"""The VQA task against loops over Hugging Face's model: losses, both ways to answer, distillation, the cut."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BlipForQuestionAnswering, PreTrainedTokenizerFast

from tests import tiny
from tests.plans import random_plan
from tests.tasks.running import LossAtTheEnd, Numbers, Processor, trainer, word_tokenizer
from upop.callbacks import ProgressiveSearch
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites
from upop.masks import Masks, mask_values
from upop.metrics.vqa import vqa_accuracy
from upop.surgery import shrink_
from upop.tasks import Distillation, Training, VisualQuestionAnswering

# 0: the decoder's start, 1: end and padding, 2: what the tokenizer puts first; as the tiny model's config has them
WORDS = """[DEC] [SEP] [CLS] [UNK] is the what how many where colour red blue green cat dog bird sits runs on under mat
tree house ##s ##ing yes no two three small big old new man woman child ball car bus and with in near sky sea hill road
boat left""".split()  # noqa: SIM905 (fifty strings)
ANSWERS = [
    "yes",
    "no",
    "two",
    "three cats",
    "red",
    "blue",
    "on the mat",
    "under the tree",
    "big red car",
    "under",
    "cat",
]
QUESTIONS = (
    "is the cat red", "what sits on the mat", "how many dogs", "what colour is the old house", "where is the bus",
    "is the dog big", "what runs", "where is the man with the red ball",
)  # fmt: skip
TYPES = ("yes/no", "number", "other")


@dataclass(frozen=True)
class Question:
    question_id: int
    question: str
    answers: tuple[str, ...]
    question_type: str = "what"
    answer_type: str = "other"


class Rows(Dataset):
    """Questions with their images and numbers, each without padding."""

    def __init__(self, images: Tensor, questions: list[Question]) -> None:
        self.images, self.questions = images, questions

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[int, Tensor, str]:
        return index, self.images[index], self.questions[index].question


class Data(LightningDataModule):
    """Random images with questions; two steps to train on, eight questions to answer."""

    def __init__(self, batch_size: int = 6, annotated: bool = True, eval_batch_size: int = 3) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size, self.annotated = batch_size, eval_batch_size, annotated
        self.batches = [batch(seed=seed) for seed in (1, 2)]
        self.images = torch.randn(len(QUESTIONS), 3, 16, 16, generator=torch.Generator().manual_seed(5))
        self.answers = list(ANSWERS)

    def train_dataloader(self) -> DataLoader:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        mine = range(rank * self.batch_size, (rank + 1) * self.batch_size)
        return DataLoader([of_rows(b, mine) for b in self.batches], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def loader(self, split: str) -> DataLoader:
        rows = Rows(self.images, self.questions(split))
        return DataLoader(rows, batch_size=self.eval_batch_size, sampler=Numbers(len(rows)), collate_fn=collate)

    def answer_tokens(self) -> dict[str, Tensor]:
        return dict(tokenizer()(self.answers, padding=True, return_tensors="pt"))

    def questions(self, split: str) -> list[Question]:
        people = [[ANSWERS[(i * (1 if split == "test" else 3) + j // 4) % 11] for j in range(10)] for i in range(8)]
        found = [Question(500 - i, text, tuple(people[i]), "what", TYPES[i % 3]) for i, text in enumerate(QUESTIONS)]
        return found if self.annotated or split == "val" else [replace(question, answers=()) for question in found]


def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


def collate(rows: list[tuple[int, Tensor, str]]) -> dict[str, Tensor]:
    index, images, texts = zip(*rows, strict=True)
    tokens = tokenizer()(list(texts), padding=True, return_tensors="pt")
    return {"pixel_values": torch.stack(images), "index": torch.tensor(index), **tokens}


def batch(rows: int = 6, seed: int = 1) -> dict[str, Tensor]:
    """Questions of several lengths with one to four answers each, which have weights of their own."""
    generator = torch.Generator().manual_seed(seed)
    given = collate([
        (row, torch.randn(3, 16, 16, generator=generator), QUESTIONS[(row + seed) % 8]) for row in range(rows)
    ])  # fmt: skip
    del given["index"]
    counts = [1 + (row * seed) % 4 for row in range(rows)]
    owner = torch.arange(rows).repeat_interleave(torch.tensor(counts))
    answers = tokenizer()([ANSWERS[(i * 3 + seed) % 11] for i in range(len(owner))], padding=True, return_tensors="pt")
    weights = torch.rand(len(owner), generator=generator)
    return given | {
        "answer_ids": answers["input_ids"], "answer_mask": answers["attention_mask"], "answer_weights": weights,
        "answer_question": owner,
    }  # fmt: skip


def of_rows(given: dict[str, Tensor], rows: range) -> dict[str, Tensor]:
    """Some questions of a batch, with their answers."""
    wanted = torch.tensor([int(owner) in rows for owner in given["answer_question"]])
    return {
        name: value[wanted] - (rows.start if name == "answer_question" else 0)
        if name.startswith("answer")
        else value[rows.start : rows.stop]
        for name, value in given.items()
    }


def answerer(seed: int = 0) -> Any:
    """A tiny model that listens to the image and the question, so that its answers differ."""
    model = tiny.build("blip_vqa", seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("crossattention.output.dense.weight"):
                parameter.mul_(12)
    return model


def task(model: nn.Module | None = None, **arguments: Any) -> VisualQuestionAnswering:
    made = VisualQuestionAnswering("unused", **({"k_test": 11} | arguments))
    made.adopt(model or answerer(), Processor(tokenizer()))
    made.training_settings = Training(epochs=1, lr=1e-3)
    return made


def alone(given: dict[str, Tensor], answer: int) -> dict[str, Tensor]:
    """One answer with its question, without padding, as Hugging Face's forward takes them."""
    row, length = int(given["answer_question"][answer]), int(given["answer_mask"][answer].sum())
    ids = given["answer_ids"][answer : answer + 1, :length].clone()
    ids[0, 0] = 0
    return question(given, row) | {"labels": ids}


def question(given: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    length = int(given["attention_mask"][row].sum())
    return {
        "pixel_values": given["pixel_values"][row : row + 1],
        "input_ids": given["input_ids"][row : row + 1, :length],
        "attention_mask": given["attention_mask"][row : row + 1, :length],
    }


def hugging_face(model: Any, given: dict[str, Tensor], answer: int) -> tuple[Tensor, Tensor]:
    """Mean loss over the tokens of one answer, and the decoder's logits, by Hugging Face's forward."""
    return decoder_logits(model, alone(given, answer))


def decoder_logits(model: Any, plain: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and logits of the decoder, which the forward does not return."""
    logits = []
    hook = model.text_decoder.register_forward_hook(lambda _, __, out: logits.append(out.logits[0]))
    loss = model(**plain).loss
    hook.remove()
    return loss, logits[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_hugging_face_s_answer_by_answer(smoothing: float) -> None:
    made, given = task(label_smoothing=smoothing), batch()
    made.eval()
    made.model.text_decoder.label_smoothing = smoothing
    total = torch.zeros(())
    for answer, weight in enumerate(given["answer_weights"]):
        tokens = given["answer_mask"][answer].sum() - 1
        total = total + weight * tokens * hugging_face(made.model, given, answer)[0]
    assert len(given["answer_weights"]) > 10
    torch.testing.assert_close(made.loss(given), total / 6)


def test_the_loss_equals_a_loop_over_tokens() -> None:
    made, given = task(label_smoothing=0.2), batch(seed=2)
    total = 0.0
    for answer, weight in enumerate(given["answer_weights"].tolist()):
        logs = hugging_face(made.model, given, answer)[1].log_softmax(1)
        for place, token in enumerate(alone(given, answer)["labels"][0, 1:].tolist()):
            total += weight * (-0.8 * logs[place, token].item() - 0.2 * logs[place].mean().item())
    assert made.loss(given).item() == pytest.approx(total / 6, rel=1e-5)


@torch.no_grad()
def test_answer_logits_are_hugging_face_s() -> None:
    made, given = task(), batch()
    found = made.answer_logits(made.model, given)
    for answer, length in enumerate(given["answer_mask"].sum(1).tolist()):
        torch.testing.assert_close(found[answer, :length], hugging_face(made.model, given, answer)[1])
    assert (given["answer_ids"][:, 0] == 2).all(), "the batch stays as it is"


def test_padding_does_not_count() -> None:
    made, given = task(), batch()
    wide = dict(given)
    for name in ("input_ids", "attention_mask", "answer_ids", "answer_mask"):
        wide[name] = nn.functional.pad(given[name], (0, 2), value=0 if "mask" in name else 9)
    torch.testing.assert_close(made.loss(wide), made.loss(given))


def ranked_by_loop(model: Any, given: dict[str, Tensor], smoothing: float) -> list[str]:
    """The answer of the whole list with the least loss, by Hugging Face's forward, one after the other."""
    model.text_decoder.label_smoothing = smoothing
    best = []
    for row in range(len(given["input_ids"])):
        losses = []
        for answer in ANSWERS:
            ids = torch.tensor([[0, *tokenizer()(answer).input_ids[1:]]])
            losses.append((ids.shape[1] - 1) * model(**question(given, row), labels=ids).loss.item())
        best.append(ANSWERS[losses.index(min(losses))])
    return best


@torch.no_grad()
def generated_by_loop(model: Any, given: dict[str, Tensor]) -> list[str]:
    """What Hugging Face generates for each question alone."""
    settings = {"num_beams": 3, "max_length": 10, "min_length": 1, "do_sample": False}
    rows = [model.generate(**question(given, row), **settings)[0] for row in range(len(given["input_ids"]))]
    return [tokenizer().decode(row[1:], skip_special_tokens=True) for row in rows]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_test_metrics_are_those_of_a_loop_over_the_whole_list(smoothing: float, tmp_path: Path) -> None:
    file = tmp_path / "out" / "answers.json"
    made, data = task(rank_smoothing=smoothing, result_file=str(file)), Data()
    found = trainer(tmp_path).test(made, datamodule=data, verbose=False)[0]
    made.eval()
    everything = collate([Rows(data.images, data.questions("test"))[i] for i in range(8)])
    with torch.no_grad():
        answers = ranked_by_loop(made.model, everything, smoothing)
    assert len(set(answers)) > 1
    expected = vqa_accuracy({500 - i: answer for i, answer in enumerate(answers)}, data.questions("test"))
    assert found == pytest.approx({f"test/{name}": value for name, value in expected.items()})
    assert set(expected) == {"accuracy", "accuracy_yes_no", "accuracy_number", "accuracy_other"}
    rows = json.loads(file.read_text())
    assert rows == [{"question_id": 500 - i, "answer": answer} for i, answer in enumerate(answers)]


@torch.no_grad()
def test_one_candidate_is_the_answer_with_the_most_probable_first_token(tmp_path: Path) -> None:
    made, data = task(k_test=1, result_file=str(tmp_path / "answers.json")), Data()
    trainer(tmp_path).test(made, datamodule=data, verbose=False)
    made.eval()
    given = collate([Rows(data.images, data.questions("test"))[i] for i in range(8)])
    first = {text: tokenizer()(text).input_ids[1] for text in ANSWERS}
    found = [row["answer"] for row in json.loads((tmp_path / "answers.json").read_text())]
    for row, answer in enumerate(found):
        plain = {**question(given, row), "labels": torch.tensor([[0, 1]])}
        logits = decoder_logits(made.model, plain)[1][0]
        assert logits[first[answer]].item() == pytest.approx(max(logits[list(first.values())]).item(), abs=1e-5)
        assert answer != "under the tree", "'under' has the same first token and is shorter"


def test_every_question_gets_what_hugging_face_generates_for_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    made, data = task(inference="generate", result_file=str(file)), Data(eval_batch_size=5)
    found = trainer(tmp_path).test(made, datamodule=data, verbose=False)[0]
    made.eval()
    answers = generated_by_loop(made.model, collate([Rows(data.images, data.questions("test"))[i] for i in range(8)]))
    assert [row["answer"] for row in json.loads(file.read_text())] == answers
    assert len(set(answers)) > 2, "the questions differ"
    expected = vqa_accuracy({500 - i: answer for i, answer in enumerate(answers)}, data.questions("test"))
    assert found == pytest.approx({f"test/{name}": value for name, value in expected.items()})


def test_generated_answers_come_without_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(inference="generate")
    cat, plural, red = (WORDS.index(word) for word in ("cat", "##s", "red"))
    rows = [[0, red, cat, plural, 1], [0, cat, 1, 1, 1], [0, 1, 1, 1, 1]]
    monkeypatch.setattr(made, "generate", lambda *_: torch.tensor(rows))
    assert made.generated({}) == ["red cats", "cat", ""]


def test_validation_scores_its_own_split_and_writes_nothing(tmp_path: Path) -> None:
    made, data = task(result_file=str(tmp_path / "answers.json")), Data(annotated=False)
    found = trainer(tmp_path, limit_val_batches=1.0).validate(made, datamodule=data, verbose=False)[0]
    made.eval()
    with torch.no_grad():
        everything = collate([Rows(data.images, data.questions("val"))[i] for i in range(8)])
        answers = ranked_by_loop(made.model, everything, 0.1)
    expected = vqa_accuracy({500 - i: answer for i, answer in enumerate(answers)}, data.questions("val"))
    assert found == pytest.approx({f"val/{name}": value for name, value in expected.items()})
    assert not (tmp_path / "answers.json").exists()


def test_where_the_answers_are_secret_the_file_is_written_and_nothing_scored(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    made, data = task(result_file=str(file)), Data(annotated=False)
    assert trainer(tmp_path).test(made, datamodule=data, verbose=False) == [{}]
    rows = json.loads(file.read_text())
    assert [row["question_id"] for row in rows] == [500 - i for i in range(8)]
    assert {row["answer"] for row in rows} <= set(ANSWERS)
    with pytest.raises(
        ValueError, match="the questions of split 'test' have no answers to score against; set model.init_"
    ):
        task().check_data(data)  # before a model is read
    with pytest.raises(ValueError, match="the questions of split 'test' have no answers to score against"):
        trainer(tmp_path).test(task(), datamodule=data, verbose=False)


@pytest.mark.parametrize("kinds", [("head_dim", "neuron"), ("head",), ("head", "head_dim", "neuron")])
@torch.no_grad()
def test_masked_and_cut_have_one_loss_and_the_same_answers(kinds: tuple[Any, ...], tmp_path: Path) -> None:
    made, given, data = task(), batch(), Data()
    made.eval()
    sites = find_sites(made.model, kinds)
    plan = random_plan(sites, seed=3)
    dense = made.loss(given)
    masks = Masks(made.model, sites)
    masks.write_(mask_values(sites, plan))

    def everything() -> tuple[Tensor, Tensor, list[str]]:
        file = tmp_path / "answers.json"
        made.result_file = str(file)
        trainer(tmp_path).test(made, datamodule=data, verbose=False)
        made.eval()
        return made.loss(given), made.generate(given), [row["answer"] for row in json.loads(file.read_text())]

    masked = everything()
    masks.detach()
    shrink_(made.model, sites, plan)
    cut = everything()
    torch.testing.assert_close(cut[0], masked[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(cut[1], masked[1])
    assert cut[2] == masked[2]
    assert (dense - masked[0]).abs() > 1e-3


def test_retraining_starts_at_the_loss_that_the_search_ended_with(tmp_path: Path) -> None:
    made, at_end = task(), LossAtTheEnd(batch(seed=9))
    made.learn_from(answerer(), Distillation(1.0, 1.0))
    search = ProgressiveSearch(removed=0.5, interval=2, tolerance=0.05)
    sites = find_sites(made.model, search.units)
    search.bind(sites, CostModel(sites, measure(made.model, sites, example_inputs(made.model))), tmp_path / "plan.json")
    trainer(tmp_path, search, at_end, max_epochs=2).fit(made, datamodule=Data())
    assert search.finished
    assert search.plan is not None
    shrink_(made.model, sites, search.plan)
    retrained = task(made.model)
    retrained.carry(made.carried())
    assert retrained.pruned_modules() == [made.model]
    retrained.eval()
    with torch.no_grad():
        torch.testing.assert_close(retrained.loss(at_end.given), at_end.loss, rtol=1e-5, atol=1e-5)


def test_a_run_that_goes_on_from_a_checkpoint_ends_at_the_same_weights(tmp_path: Path) -> None:
    whole, parts = task(), task()
    kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    settings = {"max_epochs": 2, "enable_checkpointing": True}
    trainer(tmp_path, kept, **settings).fit(whole, datamodule=Data())
    trainer(tmp_path, **settings).fit(parts, datamodule=Data(), ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    after = parts.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in whole.state_dict().items())
    assert set(whole.state_dict()) == {f"model.{name}" for name in whole.model.state_dict()}


class Gradients(Callback):
    """Names of parameters that train, with and without a gradient."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        trained = {name: p.grad is not None for name, p in pl_module.named_parameters() if p.requires_grad}
        self.without = [name for name, has in trained.items() if not has]
        self.count = len(trained)


@pytest.mark.parametrize("tied", [True, False])
def test_everything_that_trains_gets_a_gradient(tmp_path: Path, tied: bool) -> None:
    config = tiny.blip_config(hidden_size=24)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    gradients = Gradients()
    made = task(BlipForQuestionAnswering(config))
    trainer(tmp_path, gradients, max_steps=1).fit(made, datamodule=Data())
    assert gradients.without == []
    assert gradients.count > 150


def first_loss(path: Path, made: VisualQuestionAnswering, distillation: Distillation) -> float:
    made = copy.deepcopy(made)
    made.learn_from(answerer(seed=1), distillation)
    run = trainer(path, max_steps=1)
    run.fit(made, datamodule=Data())
    return float(run.callback_metrics["loss"])


@torch.no_grad()
def test_distillation_adds_the_divergence_of_the_answers_tokens_weighted_as_they_are(tmp_path: Path) -> None:
    made, given, teacher = task(), Data().batches[0], answerer(seed=1)
    total = 0.0
    for answer, weight in enumerate(given["answer_weights"].tolist()):
        ours, theirs = (
            hugging_face(model, given, answer)[1][:-1].double().log_softmax(1) for model in (made.model, teacher)
        )
        total += weight * (theirs.exp() * (theirs - ours)).sum().item()
    expected = made.loss(given).item() + 2.0 * total / 6
    assert first_loss(tmp_path, made, Distillation(logits=2.0)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def distance_of_states(model: Any, teacher: Any, given: dict[str, Tensor]) -> float:
    """Mean over blocks of the mean over tokens of the distance of normalised outputs; every sample alone."""
    blocks: list[list[Tensor]] = []
    towers = [
        ("vision_model.encoder.layers", 2),
        ("text_encoder.encoder.layer", 3),
        ("text_decoder.bert.encoder.layer", 3),
    ]
    for tower, depth in towers:
        decoder = tower.startswith("text_decoder")
        distances: list[list[Tensor]] = [[] for _ in range(depth)]
        for number in range(len(given["answer_weights"] if decoder else given["input_ids"])):
            answers = given["answer_question"].tolist()
            answer = number if decoder else answers.index(number)
            states: list[list[Tensor]] = []
            for network in (model, teacher):
                found: list[Tensor] = []
                hooks = [
                    layer.register_forward_hook(lambda _, __, out, found=found: found.append(out[0]))
                    for layer in network.get_submodule(tower)
                ]
                network(**alone(given, answer))
                for hook in hooks:
                    hook.remove()
                states.append(found)
            for depth_, (ours, theirs) in enumerate(zip(*states, strict=True)):
                distances[depth_].append(2 - 2 * nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=1))
        blocks += distances
    return torch.stack([torch.cat(of_block).mean() for of_block in blocks]).mean().item()


def test_distillation_adds_the_distance_of_hidden_states_without_padding(tmp_path: Path) -> None:
    made, given, teacher = task(), Data().batches[0], answerer(seed=1)
    expected = made.loss(given).item() + 3.0 * distance_of_states(made.model, teacher, given)
    assert first_loss(tmp_path, made, Distillation(features=3.0)) == pytest.approx(expected, rel=1e-5)


def test_an_equal_teacher_adds_nothing_and_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    made, teacher = task(), answerer()
    plain = made.loss(Data().batches[0]).item()
    before = copy.deepcopy(teacher.state_dict())
    keys = set(made.state_dict())
    made.learn_from(teacher, Distillation(1.0, 1.0))
    run = trainer(tmp_path, max_steps=1)
    run.fit(made, datamodule=Data())
    assert float(run.callback_metrics["loss"]) == pytest.approx(plain, abs=1e-5)
    assert set(made.state_dict()) == keys
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


@pytest.mark.slow
def test_two_ranks_train_and_score_as_one(tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        file = tmp_path / f"{ranks}.json"
        made, data = task(result_file=str(file)), Data(6 // ranks)
        run = trainer(tmp_path, devices=ranks, strategy="ddp_spawn" if ranks == 2 else "auto", limit_val_batches=1.0)
        run.fit(made, datamodule=data)
        scores = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}
        run.test(made, datamodule=data, verbose=False)
        found.append((made.model.state_dict(), scores, file.read_text()))
    assert found[0][1] == pytest.approx(found[1][1])
    assert found[0][1]["val/accuracy"] > 0
    assert found[0][2] == found[1][2]
    for name, value in found[0][0].items():
        if not name.endswith(("key.bias", "qkv.bias")):  # softmax cancels keys': rounding, which Adam blows up
            torch.testing.assert_close(found[1][0][name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing is 1.0; it is a share of the target, in \[0, 1\)"):
        VisualQuestionAnswering("x", label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"rank_smoothing is -0.1; it is a share of the target, in \[0, 1\)"):
        VisualQuestionAnswering("x", rank_smoothing=-0.1)
    with pytest.raises(ValueError, match="inference is 'guess'; give 'rank' or 'generate'"):
        VisualQuestionAnswering("x", inference="guess")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="k_test is 0; give the number of answers to score for each question, 1 or more"
    ):
        VisualQuestionAnswering("x", k_test=0)
    with pytest.raises(
        ValueError, match="CLIPModel answers no questions; visual question answering takes a BlipForQuest"
    ):
        VisualQuestionAnswering("x").adopt(tiny.build("clip"), None)
    with pytest.raises(ValueError, match="BlipForConditionalGeneration answers no questions"):
        VisualQuestionAnswering("x").adopt(tiny.build("blip_captioning"), None)
    with pytest.raises(
        ValueError, match="the decoder attends to states of width 32, but its text encoder gives 24; give vision_config"
    ):
        task(BlipForQuestionAnswering(tiny.blip_config()))
    with pytest.raises(ValueError, match=r"VisualQuestionAnswering carries no state, got \['a'\]"):
        task().carry({"a": torch.zeros(1)})
    model = answerer()
    model.config.text_config.sep_token_id = 7
    with pytest.raises(ValueError, match="the tokenizer ends a text with token 1, but the model stops at 7; set text_"):
        task(model)
    for run in (trainer(tmp_path).test, trainer(tmp_path).fit):
        with pytest.raises(
            ValueError, match="k_test is 12, but the answer list has 11 answers to choose the candidates"
        ):
            run(task(k_test=12), datamodule=Data())


def test_drop_path_lets_samples_skip_vision_layers_in_training_alone() -> None:
    plain, given = task(), batch()
    made = task(copy.deepcopy(plain.model), drop_path=0.9)
    made.adopt(made.model, made.processor)  # once more: the rates must not pile up

    def images(one: VisualQuestionAnswering) -> Tensor:
        return one.model.vision_model(pixel_values=given["pixel_values"]).last_hidden_state

    torch.manual_seed(0)
    states = torch.cat([images(made) for _ in range(40)])
    untouched = (states - images(plain).repeat(40, 1, 1)).abs().amax((1, 2)) < 1e-6
    assert not untouched.any()  # a branch that is not skipped is scaled up
    layer = made.model.vision_model.encoder.layers[-1]
    skipped = (layer.mlp(torch.ones(4000, 5, 24)) == 0).all(dim=(1, 2))
    assert skipped.float().mean().item() == pytest.approx(0.9, abs=0.02)
    made.eval(), plain.eval()
    assert torch.equal(images(made), images(plain))
    assert made.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match=r"drop_path is 1.0; it is the probability to skip the last vision layer"):
        VisualQuestionAnswering("x", drop_path=1.0)
