"""Visual question answering: questions with weighted answers to train on, and candidate answers to rank.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, its VQA fine-tuning: every different answer to a
question is a target, weighted by the share of people who gave it.

Shapes: ``B`` questions of a batch, ``L`` tokens of a question, ``La`` tokens of an answer, ``A`` different answers of a
batch in a row, ``N`` candidate answers, ``S`` pixels along a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from upop.data.annotations import Split
from upop.data.base import TaskDataModule
from upop.data.images import Images
from upop.data.sampling import Batch, Samples, drawing
from upop.data.texts import Texts, clean_question
from upop.data.transforms import ImageTransform, evaluation_pixels, training_transform
from upop.data.vqa_records import Questions


@dataclass(frozen=True)
class QuestionedImages:
    """Questions of a split, and the images they are about.

    Attributes:
        questions: The questions; their numbers of images are those of ``images``.
        images: The images.
    """

    questions: Questions
    images: Images

    def load(self, number: int) -> Image.Image:
        """The image of the question with this number, as RGB."""
        return self.images.load(int(self.questions.image[number]))

    def prepare(self, processor: Any) -> None:  # noqa: ANN401 (transformers has no common type)
        """Prepare the images for a model."""
        self.images.prepare(processor)


class VqaDataModule(TaskDataModule[QuestionedImages]):
    """Loaders for visual question answering.

    Training batches hold ``pixel_values (B, 3, S, S)``, ``input_ids`` and ``attention_mask`` ``(B, L)`` of the
    questions; ``answer_ids`` and ``answer_mask`` ``(A, La)`` of the different answers to them, in a row;
    ``answer_weights (A,)``; and ``answer_question (A,)``, the row of the question that each answers. Evaluation batches
    hold ``pixel_values``, ``input_ids``, ``attention_mask`` and ``index (B,)``.

    Args:
        clean_questions: Lower-case the questions, strip punctuation and keep 50 words, as BLIP does. What
            :meth:`questions` returns stays as it was written.
        **shared: As :class:`~upop.data.base.TaskDataModule`.
    """

    def __init__(self, clean_questions: bool = True, **shared: Any) -> None:  # noqa: ANN401 (the base class's own)
        super().__init__(**shared)
        self.clean_questions = clean_questions
        self._answers: list[str] = []
        """The candidate answers; opening the splits sets them."""

    @property
    def answers(self) -> list[str]:
        """The candidate answers, ``N`` of them."""
        self.check()
        return self._answers

    def answer_tokens(self) -> Batch:
        """``input_ids`` and ``attention_mask`` of the candidate answers, ``(N, La)``."""
        texts = self._texts("candidates", lambda: self.answers)
        return texts.batch([texts[number] for number in range(len(texts))], full=False)

    def questions(self, split: Split) -> Questions:
        """The questions of a split, in order, with the answers that people gave.

        Raises:
            ValueError: If there is no such split.
        """
        return self._content(split).questions

    def train_dataloader(self) -> DataLoader:
        """Batches of questions with their answers, shuffled by the seed and the epoch."""
        content = self._ready("train")
        answers = self._texts("answers", lambda: content.questions.words)
        transform = training_transform(self.processor, self.augment, self.flip)
        return self._train_loader(_TrainQuestions(content, self._asked("train"), answers, transform, self.seed))

    def _eval_loaders(self, split: Split) -> DataLoader:
        return self._eval_loader(_EvalQuestions(self._ready(split), self._asked(split), self.processor))

    def _asked(self, split: Split) -> Texts:
        """Questions of a split as tokens."""

        def make() -> list[str]:
            texts = self.questions(split).texts
            return [clean_question(text) for text in texts] if self.clean_questions else list(texts)

        return self._texts(split, make)


@dataclass
class _Sample:
    pixels: Tensor
    question: Tensor
    answers: dict[int, float]


class _TrainQuestions(Samples):
    """Questions with their answers, indexed by ``(epoch, question)``.

    Args:
        content: Questions and images.
        asked: The questions, tokenised.
        answers: The answers, tokenised, as the questions number them.
        transform: What is done to an image; it draws from torch's global generator.
        seed: Seed of the augmentation.
    """

    def __init__(
        self, content: QuestionedImages, asked: Texts, answers: Texts, transform: ImageTransform, seed: int
    ) -> None:
        self.content, self.asked, self.answers = content, asked, answers
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.content.questions)

    def __getitem__(self, key: tuple[int, int] | int) -> _Sample:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        with drawing(self.seed, epoch, number):
            pixels = self.transform(self.content.load(number))
        return _Sample(pixels, self.asked[number], self.content.questions.weighted(number))

    def collate(self, samples: list[_Sample]) -> Batch:
        """Samples to a batch."""
        answers = [answer for sample in samples for answer in sample.answers]
        told = self.answers.batch([self.answers[answer] for answer in answers], full=False)
        rows = [row for row, sample in enumerate(samples) for _ in sample.answers]
        return {
            "pixel_values": torch.stack([sample.pixels for sample in samples]),
            **self.asked.batch([sample.question for sample in samples], full=False),
            "answer_ids": told["input_ids"],
            "answer_mask": told["attention_mask"],
            "answer_weights": torch.tensor([weight for sample in samples for weight in sample.answers.values()]),
            "answer_question": torch.tensor(rows),
        }


class _EvalQuestions(Samples):
    """The questions of a split by their number, images prepared by the processor a batch at a time.

    Args:
        content: Questions and images.
        asked: The questions, tokenised.
        processor: The model's processor.
    """

    def __init__(self, content: QuestionedImages, asked: Texts, processor: Any) -> None:  # noqa: ANN401
        self.content, self.asked, self.processor = content, asked, processor

    def __len__(self) -> int:
        return len(self.content.questions)

    def __getitem__(self, number: int) -> tuple[int, Image.Image]:
        return number, self.content.load(number)

    def collate(self, items: list[tuple[int, Image.Image]]) -> Batch:
        """Questions to a batch."""
        return {
            "pixel_values": evaluation_pixels(self.processor, [image for _, image in items]),
            **self.asked.batch([self.asked[number] for number, _ in items], full=False),
            "index": torch.tensor([number for number, _ in items]),
        }
