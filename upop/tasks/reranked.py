"""Image-text retrieval with BLIP: contrast and matching to train on, the best candidates re-ranked by matching.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086 (its fine-tuning on retrieval), which UPop, Shi et
al., ICML 2023, https://arxiv.org/abs/2301.13741, compresses. Deviations: the temperature has no weight decay; drawn
negatives follow from seed and step, and with ``all_ranks`` they are the same on any number of ranks.

Shapes: ``B`` pairs of a batch, ``L`` tokens, ``S`` image tokens, ``E`` their width, ``I`` images and ``T`` texts of a
gallery, ``K`` candidates of a query, ``P`` pairs to score.
"""

from __future__ import annotations

import math
import random
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upop.families import text_features
from upop.metrics import reranked_recalls
from upop.tasks.candidates import Encoded, check_k, find_candidates, score_pairs
from upop.tasks.contrast import distil_rows
from upop.tasks.hidden import HiddenStates, distil_hidden, recording
from upop.tasks.matching import MatchingPairs, draw_negatives, match, matching_loss, matching_pairs
from upop.tasks.progress import progress_bar
from upop.tasks.retrieval import Retrieval

TEMPERATURES = (0.001, 0.5)
"""Bounds of the temperature, as BLIP clamps it."""
FIRST_TOKEN = "[ENC]"
"""Token that BLIP's own vocabulary begins a text with where it meets an image; bert-base's has none such."""


class RerankedRetrieval(Retrieval):
    """Train and evaluate BLIP on image-text retrieval, whose best candidates are re-ranked by image-text matching.

    Evaluation encodes every image and every text once. The ``k`` texts most similar to each image and the ``k`` images
    most similar to each text are scored by the matching head; logit plus similarity ranks them before all others, as
    in BLIP's own evaluation. A pair that both ways ask for is scored once, by the rank that encoded its image, whose
    states stay in host memory: ``images * S * E`` numbers over all ranks, 8.9 GB for COCO's 5,000 at 384 pixels in
    fp32. Recalls by similarity alone are logged beside, as ``itc_*``.

    Args:
        checkpoint: Dense model to start from: a Hugging Face directory or hub name of a BlipForImageTextRetrieval.
        negatives: Where hard negatives are drawn from: this rank's ``batch`` or ``all_ranks``, which sends image states
            around.
        temperature: Temperature of the similarities at the start, in [0.001, 0.5]. It is trained, and it is not part of
            the exported model.
        k: Candidates of each query that are re-ranked; at least 10, or all of a smaller gallery, and no more than the
            gallery has images. BLIP takes 256 on COCO and 128 on Flickr30K.
        eval_pairs: Pairs that one forward pass scores at most.
        half_states: Keep the image states of an evaluation in fp16: half the memory, and scores that are rounded in
            their fourth digit.
        **retrieval: As :class:`~upop.tasks.retrieval.Retrieval`.
    """

    def __init__(
        self,
        checkpoint: str,
        negatives: Literal["batch", "all_ranks"] = "batch",
        temperature: float = 0.07,
        k: int = 256,
        eval_pairs: int = 256,
        half_states: bool = False,
        **retrieval: Any,  # noqa: ANN401 (the base class's own, which jsonargparse finds)
    ) -> None:
        super().__init__(checkpoint, **retrieval)
        if negatives not in ("batch", "all_ranks"):
            raise ValueError(f"negatives is {negatives!r}; give 'batch' or 'all_ranks'")
        if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
            raise ValueError(f"temperature is {temperature!r}; give a number in {list(TEMPERATURES)}")
        for name, value in (("k", k), ("eval_pairs", eval_pairs)):
            if value < 1:
                raise ValueError(f"{name} is {value!r}; give 1 or more")
        self.negatives = negatives
        self.k, self.eval_pairs, self.half_states = k, eval_pairs, half_states
        self.temp = nn.Parameter(torch.tensor(float(temperature)))
        self._first_token: int | None = None
        self._seed = 0
        self._encoded: list[Encoded] = []

    def adopt(self, model: nn.Module, processor: Any) -> None:  # noqa: ANN401 (any Hugging Face processor)
        """Take a BLIP, dense or cut, and its processor.

        Where the tokenizer knows ``[ENC]``, texts begin with it when they meet an image, as BLIP trains.

        Raises:
            ValueError: If ``model`` is no BlipForImageTextRetrieval, or has no embedding for ``[ENC]``.
        """
        super().adopt(model, processor)
        tokenizer = getattr(processor, "tokenizer", None)
        self._first_token = tokenizer.get_vocab().get(FIRST_TOKEN) if tokenizer is not None else None
        words = self.model.config.text_config.vocab_size
        if self._first_token is not None and self._first_token >= words:
            raise ValueError(
                f"the tokenizer gives {FIRST_TOKEN} number {self._first_token}, but the model has {words} embeddings; "
                "take tokenizer and model from one directory"
            )

    def _check_model(self, model: nn.Module) -> None:
        """Refuse what has no matching head."""
        from transformers import BlipForImageTextRetrieval

        if not isinstance(model, BlipForImageTextRetrieval):
            raise ValueError(
                f"{type(model).__name__} has no image-text matching; re-ranked retrieval takes a "
                "BlipForImageTextRetrieval, such as 'Salesforce/blip-itm-base-coco'"
            )

    def setup(self, stage: str) -> None:
        """Lightning's hook: check ``k`` before anything is trained or encoded."""
        data = getattr(self.trainer, "datamodule", None)
        splits = {"fit": ("val", "test"), "validate": ("val",), "test": ("test",)}.get(stage, ())
        if stage == "fit" and not self.trainer.limit_val_batches:
            splits = ("test",)
        if hasattr(data, "gallery"):
            self.check_data(data, splits)

    def check_data(self, data: Any, splits: tuple[str, ...] = ("test",)) -> None:  # noqa: ANN401 (a data module)
        """Refuse a ``k`` that the galleries do not have.

        Args:
            data: Data module with ``gallery(split)`` and, for more than one gallery each, ``folds``.
            splits: Which galleries are evaluated.

        Raises:
            ValueError: If ``k`` is out of range.
        """
        for split in splits:
            check_k(self.k, len(data.gallery(split).captions) // getattr(data, "folds", 1), f"split {split!r}")

    def towers(self) -> list[nn.Module]:
        """Both towers; the pairs of an evaluation are scored past the compiled one."""
        return [self.model.vision_model, self.model.text_encoder]

    def carried(self) -> dict[str, Tensor]:
        """The temperature, and what :class:`Retrieval` carries."""
        return super().carried() | {"temp": self.temp}

    def carry(self, state: dict[str, Tensor]) -> None:
        """Take the temperature, and what :class:`Retrieval` carries, of the phase before."""
        super().carry({name: value for name, value in state.items() if name != "temp"})
        if "temp" in state:
            self.temp.data.copy_(state["temp"])

    def on_fit_start(self) -> None:
        """As every task; and note the seed of the run, before a resumed one restores its random state."""
        super().on_fit_start()
        self._seed = torch.initial_seed()

    def scale(self, model: Any) -> Tensor:  # noqa: ANN401 (a BLIP)
        """Factor on the cosine similarities; BLIP itself holds none, so that of the task serves every model."""
        return 1.0 / self.temp

    def features(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised features of both modalities in fp32, ``(B, D)`` each."""
        return self.encode_images(model, batch["pixel_values"])[1], self.encode_texts(model, batch)

    def encode_images(self, model: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 (a BLIP)
        """Image states ``(B, S, E)`` and normalised image features ``(B, D)`` in fp32."""
        states = model.vision_model(pixel_values=pixel_values).last_hidden_state
        return states, F.normalize(model.vision_proj(states[:, 0]).float(), dim=1)

    def encode_texts(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Normalised text features in fp32, ``(B, D)``."""
        return F.normalize(text_features(model, batch["input_ids"], batch["attention_mask"]).float(), dim=1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Contrastive and matching loss of a batch, plus distillation where it is on."""
        self.write_(self.temp, self.temp.detach().clamp(*TEMPERATURES))
        parts = self.losses(batch, batch_idx)
        loss = torch.stack(list(parts.values())).sum()
        self.log_dict({f"loss/{name}": part.detach() for name, part in parts.items()})
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def losses(self, batch: dict[str, Tensor], batch_idx: int = 0) -> dict[str, Tensor]:
        """The parts of the loss by name, scalars: ``contrast``, ``matching`` and, where it is on, ``distillation``.

        Args:
            batch: ``pixel_values``, ``input_ids``, ``attention_mask`` and ``image_index``.
            batch_idx: With seed and step, it decides which negatives are drawn.
        """
        with recording(self.model, self.distillation.features > 0) as hidden:
            states, images = self.encode_images(self.model, batch["pixel_values"])
            texts = self.encode_texts(self.model, batch)
            pairs = self._pairs(images, texts, batch, batch_idx)
            logits = self._match(self.model, states, pairs)
        parts = {
            "contrast": self._contrast_loss(images, texts, self.scale(self.model), batch),
            "matching": matching_loss(logits, pairs.labels),
        }
        if self.distillation.on:
            parts["distillation"] = self._distillation_loss((images, texts), logits, hidden, pairs, batch)
        return parts

    @torch.no_grad()
    def _pairs(self, images: Tensor, texts: Tensor, batch: dict[str, Tensor], batch_idx: int) -> MatchingPairs:
        """The batch of matching; with negatives of all ranks, every rank draws for all and keeps its own."""
        ids, mask, index = self._begin(batch["input_ids"]), batch["attention_mask"], batch["image_index"]
        rows, drawer = torch.arange(len(index), device=index.device), self.global_rank
        if self.negatives == "all_ranks":
            rows, drawer = rows + self.global_rank * len(index), 0
            images, texts, index = map(self._gather, (images, texts, index))
            ids, mask = map(self._gather_wide, (ids, mask))
        generator = torch.Generator(device=images.device)
        key = f"{self._seed} {self.trainer.global_step} {batch_idx} {drawer}"
        generator.manual_seed(random.Random(key).getrandbits(63))
        logits = self.scale(self.model) * images @ texts.t()
        same = index[:, None] == index
        negative_image = draw_negatives(logits.t(), same, generator)
        negative_text = draw_negatives(logits, same, generator)
        return matching_pairs(ids, mask, negative_image, negative_text, rows)

    def _begin(self, input_ids: Tensor) -> Tensor:
        """Texts as they meet images: with BLIP's own first token, where the tokenizer knows it."""
        if self._first_token is None:
            return input_ids
        return torch.cat([torch.full_like(input_ids[:, :1], self._first_token), input_ids[:, 1:]], dim=1)

    def _gather_wide(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, ``(N, L)``, filled with zeros up to the longest of any rank."""
        width = int(self._most(torch.tensor(rows.shape[1], device=rows.device)))
        return self._gather(F.pad(rows, (0, width - rows.shape[1])))

    def _most(self, value: Tensor) -> Tensor:
        """The largest value of any rank, elementwise."""
        return self.trainer.strategy.reduce(value, reduce_op="max")

    def _match(self, model: Any, states: Tensor, pairs: MatchingPairs) -> Tensor:  # noqa: ANN401 (a BLIP)
        """Matching logits of a step's pairs, ``(3B, 2)``, from the states of this rank's images."""
        candidates = self._gather(states) if self.negatives == "all_ranks" else states
        return match(model, candidates[pairs.image], pairs.input_ids, pairs.attention_mask)

    def _distillation_loss(
        self,
        features: tuple[Tensor, Tensor],
        logits: Tensor,
        hidden: HiddenStates,
        pairs: MatchingPairs,
        batch: dict[str, Tensor],
    ) -> Tensor:
        """What similarities, matching logits, features and hidden states of the same pairs learn from the teacher's.

        Student and teacher share the temperature, which distillation does not train: softer for both would pay.
        """
        weights, scale = self.distillation, self.scale(self.model).detach()
        with torch.no_grad(), recording(self.teacher, weights.features > 0) as taught:
            states, images = self.encode_images(self.teacher, batch["pixel_values"])
            texts = self.encode_texts(self.teacher, batch)
            target = self._match(self.teacher, states, pairs)
        loss = self._distil_features(features, (images, texts), scale, scale)
        if weights.logits:
            loss = loss + weights.logits * distil_rows(logits, target)
        if weights.features:  # a text block's states are those of its last pass, with the images
            masks = {"text_encoder": pairs.attention_mask}
            loss = loss + weights.features * distil_hidden(hidden, taught, masks, self._over_ranks)
        return loss

    def _start_evaluation(self) -> None:
        super()._start_evaluation()
        self._encoded = [Encoded(self.device)]

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        recall, encoded, index = self._recall[0], self._encoded[0], batch["index"]
        if "pixel_values" in batch:
            states, images = self.encode_images(self.model, batch["pixel_values"])
            recall.update_images(images, index)
            encoded.add(index, images=images)
            encoded.keep(index, states.half() if self.half_states else states)
        else:
            texts = self.encode_texts(self.model, batch)
            recall.update_texts(texts, index, batch["image_index"])
            tokens = {"ids": self._begin(batch["input_ids"]), "mask": batch["attention_mask"]}
            encoded.add(index, texts=texts, owner=batch["image_index"][:, None], **tokens)

    def _recalls(self) -> dict[str, float]:
        """Recalls of the re-ranked candidates, and of the similarities alone as ``itc_*``, in percent."""
        alone = super()._recalls()  # refuses a split of which rows are missing
        folds, encoded = self._recall[0].folds, self._encoded.pop()
        images, texts = (encoded.everywhere(name, torch.float32, self._most) for name in ("images", "texts"))
        owner, ids, mask = (encoded.everywhere(name, torch.long, self._most) for name in ("owner", "ids", "mask"))
        size = len(images) // folds
        check_k(self.k, size, "the data")
        found = []
        for fold in range(folds):
            rows = torch.nonzero(owner[:, 0] // size == fold).flatten()
            candidates = find_candidates(images[fold * size : (fold + 1) * size], texts[rows], self.k)
            image, text, place = candidates.pairs()
            matching = self._score(encoded.states, image + fold * size, text, ids[rows], mask[rows])
            of_texts, of_images = candidates.scores(matching, place)
            own = owner[rows, 0] - fold * size
            found.append(reranked_recalls(candidates.texts, of_texts, candidates.images, of_images, own))
        reranked = {name: math.fsum(recalls[name] for recalls in found) / folds for name in found[0]}
        return reranked | {f"itc_{name}": value for name, value in alone.items()}

    @torch.no_grad()
    def _score(
        self, states: dict[int, Tensor], image: Tensor, text: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Matching score of each pair, ``(P,)``, every rank scoring those of the images that it has encoded."""
        here = torch.isin(image, torch.tensor(list(states), dtype=torch.long, device=image.device))
        mine = torch.nonzero(here).flatten()
        found = torch.full((len(image),), -torch.inf, device=image.device)
        with (
            self.trainer.precision_plugin.forward_context(),
            progress_bar(self.trainer, "re-ranking", len(mine)) as advance,
        ):
            found[mine] = score_pairs(
                self.model, states, image[mine], text[mine], input_ids, attention_mask, self.eval_pairs, advance
            )
        return self._most(found)
