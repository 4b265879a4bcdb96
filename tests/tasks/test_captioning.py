"""The captioning task against loops over Hugging Face's model, and generation before and after the cut."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BlipForConditionalGeneration, PreTrainedTokenizerFast

from tests import tiny
from tests.plans import random_plan
from tests.tasks.running import LossAtTheEnd, Numbers, Processor, trainer, word_tokenizer
from upop.callbacks import ProgressiveSearch
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites
from upop.masks import Masks, mask_values
from upop.metrics.captions import caption_scores
from upop.surgery import shrink_
from upop.tasks import Captioning, Distillation, Training

# 0: the decoder's start, 1: end and padding, 2: what the tokenizer puts first; as the tiny model's config has them
WORDS = """[DEC] [SEP] [CLS] [UNK] a picture of the red blue green cat dog bird sits runs on under mat tree house ##s
##ing ##ten two three small big old new man woman child ball car bus and with in near sky sea hill road boat fish bread
tea cup pen""".split()  # noqa: SIM905 (fifty strings)
PROMPT = "a picture of"
IMAGES = 7
needs_scorers = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="the scores need java on the PATH and pycocoevalcap",
)


@dataclass(frozen=True)
class Reference:
    image_id: int
    captions: tuple[str, ...]


class Rows(Dataset):
    """Images with their numbers."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "index": index}


class Data(LightningDataModule):
    """Random images with random captions of several lengths; two steps to train on, seven images to caption."""

    def __init__(self, batch_size: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.batch_size = batch_size
        self.batches = [batch(seed=seed) for seed in (1, 2)]
        self.images = torch.randn(IMAGES, 3, 16, 16, generator=generator)

    def train_dataloader(self) -> DataLoader:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        mine = slice(rank * self.batch_size, (rank + 1) * self.batch_size)
        rows = [{name: value[mine] if value.dim() else value for name, value in b.items()} for b in self.batches]
        return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rows(self.images), batch_size=3, sampler=Numbers(IMAGES))

    test_dataloader = val_dataloader

    def prompt_tokens(self) -> dict[str, Tensor]:
        return dict(tokenizer()(PROMPT, return_tensors="pt"))

    def references(self, split: str) -> list[Reference]:
        words = WORDS[6 if split == "test" else 10 :]
        return [Reference(100 - i, (f"the {words[i]} on a {words[i + 4]}", words[i])) for i in range(IMAGES)]


def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


def batch(rows: int = 6, seed: int = 1) -> dict[str, Tensor]:
    """Captions of one to six words behind the prompt, padded at the right."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (rows,), generator=generator)
    lengths[0] = 6
    prompt = tokenizer()(PROMPT).input_ids[:-1]
    ids = torch.full((rows, len(prompt) + 7), 1)
    ids[:, : len(prompt)] = torch.tensor(prompt)
    for row, length in enumerate(lengths.tolist()):
        ids[row, len(prompt) : len(prompt) + length] = torch.randint(4, 50, (length,), generator=generator)
    mask = (torch.arange(ids.shape[1]) < len(prompt) + lengths[:, None] + 1).long()
    images = torch.randn(rows, 3, 16, 16, generator=generator)
    return {
        "pixel_values": images, "input_ids": ids, "attention_mask": mask, "prompt_length": torch.tensor(len(prompt)),
    }  # fmt: skip


def task(model: nn.Module | None = None, **arguments: Any) -> Captioning:
    made = Captioning("unused", **({"max_length": 11, "min_length": 6} | arguments))
    made.adopt(model or tiny.build("blip_captioning"), Processor(tokenizer()))
    made.training_settings = Training(epochs=1, lr=1e-3)
    return made


def prompt() -> Tensor:
    return Data().prompt_tokens()["input_ids"]


def log_probabilities(model: Any, given: dict[str, Tensor], row: int) -> Tensor:
    """Of every token after every token of one sample, without padding, by Hugging Face's forward."""
    length = int(given["attention_mask"][row].sum())
    ids = given["input_ids"][row : row + 1, :length].clone()
    ids[0, 0] = 0
    return model(pixel_values=given["pixel_values"][row : row + 1], input_ids=ids).logits[0].log_softmax(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_a_loop_over_tokens(smoothing: float) -> None:
    made, given = task(label_smoothing=smoothing), batch()
    made.eval()
    terms = []
    for row, ids in enumerate(given["input_ids"]):
        logs = log_probabilities(made.model, given, row)
        # 4 tokens in front: what begins every text and three words; the end is scored, padding is not
        for place in range(4, len(logs)):
            wanted = logs[place - 1]
            terms.append(-(1 - smoothing) * wanted[ids[place]] - smoothing * wanted.mean())
    assert len(terms) == int(given["attention_mask"].sum()) - 4 * 6
    torch.testing.assert_close(made.loss(given), torch.stack(terms).mean())


def test_logits_equal_hugging_face_s_forward() -> None:
    made, given = task(), batch()
    tokens = given["input_ids"].clone()
    tokens[:, 0] = 0
    plain = {"pixel_values": given["pixel_values"], "attention_mask": given["attention_mask"]}
    with torch.no_grad():
        assert torch.equal(made.logits(made.model, given), made.model(input_ids=tokens, **plain).logits)
    assert (given["input_ids"][:, 0] == 2).all(), "the batch stays as it is"


@pytest.mark.parametrize("beams", [1, 3])
def test_every_image_gets_what_hugging_face_generates_for_it_alone(beams: int) -> None:
    made = task(num_beams=beams)
    images = Data().images
    found = made.generate(images, prompt())
    assert len({tuple(row) for row in found.tolist()}) > 3, "the images differ"
    settings = {"num_beams": beams, "max_length": 11, "min_length": 6}
    for image, row in zip(images, found.tolist(), strict=True):
        alone = made.model.generate(pixel_values=image[None], input_ids=prompt(), **settings)[0].tolist()
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {1}
        assert row[:4] == [0, *prompt()[0, 1:4].tolist()]


def test_greedy_search_equals_a_loop_that_counts_the_prompt() -> None:
    model = tiny.build("blip_captioning")
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[1] += 6.0  # so likely an end that the least length matters
    made = task(model, num_beams=1, max_length=9, min_length=7)
    for image in Data().images:
        tokens = [0, *prompt()[0, 1:-1].tolist()]
        while len(tokens) < 9 and tokens[-1] != 1:
            with torch.no_grad():
                logits = model(pixel_values=image[None], input_ids=torch.tensor([tokens])).logits[0, -1]
            if len(tokens) < 7:
                logits[1] = -math.inf
            tokens.append(int(logits.argmax()))
        assert made.generate(image[None], prompt())[0].tolist() == tokens
        assert 8 <= len(tokens) <= 9


def test_captions_come_without_prompt_and_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task()
    cat, plural, ten, red = (WORDS.index(word) for word in ("cat", "##s", "##ten", "red"))
    rows = [[0, 4, 5, 6, red, cat, plural, 1], [0, 4, 5, 6, ten, cat, 1, 1], [0, 4, 5, 6, 1, 1, 1, 1]]
    monkeypatch.setattr(made, "generate", lambda *_: torch.tensor(rows))
    assert made.captions(torch.zeros(3), prompt()) == ["red cats", "ten cat", ""]


def test_an_empty_prompt_starts_with_the_start_token() -> None:
    made = task()
    nothing = tokenizer()("", return_tensors="pt")["input_ids"]
    found = made.generate(Data().images, nothing)
    assert torch.equal(found[:, :1], torch.zeros(IMAGES, 1, dtype=torch.long))
    assert len(made.captions(Data().images, nothing)) == IMAGES


@pytest.mark.parametrize("kinds", [("head_dim", "neuron"), ("head",), ("head", "head_dim", "neuron")])
def test_masked_and_cut_have_one_loss_and_one_caption(kinds: tuple[Any, ...]) -> None:
    made, given = task(), batch()
    made.eval()
    sites = find_sites(made.model, kinds)
    plan = random_plan(sites, seed=3)
    dense = made.generate(Data().images, prompt())
    masks = Masks(made.model, sites)
    masks.write_(mask_values(sites, plan))
    with torch.no_grad():
        loss, tokens = made.loss(given), made.generate(Data().images, prompt())
        masks.detach()
        shrink_(made.model, sites, plan)
        torch.testing.assert_close(made.loss(given), loss, rtol=1e-5, atol=1e-5)
    assert torch.equal(made.generate(Data().images, prompt()), tokens)
    assert not torch.equal(dense, tokens)


def test_retraining_starts_at_the_loss_that_the_search_ended_with(tmp_path: Path) -> None:
    made, at_end = task(), LossAtTheEnd(batch(seed=9))
    made.learn_from(tiny.build("blip_captioning"), Distillation(1.0, 1.0))
    search = ProgressiveSearch(removed=0.5, interval=2, tolerance=0.05)
    sites = find_sites(made.model, search.units)
    search.bind(sites, CostModel(sites, measure(made.model, sites, example_inputs(made.model))), tmp_path / "plan.json")
    trainer(tmp_path, search, at_end, max_epochs=2).fit(made, datamodule=Data())
    assert search.finished
    assert search.plan is not None
    shrink_(made.model, sites, search.plan)
    retrained = task(made.model)
    retrained.eval()
    with torch.no_grad():
        torch.testing.assert_close(retrained.loss(at_end.given), at_end.loss, rtol=1e-5, atol=1e-5)


class Gradients(Callback):
    """Names of parameters that train, with and without a gradient."""

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        trained = {name: p.grad is not None for name, p in pl_module.named_parameters() if p.requires_grad}
        self.without = [name for name, has in trained.items() if not has]
        self.count = len(trained)


@pytest.mark.parametrize("tied", [True, False])
def test_everything_that_trains_gets_a_gradient(tmp_path: Path, tied: bool) -> None:
    config = tiny.blip_config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    gradients = Gradients()
    made = task(BlipForConditionalGeneration(config))
    trainer(tmp_path, gradients, max_steps=1).fit(made, datamodule=Data())
    assert gradients.without == []
    assert gradients.count > 90
    head = made.model.text_decoder.cls.predictions
    assert (head.bias is head.decoder.bias) == head.bias.requires_grad == tied


def first_loss(path: Path, made: Captioning, distillation: Distillation) -> float:
    made = copy.deepcopy(made)
    made.learn_from(tiny.build("blip_captioning", seed=1), distillation)
    run = trainer(path, max_steps=1)
    run.fit(made, datamodule=Data())
    return float(run.callback_metrics["loss"])


def test_distillation_adds_the_divergence_of_the_scored_tokens(tmp_path: Path) -> None:
    made, given, teacher = task(), Data().batches[0], tiny.build("blip_captioning", seed=1)
    terms = []
    with torch.no_grad():
        for row in range(6):
            ours, theirs = (log_probabilities(model, given, row)[3:-1] for model in (made.model, teacher))
            terms += [(q.exp() * (q - p)).sum() for p, q in zip(ours.double(), theirs.double(), strict=True)]
        expected = float(made.loss(given) + 2.0 * torch.stack(terms).mean())
    assert first_loss(tmp_path, made, Distillation(logits=2.0)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def distance_of_states(model: Any, teacher: Any, given: dict[str, Tensor]) -> Tensor:
    """Mean over both models' blocks of the squared distance of their normalised outputs, padding left out."""
    ids = given["input_ids"].clone()
    ids[:, 0] = 0
    blocks = []
    for network in (model, teacher):
        states: list[Tensor] = []
        layers = [*network.vision_model.encoder.layers, *network.text_decoder.bert.encoder.layer]
        hooks = [layer.register_forward_hook(lambda _, __, out, states=states: states.append(out)) for layer in layers]
        network(pixel_values=given["pixel_values"], input_ids=ids, attention_mask=given["attention_mask"])
        for hook in hooks:
            hook.remove()
        blocks.append(states)
    distances = []
    for ours, theirs in zip(*blocks, strict=True):
        distance = 2 - 2 * nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=2)
        text = distance.shape == ids.shape
        distances.append((distance[given["attention_mask"].bool()] if text else distance).mean())
    assert len(distances) == 5
    return torch.stack(distances).mean()


def test_distillation_adds_the_distance_of_hidden_states_without_padding(tmp_path: Path) -> None:
    made, given, teacher = task(), Data().batches[0], tiny.build("blip_captioning", seed=1)
    expected = float(made.loss(given).detach() + 3.0 * distance_of_states(made.model, teacher, given))
    assert first_loss(tmp_path, made, Distillation(features=3.0)) == pytest.approx(expected, rel=1e-5)


@needs_scorers
def test_scores_are_those_of_every_image_s_own_caption(tmp_path: Path) -> None:
    made, data = task(metrics=["bleu_1", "cider"], result_file=str(tmp_path / "out" / "captions.json")), Data()
    found = trainer(tmp_path).test(made, datamodule=data, verbose=False)[0]
    captions = {100 - i: made.captions(image[None], prompt())[0] for i, image in enumerate(data.images)}
    references = {reference.image_id: reference.captions for reference in data.references("test")}
    expected = caption_scores(captions, references, ["bleu_1", "cider"])
    assert found == pytest.approx({f"test/{name}": value for name, value in expected.items()})
    assert expected["bleu_1"] > 0
    rows = json.loads((tmp_path / "out" / "captions.json").read_text())
    assert rows == [{"image_id": image, "caption": caption} for image, caption in captions.items()]


@needs_scorers
def test_validation_scores_its_own_split_and_writes_nothing(tmp_path: Path) -> None:
    made, data = task(metrics=["bleu_1"], result_file=str(tmp_path / "captions.json")), Data()
    found = trainer(tmp_path, limit_val_batches=1.0).validate(made, datamodule=data, verbose=False)[0]
    captions = {100 - i: made.captions(image[None], prompt())[0] for i, image in enumerate(data.images)}
    references = {reference.image_id: reference.captions for reference in data.references("val")}
    assert found["val/bleu_1"] == pytest.approx(caption_scores(captions, references, ["bleu_1"])["bleu_1"])
    assert not (tmp_path / "captions.json").exists()


@needs_scorers
@pytest.mark.slow
def test_two_ranks_train_and_score_as_one(tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        made, data = task(metrics=["bleu_1", "bleu_2"]), Data(6 // ranks)
        assert len({int(b["attention_mask"][half].sum()) for b in data.batches for half in (slice(3), slice(3, 6))}) > 2
        run = trainer(tmp_path, devices=ranks, strategy="ddp_spawn" if ranks == 2 else "auto", limit_val_batches=1.0)
        run.fit(made, datamodule=data)
        scores = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}
        found.append((made.model.state_dict(), scores))
    assert found[0][1] == pytest.approx(found[1][1])
    assert found[0][1]["val/bleu_1"] > 0
    for name, value in found[0][0].items():
        if not name.endswith(("key.bias", "qkv.bias")):  # softmax cancels keys': rounding, which Adam blows up
            torch.testing.assert_close(found[1][0][name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_what_the_scores_need_is_missed_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no java on the PATH; install a Java runtime"):
        Captioning("x").preflight()
    with pytest.raises(FileNotFoundError, match="there is no java on the PATH"):
        trainer(tmp_path).test(task(), datamodule=Data(), verbose=False)
    with pytest.raises(ValueError, match="caption metrics are .'sider'.; choose from .* did you mean 'cider'"):
        Captioning("x", metrics=["sider"]).preflight()


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing is 1.0; it is a share of the target, in \[0, 1\)"):
        Captioning("x", label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"num_beams is 0; give 1 \(greedy\) or more"):
        Captioning("x", num_beams=0)
    with pytest.raises(ValueError, match="min_length is 20 and max_length is 20; give 0 or more tokens, and a"):
        Captioning("x", min_length=20)
    with pytest.raises(ValueError, match="BlipForQuestionAnswering is no captioner; captioning takes a BlipForCondit"):
        Captioning("x").adopt(tiny.build("blip_vqa"), None)
    with pytest.raises(ValueError, match="CLIPModel is no captioner"):
        Captioning("x").adopt(tiny.build("clip"), None)
    with pytest.raises(ValueError, match="max_length is 13, but the model has 12 positions; give at most that many"):
        task(max_length=13)
    model = tiny.build("blip_captioning")
    model.config.text_config.sep_token_id = 7
    with pytest.raises(ValueError, match="the tokenizer ends a text with token 1, but the model stops at 7; set text_"):
        task(model)
    model.config.text_config.bos_token_id = 30522
    with pytest.raises(
        ValueError, match="the decoder's start token is 30522, but the model knows 50 tokens; set text_"
    ):
        task(model)
    short = task(max_length=4, min_length=0, metrics=["bleu_1"])
    for start in (trainer(tmp_path).fit, trainer(tmp_path).test):
        with pytest.raises(ValueError, match="max_length is 4, but the prompt alone has 4 tokens; give more"):
            start(short, datamodule=Data())


def stopped(*_: Any) -> None:
    raise OSError("the java tokeniser gave back 0 of 7 captions")


@needs_scorers
def test_what_fails_on_the_first_rank_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("upop.tasks.captioning.caption_scores", stopped)
    with pytest.raises(OSError, match="the java tokeniser gave back 0 of 7 captions"):
        trainer(tmp_path).test(task(metrics=["bleu_1"]), datamodule=Data(), verbose=False)
