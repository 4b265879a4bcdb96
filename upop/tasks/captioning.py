"""Image captioning with BLIP: prompted language modelling, beam search, the scores of COCO captions, distillation.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, its captioning fine-tuning, which UPop, Shi et
al., ICML 2023, https://arxiv.org/abs/2301.13741, compresses. Two deviations: over several ranks a batch's loss is the
mean over the tokens of all ranks, not the mean of the ranks' means; and transformers' beam search divides the
log-probability of a caption by its generated tokens, where the version that the authors used counted the prompt too.

Shapes: ``B`` images, ``L`` tokens, ``P`` tokens of the prompt and both special ones, ``T`` scored tokens of a batch,
``V`` vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from upop.metrics.captions import caption_scores, check_metrics, write_results
from upop.metrics.gathering import gather_by_index
from upop.metrics.results import check_writable
from upop.tasks.contrast import distil_rows
from upop.tasks.taught import TaughtTask
from upop.tasks.text_decoder import check_tokens, freeze_unread_


class Captioning(TaughtTask):
    """Train and evaluate BLIP's captioner: an image encoder and a text decoder that attends to it.

    Args:
        checkpoint: Dense model to start from: a Hugging Face directory or hub name.
        from_scratch: Take only the architecture and the processor of ``checkpoint``, with random weights.
        compile: Compile the image encoder with ``torch.compile``; the first steps take longer.
        label_smoothing: Share of the target that is spread over the whole vocabulary, in [0, 1).
        num_beams: Beams of the search; 1 takes the likeliest token each time.
        max_length: Tokens of a generated caption at most, the start token and the prompt counted.
        min_length: Tokens before the end token at least, counted likewise.
        metrics: Scores to compute. Default: all that run on this machine, and a warning names the others.
        result_file: Where to write the captions of the test split, as JSON in COCO's result format. Each evaluation of
            a run replaces it, so the last model's stay.
    """

    def __init__(
        self,
        checkpoint: str,
        from_scratch: bool = False,
        compile: bool = False,
        label_smoothing: float = 0.1,
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        metrics: list[str] | None = None,
        result_file: str | None = None,
    ) -> None:
        super().__init__(checkpoint, from_scratch, compile)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing!r}; it is a share of the target, in [0, 1)")
        if num_beams < 1:
            raise ValueError(f"num_beams is {num_beams!r}; give 1 (greedy) or more")
        if not 0 <= min_length < max_length:
            raise ValueError(
                f"min_length is {min_length!r} and max_length is {max_length!r}; give 0 or more tokens, and a larger "
                "max_length"
            )
        self.label_smoothing = label_smoothing
        self.num_beams, self.max_length, self.min_length = num_beams, max_length, min_length
        self.metrics, self.result_file = metrics, result_file
        self._prompt: list[Tensor] = []
        self._captions: dict[int, str] = {}

    def preflight(self) -> None:
        """Refuse scores that this machine cannot compute, and a result file that cannot be written.

        Raises:
            ValueError: If a metric is unknown, or the file cannot be written.
            FileNotFoundError: If Java, a package or a file is missing that the scores need.
        """
        check_writable(self.result_file)
        with warnings.catch_warnings():
            if rank_zero_only.rank:  # one rank is enough to say what is left out
                warnings.simplefilter("ignore")
            check_metrics(self.metrics)

    def adopt(self, model: nn.Module, processor: Any) -> None:  # noqa: ANN401 (any Hugging Face processor)
        """Take a captioner, dense or cut, and its processor.

        Raises:
            ValueError: If ``model`` is no BLIP captioner, has too few positions for ``max_length``, or begins or ends a
                caption with a token that cannot be.
        """
        from transformers import BlipForConditionalGeneration

        if not isinstance(model, BlipForConditionalGeneration):
            raise ValueError(
                f"{type(model).__name__} is no captioner; captioning takes a BlipForConditionalGeneration, such as "
                "'Salesforce/blip-image-captioning-base'"
            )
        text = model.config.text_config
        if self.max_length > text.max_position_embeddings:
            raise ValueError(
                f"max_length is {self.max_length}, but the model has {text.max_position_embeddings} positions; give at "
                "most that many"
            )
        check_tokens(text, processor)
        super().adopt(model, processor)
        freeze_unread_(model.text_decoder)

    def towers(self) -> list[nn.Module]:
        """The image encoder; the decoder's length changes with every generated token."""
        return [self.model.vision_model]

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Logits of the token after each token, ``(B, L, V)`` in fp32.

        Args:
            model: The captioner or its teacher.
            batch: ``pixel_values``, and ``input_ids`` and ``attention_mask`` ``(B, L)`` of prompt and caption, of which
                the decoder's start token replaces the first.
        """
        tokens = batch["input_ids"].clone()
        tokens[:, 0] = self.model.config.text_config.bos_token_id
        found = model(pixel_values=batch["pixel_values"], input_ids=tokens, attention_mask=batch["attention_mask"])
        return found.logits.float()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the next token, the mean over the scored tokens of a batch, in any mode.

        Args:
            batch: As of :meth:`logits`, and ``prompt_length ()``, the tokens in front that are not scored.
        """
        return self._loss(self.logits(self.model, batch), batch)

    def _loss(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        scored = _scored(batch)
        targets = batch["input_ids"][:, 1:][scored]  # (T,)
        return F.cross_entropy(logits[:, :-1][scored], targets, label_smoothing=self.label_smoothing)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Language modelling loss of a batch, plus distillation where it is on."""
        with self.recording(self.model) as states:
            logits = self.logits(self.model, batch)
        share = self._share(batch)
        loss = share * self._loss(logits, batch)
        if self.distillation.on:
            masks, scored = {"text_decoder": batch["attention_mask"]}, _scored(batch)

            def divergence(target: Tensor) -> Tensor:
                return share * distil_rows(logits[:, :-1][scored], target[:, :-1][scored])  # (T, V) each

            loss = loss + self.taught_loss(states, lambda model: self.logits(model, batch), divergence, masks)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _share(self, batch: dict[str, Tensor]) -> Tensor:
        """Scored tokens of this rank over their mean of all ranks: DDP's mean is then the mean over all tokens."""
        count = _scored(batch).sum().float()
        return count / self._over_ranks(count)

    @torch.no_grad()
    def generate(self, pixel_values: Tensor, prompt: Tensor) -> Tensor:
        """Tokens of a caption per image, found by beam search: start token, prompt, caption, end token, padding.

        Args:
            pixel_values: Images, ``(B, 3, H, W)``.
            prompt: The prompt as the tokenizer gives it, special tokens at both ends, ``(1, P)``.
        """
        prompts = prompt.expand(len(pixel_values), -1).clone()  # the model writes into it
        found: Tensor = self.model.generate(
            pixel_values=pixel_values,
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=self.num_beams,
            max_length=self.max_length,
            min_length=self.min_length,
            do_sample=False,
        )
        return found

    def captions(self, pixel_values: Tensor, prompt: Tensor) -> list[str]:
        """A caption per image, without the prompt. Arguments as of :meth:`generate`."""
        tokens = self.generate(pixel_values, prompt)
        tokenizer = self.processor.tokenizer
        start = tokenizer.decode(prompt[0, 1:], skip_special_tokens=True)
        # without the start token, which BLIP's model knows but its tokenizer may not
        texts = tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)
        return [text.removeprefix(start).strip() for text in texts]

    def on_fit_start(self) -> None:
        """Refuse a prompt that leaves no room for a caption before the training, not after it."""
        self._prompt_tokens()
        super().on_fit_start()

    def _start_evaluation(self) -> None:
        self._prompt, self._captions = [self._prompt_tokens().to(self.device)], {}
        self.preflight()  # before the captions of thousands of images, where nobody called it earlier

    def _prompt_tokens(self) -> Tensor:
        tokens: Tensor = self.trainer.datamodule.prompt_tokens()["input_ids"]
        length = tokens.shape[1] - 1
        if length >= self.max_length:
            raise ValueError(f"max_length is {self.max_length}, but the prompt alone has {length} tokens; give more")
        return tokens

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        captions = self.captions(batch["pixel_values"], self._prompt[0])
        self._captions.update(zip(batch["index"].tolist(), captions, strict=True))

    def _report(self, split: Literal["val", "test"]) -> None:
        found = gather_by_index(self._captions)
        outcome: Any = None
        if self.trainer.is_global_zero:
            try:
                outcome = self._scores(split, found)
            except (OSError, ValueError) as error:
                outcome = error
        outcome = self.trainer.strategy.broadcast(outcome)
        if isinstance(outcome, Exception):
            raise outcome  # by every rank, so that none waits for one that has stopped
        self._log_scores(split, outcome)
        self._captions = {}

    def _scores(self, split: str, found: dict[int, str]) -> dict[str, float]:
        """Scores of the captions of a whole split, by image number in it."""
        images = self.trainer.datamodule.references(split)
        captions = {images[number].image_id: caption for number, caption in found.items()}
        references = {image.image_id: image.captions for image in images}
        if split == "test" and self.result_file is not None:
            write_results(self.result_file, captions, [image.image_id for image in images])
        return caption_scores(captions, references, self.metrics)


def _scored(batch: dict[str, Tensor]) -> Tensor:
    """Whether the next token of each token is scored: of the caption, neither prompt nor padding, ``(B, L - 1)``."""
    place = torch.arange(1, batch["input_ids"].shape[1], device=batch["input_ids"].device)
    return batch["attention_mask"][:, 1:].bool() & (place >= batch["prompt_length"])
