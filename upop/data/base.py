"""What a data module of any task needs: settings, one check up front, a processor, loaders that resume and share out.

:class:`TaskDataModule` knows epochs, ranks and tokenised texts. What a split holds is its subclasses' business: each
task has one that makes batches of it, and each data set one that opens it.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from upop.data.annotations import SPLITS, Split
from upop.data.sampling import EvalLoader, EvalSampler, Samples, TrainLoader, train_loader
from upop.data.settings import at_least, one_of
from upop.data.texts import Texts, text_limit
from upop.data.transforms import AUGMENTS, Augment


class Prepared(Protocol):
    """What a split holds."""

    def prepare(self, processor: Any) -> None:  # noqa: ANN401 (transformers has no common type)
        """Called before the images are loaded for a model, ahead of any worker; a second call is cheap."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile: millions of objects that all stay would be gone through again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


Content = TypeVar("Content", bound=Prepared)


class TaskDataModule(LightningDataModule, ABC, Generic[Content]):
    """Loaders over train, val and test for one task.

    Call :meth:`check` first (it needs no model), :meth:`set_processor` next, and then the loaders. In a distributed run
    the ranks share all evaluation out, rows come in any order, and ``index`` says which is which. A rank for which no
    sample is left gets one batch that is empty.

    Args:
        batch_size: Training samples per process and step.
        eval_batch_size: Samples per process and evaluation step.
        num_workers: Worker processes per loader; 0 loads in the training process. The batches are the same.
        augment: ``paper`` (BLIP's and UPop's: crops of 50-100 % of the area, two of ten mild operations), ``light``
            (square crops of 64-100 %, brightness and contrast within 20 %) or ``none``.
        flip: Mirror every second training image. Texts are not mirrored with it: set it to false where *left* and
            *right* matter.
        text_length: Tokens per text at most, special ones included. Default: the tokenizer's own limit.
        seed: Seed of the order, of all that is drawn and of the augmentation; by default ``seed_everything``.
    """

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 2,
        augment: Augment = "paper",
        flip: bool = True,
        text_length: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        at_least(0, num_workers=num_workers)
        one_of(AUGMENTS, augment=augment)
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.augment: Augment = augment
        self.flip, self.text_length, self.seed = flip, text_length, seed or 0
        self._processor: Any = None
        self._contents: dict[Split, Content] = {}
        self._tokens: dict[str, Texts] = {}

    @abstractmethod
    def _open(self) -> dict[Split, Content]:
        """Read and check everything that needs no model, and return what each split holds."""

    @abstractmethod
    def train_dataloader(self) -> DataLoader:
        """Batches to train on, shuffled by the seed and the epoch."""

    @abstractmethod
    def _eval_loaders(self, split: Split) -> DataLoader | list[DataLoader]:
        """What a split is evaluated with."""

    def _fit_settings(self, contents: dict[Split, Content]) -> None:
        """Refuse settings that do not fit what was opened."""

    def check(self) -> None:
        """Read and check all that the loaders will need, before a model is built. A second call does nothing.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is not what it should be, or the settings do not fit the data.
        """
        if not self._contents:
            with _uncollected():
                contents = self._open()
            self._fit_settings(contents)
            self._contents = contents

    def set_processor(self, processor: Any) -> None:  # noqa: ANN401 (transformers has no common type)
        """Hand in the model's processor; call it before the loaders are asked for.

        Args:
            processor: Anything with an ``image_processor`` and a ``tokenizer``, such as ``CLIPProcessor``.

        Raises:
            TypeError: If it lacks one of them.
            ValueError: If ``text_length`` does not fit its tokenizer.
        """
        missing = [part for part in ("image_processor", "tokenizer") if not hasattr(processor, part)]
        if missing:
            raise TypeError(
                f"processor is a {type(processor).__name__} without {missing}; {type(self).__name__} needs images and "
                "texts, so load it with transformers.AutoProcessor from the model's own directory"
            )
        text_limit(processor, self.text_length)
        self._processor = processor
        self._tokens = {}

    @property
    def processor(self) -> Any:  # noqa: ANN401
        """The model's processor.

        Raises:
            RuntimeError: If none was handed in.
        """
        if self._processor is None:
            raise RuntimeError(f"{type(self).__name__} has no processor; call set_processor before asking for loaders")
        return self._processor

    def setup(self, stage: str) -> None:
        """Lightning's hook: check what is not checked yet."""
        self.check()

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation split, each sample once."""
        return self._eval_loaders("val")

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """The test split, each sample once."""
        return self._eval_loaders("test")

    def _content(self, split: Split) -> Content:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {sorted(SPLITS)}")
        self.check()
        return self._contents[split]

    def _ready(self, split: Split) -> Content:
        """What a split holds, prepared for the processor."""
        processor, content = self.processor, self._content(split)
        content.prepare(processor)
        return content

    def _texts(self, name: str, make: Callable[[], Sequence[str]]) -> Texts:
        """Texts as tokens of the present processor, tokenised when they are first asked for by this name."""
        if name not in self._tokens:
            self._tokens[name] = Texts(make(), self.processor, text_limit(self.processor, self.text_length))
        return self._tokens[name]

    def _train_loader(self, dataset: Samples) -> TrainLoader:
        return train_loader(dataset, len(dataset), self.batch_size, self.seed, self.num_workers, dataset.collate)

    def _eval_loader(self, dataset: Samples, workers: int | None = None) -> DataLoader:
        return EvalLoader(
            dataset, batch_size=self.eval_batch_size, sampler=EvalSampler(dataset), collate_fn=dataset.collate,
            num_workers=self.num_workers if workers is None else workers,
            pin_memory=torch.cuda.is_available(), generator=torch.Generator(),
        )  # fmt: skip
