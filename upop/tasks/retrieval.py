"""Image-text retrieval with a dual encoder: contrastive training, distillation, recalls.

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741, section 4 (retrieval); momentum encoders, queue
and soft targets as in BLIP, https://arxiv.org/abs/2201.12086.

Shapes: ``B`` pairs of a batch, ``L`` tokens, ``D`` feature size, ``Q`` places of the queue.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upop.families import image_features, text_features
from upop.messages import some
from upop.metrics import RetrievalRecall
from upop.tasks.base import frozen_copy, moving_average_
from upop.tasks.contrast import contrastive, distil_features, distil_logits, positives, soft_contrastive
from upop.tasks.evaluated import EvaluatedTask

MAX_LOGIT_SCALE = 4.6052  # ln 100, as OpenAI's CLIP clamps it


class Retrieval(EvaluatedTask):
    """Train and evaluate a dual encoder (CLIP, SigLIP, ViT + BERT) on image-text retrieval.

    Args:
        checkpoint: Dense model to start from: a Hugging Face directory or hub name.
        from_scratch: Take only the architecture and the processor of ``checkpoint``, with random weights.
        compile: Compile the towers with ``torch.compile``; the first steps take longer.
        contrast: ``batch`` contrasts the pairs of the batch (over all ranks); ``queue`` adds momentum encoders, a
            queue of their features and soft targets, as the authors train.
        queue_size: Pairs that the queue holds.
        momentum: Share of the momentum encoders that stays at each step, in [0, 1).
        soft_targets: Weight of the momentum encoders' distribution in the target, in [0, 1]; it rises over the first
            epoch.
    """

    def __init__(
        self,
        checkpoint: str,
        from_scratch: bool = False,
        compile: bool = False,
        contrast: Literal["batch", "queue"] = "batch",
        queue_size: int = 57600,
        momentum: float = 0.995,
        soft_targets: float = 0.4,
    ) -> None:
        super().__init__(checkpoint, from_scratch, compile)
        if contrast not in ("batch", "queue"):
            raise ValueError(f"contrast is {contrast!r}; give 'batch' or 'queue'")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum is {momentum!r}; it is the share that stays, in [0, 1)")
        if not 0.0 <= soft_targets <= 1.0:
            raise ValueError(f"soft_targets is {soft_targets!r}; it is a weight in [0, 1]")
        if queue_size < 1:
            raise ValueError(f"queue_size is {queue_size!r}; give the number of pairs that the queue holds, 1 or more")
        self.contrast = contrast
        self.queue_size = queue_size
        self.momentum = momentum
        self.soft_targets = soft_targets
        self.momentum_model: Any = None
        self._recall: list[RetrievalRecall] = []

    def adopt(self, model: nn.Module, processor: Any) -> None:  # noqa: ANN401 (any Hugging Face processor)
        """Take a model, dense or cut, and its processor.

        Raises:
            ValueError: If ``model`` is none that this task trains.
        """
        self._check_model(model)
        super().adopt(model, processor)
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.requires_grad_(False)  # SigLIP's own loss has it, these not; DDP wants every gradient
        if self.contrast == "queue":
            self.momentum_model = frozen_copy(model)
            size = _feature_size(model)
            for name in ("image_queue", "text_queue"):
                self.register_buffer(name, F.normalize(torch.randn(self.queue_size, size), dim=1))
            self.register_buffer("queue_index", torch.full((self.queue_size,), -1, dtype=torch.long))
            self.register_buffer("queue_place", torch.zeros((), dtype=torch.long))

    def _check_model(self, model: nn.Module) -> None:
        """Refuse what is no dual encoder with a logit scale."""
        if not all(hasattr(model, name) for name in ("get_image_features", "get_text_features", "logit_scale")):
            advice = "; use upop.tasks.RerankedRetrieval for it" if hasattr(model, "itm_head") else ""
            raise ValueError(
                f"{type(model).__name__} is no dual encoder; retrieval takes "
                f"CLIP, SigLIP or a VisionTextDualEncoderModel{advice}"
            )

    def towers(self) -> list[nn.Module]:
        """Both towers."""
        return [self.model.vision_model, self.model.text_model]

    def pruned_modules(self) -> list[nn.Module]:
        """The model and, with a queue, its momentum copy."""
        return [self.model] if self.momentum_model is None else [self.model, self.momentum_model]

    def carried(self) -> dict[str, Tensor]:
        """The momentum encoders and the queue."""
        if self.momentum_model is None:
            return {}
        state = {f"momentum_model.{name}": value for name, value in self.momentum_model.state_dict().items()}
        return state | {
            name: getattr(self, name) for name in ("image_queue", "text_queue", "queue_index", "queue_place")
        }

    def carry(self, state: dict[str, Tensor]) -> None:
        """Take the momentum encoders and the queue of the phase before."""
        if self.momentum_model is None:
            super().carry(state)
        elif state:
            expected = set(Retrieval.carried(self))  # what a subclass carries besides is its own business
            if set(state) != expected:
                raise ValueError(
                    f"the state of the phase before lacks {some(sorted(expected - set(state)))} and has unexpected "
                    f"{some(sorted(set(state) - expected))}; run that phase again with the same model and contrast"
                )
            self.load_state_dict(state, strict=False)  # the model itself is not among it

    def features(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised features of both modalities in fp32, ``(B, D)`` each."""
        images = image_features(model, batch["pixel_values"]).float()
        texts = text_features(model, batch["input_ids"], batch["attention_mask"]).float()
        return F.normalize(images, dim=1), F.normalize(texts, dim=1)

    def scale(self, model: Any) -> Tensor:  # noqa: ANN401 (any dual encoder)
        """Factor on the cosine similarities, at most 100."""
        return model.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp().squeeze()

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Move the momentum encoders, outside of the step: within one their shares may be on their way already."""
        if self.momentum_model is not None:
            moving_average_(self.momentum_model, self.model, self.momentum)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Contrastive loss of a batch, plus distillation where it is on."""
        images, texts = self.features(self.model, batch)
        scale = self.scale(self.model)
        loss = self._contrast_loss(images, texts, scale, batch)
        if self.distillation.on:
            with torch.no_grad():
                teacher, teacher_scale = self.features(self.teacher, batch), self.scale(self.teacher)
            distillation = self._distil_features((images, texts), teacher, scale, teacher_scale)
            self.log("loss/distillation", distillation.detach())
            loss = loss + distillation
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _gather(self, value: Tensor) -> Tensor:
        """Rows of all ranks, with gradients for this rank's own and the others'."""
        if self.trainer.world_size == 1:
            return value
        return self.all_gather(value, sync_grads=value.requires_grad).flatten(0, 1)

    def _contrast_loss(self, images: Tensor, texts: Tensor, scale: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Contrast against the batch of all ranks and, where there is one, the queue."""
        index = self._gather(batch["image_index"])
        if self.contrast == "queue":
            return self._queue_loss(images, texts, scale, batch, index)
        return contrastive(self._gather(images), self._gather(texts), scale, index)

    def _distil_features(
        self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], scale: Tensor, teacher_scale: Tensor
    ) -> Tensor:
        """What the normalised features of this rank's pairs and their similarities learn from the teacher's."""
        weights = self.distillation
        images, texts = map(self._gather, student)
        with torch.no_grad():
            target_images, target_texts = map(self._gather, teacher)
            target = teacher_scale * target_images @ target_texts.t()
        loss = scale.new_zeros(())
        if weights.logits:
            loss = loss + weights.logits * distil_logits(scale * images @ texts.t(), target)
        if weights.features:
            distance = 0.5 * (distil_features(images, target_images) + distil_features(texts, target_texts))
            loss = loss + weights.features * distance
        return loss

    def _queue_loss(
        self, images: Tensor, texts: Tensor, scale: Tensor, batch: dict[str, Tensor], index: Tensor
    ) -> Tensor:
        """Soft-target contrast against the batch of all ranks and the queue (ALBEF, BLIP)."""
        with torch.no_grad():
            image_m, text_m = self.features(self.momentum_model, batch)
            gathered = self._gather(image_m), self._gather(text_m)
            all_images = torch.cat([gathered[0], self.image_queue])
            all_texts = torch.cat([gathered[1], self.text_queue])
            target = positives(batch["image_index"], torch.cat([index, self.queue_index]))
        steps = self.trainer.estimated_stepping_batches / self.training_settings.epochs
        softness = self.soft_targets * min(1.0, self.trainer.global_step / steps)
        loss = 0.5 * (
            soft_contrastive(images, all_texts, image_m, scale, target, softness)
            + soft_contrastive(texts, all_images, text_m, scale, target, softness)
        )
        self._enqueue(*gathered, index)
        return loss

    @torch.no_grad()
    def _enqueue(self, images: Tensor, texts: Tensor, index: Tensor) -> None:
        """Replace the oldest pairs of the queue, round and round."""
        count = min(len(index), self.queue_size)
        places = (self.queue_place + torch.arange(count, device=index.device)) % self.queue_size
        self.image_queue[places] = images[:count]
        self.text_queue[places] = texts[:count]
        self.queue_index[places] = index[:count]
        self.queue_place.copy_((self.queue_place + count) % self.queue_size)

    def _start_evaluation(self) -> None:
        folds = int(getattr(self.trainer.datamodule, "folds", 1))
        self._recall = [RetrievalRecall(folds=folds).to(self.device)]

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        recall = self._recall[0]
        if "pixel_values" in batch:
            images = image_features(self.model, batch["pixel_values"]).float()
            recall.update_images(F.normalize(images, dim=1), batch["index"])
        else:
            texts = text_features(self.model, batch["input_ids"], batch["attention_mask"]).float()
            recall.update_texts(F.normalize(texts, dim=1), batch["index"], batch["image_index"])

    def _report(self, split: Literal["val", "test"]) -> None:
        self._log_scores(split, self._recalls())
        self._recall = []

    def _recalls(self) -> dict[str, float]:
        """Recalls of the split that has just been encoded, by name, in percent."""
        return {name: float(value) for name, value in self._recall[0].compute().items()}


def _feature_size(model: Any) -> int:  # noqa: ANN401 (any dual encoder)
    """Size of the shared feature space."""
    projection = getattr(model, "text_projection", getattr(model, "text_proj", None))
    if projection is not None:
        return int(projection.weight.shape[0])
    return int(model.config.text_config.projection_size)
