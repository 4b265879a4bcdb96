"""Visual reasoning over two images (NLVR2) with BLIP: is a statement true? Losses, distillation and both scores.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, section 4.5, which UPop, Shi et al., ICML 2023,
https://arxiv.org/abs/2301.13741, compresses. Unlike theirs, the evaluation counts every pair once on any number of
ranks, and reports the consistency too.

Shapes: ``B`` pairs of a batch, ``L`` tokens of a statement, ``S`` pixels along a side.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from upop.families.blip_nlvr import BlipForVisualReasoning
from upop.files import write_text
from upop.metrics.gathering import gather_by_index
from upop.metrics.reasoning import nlvr_accuracy
from upop.metrics.results import check_complete, check_writable
from upop.tasks.contrast import distil_rows
from upop.tasks.taught import TaughtTask


class VisualReasoning(TaughtTask):
    """Train and evaluate BLIP on statements about two images that are true or false.

    Args:
        checkpoint: Dense model to start from: a directory of a ``BlipForVisualReasoning``. Or of a
            ``BlipForImageTextRetrieval``, such as ``Salesforce/blip-itm-base-coco``, whose towers the finetuning then
            starts with, as BLIP's authors do: both cross-attentions begin as its one, the head at random.
        from_scratch: Take only the architecture and the processor of ``checkpoint``, with random weights.
        compile: Compile both towers with ``torch.compile``; the first steps take longer.
        result_file: Where to write the predictions of the test split, as the CSV that NLVR2's official evaluation
            reads: ``identifier,True`` or ``identifier,False``. Each evaluation of a run replaces it, so the last
            model's stay.
    """

    def __init__(
        self, checkpoint: str, from_scratch: bool = False, compile: bool = False, result_file: str | None = None
    ) -> None:
        super().__init__(checkpoint, from_scratch, compile)
        self.result_file = result_file
        self._predictions: dict[int, bool] = {}

    def preflight(self) -> None:
        """Refuse a result file that cannot be written."""
        check_writable(self.result_file)

    def start_from(self, model: nn.Module) -> nn.Module:
        """The model itself, or one for two images that is made of a BLIP for retrieval."""
        from upop.families import growing  # with all of Hugging Face's BLIP, which other tasks need not wait for

        return growing.reasoning(model) if growing.can_grow(model) else model

    def adopt(self, model: nn.Module, processor: Any) -> None:  # noqa: ANN401 (any Hugging Face processor)
        """Take a BLIP for visual reasoning, dense or cut, and its processor.

        Raises:
            ValueError: If ``model`` is none.
        """
        if not isinstance(model, BlipForVisualReasoning):
            raise ValueError(
                f"{type(model).__name__} does not judge statements about two images; visual reasoning takes a "
                "BlipForVisualReasoning, which upop itself defines"
            )
        super().adopt(model, processor)

    def towers(self) -> list[nn.Module]:
        """Both towers."""
        return [self.model.visual_encoder, self.model.text_encoder]

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Logits of false and true, ``(B, 2)`` in fp32.

        Args:
            model: The model or its teacher.
            batch: ``pixel_values (B, 2, 3, S, S)``, ``input_ids`` and ``attention_mask`` ``(B, L)``.
        """
        names = ("pixel_values", "input_ids", "attention_mask")
        return model(**{name: batch[name] for name in names}).logits.float()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of a batch, in any mode.

        Args:
            batch: As of :meth:`logits`, and ``labels (B,)``, 1 where the statement is true.
        """
        return F.cross_entropy(self.logits(self.model, batch), batch["labels"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch, plus distillation where it is on."""
        with self.recording(self.model) as states:
            logits = self.logits(self.model, batch)
        loss = F.cross_entropy(logits, batch["labels"])
        if self.distillation.on:
            masks = {"text_encoder": batch["attention_mask"]}
            loss = loss + self.taught_loss(
                states, lambda model: self.logits(model, batch), lambda target: distil_rows(logits, target), masks
            )
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _start_evaluation(self) -> None:
        self._predictions = {}

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        true = self.logits(self.model, batch).argmax(1).bool()
        self._predictions.update(zip(batch["index"].tolist(), true.tolist(), strict=True))

    def _report(self, split: Literal["val", "test"]) -> None:
        pairs = self.trainer.datamodule.pairs(split)
        found = gather_by_index(self._predictions)
        check_complete(found, range(len(pairs)), "pair")
        if split == "test" and self.result_file is not None and self.trainer.is_global_zero:
            rows = [f"{pairs[number].identifier},{true}\n" for number, true in found.items()]
            write_text(self.result_file, "".join(rows))
        labels, groups = [pair.label for pair in pairs], [pair.group for pair in pairs]
        self._log_scores(split, nlvr_accuracy(list(found.values()), labels, groups))
        self._predictions = {}
