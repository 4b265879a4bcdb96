"""What image-text retrieval needs of any data: batches of pairs to train on, galleries to rank in.

:class:`RetrievalDataModule` knows loaders, epochs and ranks; where images and captions come from is a
:class:`Gallery`, one per split. :class:`~upop.data.retrieval.RetrievalData` fills them from files,
:class:`~upop.data.shapes.ShapesRetrieval` paints them.

Shapes: ``B`` samples of a batch, ``L`` tokens, ``S`` pixels along a side, ``C`` captions of a split.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from upop.data.annotations import SPLITS, Split
from upop.data.pairs import EvalCaptions, EvalImages, Gallery, TrainCaptions, TrainPairs
from upop.data.sampling import EvalSampler, train_loader
from upop.data.texts import Texts, clean_caption, text_limit
from upop.data.transforms import AUGMENTS, Augment, training_transform


class RetrievalDataModule(LightningDataModule):
    """Loaders for image-text retrieval over a gallery per split.

    Training batches hold ``pixel_values (B, 3, S, S)``, ``input_ids`` and ``attention_mask`` ``(B, L)``, and
    ``image_index (B,)``, the number of the image in its split: equal numbers are no negatives of each other. Evaluation
    encodes each image and each caption once: validation and test have two loaders each, images first (``pixel_values``,
    ``index``), then captions (``input_ids``, ``attention_mask``, ``index``, and ``image_index``, the image described).
    In a distributed run the ranks share all of it out, evaluation rows come in any order, and ``index`` says which is
    which.

    Call :meth:`check` first (it needs no model), :meth:`set_processor` next, and then the loaders.

    Args:
        batch_size: Training samples per process and step.
        eval_batch_size: Images, or captions, per process and evaluation step.
        num_workers: Worker processes per loader; 0 loads in the training process. The batches are the same.
        augment: ``paper`` (BLIP's and UPop's: crops of 50-100 % of the area, two of ten mild operations), ``light``
            (square crops of 64-100 %, brightness and contrast within 20 %) or ``none``.
        flip: Mirror every second training image. Captions are not mirrored with it: set it to false where *left* and
            *right* matter.
        text_length: Tokens per text at most, special ones included. Default: the tokenizer's own limit.
        folds: Equal consecutive galleries, in file order, that each evaluated split is cut into and averaged over.
            COCO's "1K" protocol is 5.
        train_captions: ``all``: an epoch has one sample per caption, as the authors train. ``one``: one sample per
            image, with a caption drawn anew each epoch.
        clean_captions: Lower-case the captions, strip punctuation and keep 50 words, as BLIP does. CLIP and SigLIP take
            them as they are.
        seed: Seed of the order, the captions drawn and the augmentation; by default ``seed_everything``.
    """

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 2,
        augment: Augment = "paper",
        flip: bool = True,
        text_length: int | None = None,
        folds: int = 1,
        train_captions: TrainCaptions = "all",
        clean_captions: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        least = {"batch_size": (batch_size, 1), "eval_batch_size": (eval_batch_size, 1), "folds": (folds, 1)}
        for name, (value, low) in {**least, "num_workers": (num_workers, 0)}.items():
            if value < low:
                raise ValueError(f"{name} is {value!r}; set it to {low} or more")
        for name, choice, known in (
            ("augment", augment, AUGMENTS), ("train_captions", train_captions, get_args(TrainCaptions)),
        ):  # fmt: skip
            if choice not in known:
                raise ValueError(f"{name} is {choice!r}; expected one of {sorted(known)}")
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.augment: Augment = augment
        self.train_captions: TrainCaptions = train_captions
        self.flip, self.text_length, self.folds = flip, text_length, folds
        self.clean_captions, self.seed = clean_captions, seed or 0
        self._processor: Any = None
        self._galleries: dict[Split, Gallery] = {}
        self._texts: dict[Split, Texts] = {}

    def _open(self) -> dict[Split, Gallery]:
        """Read and check everything that needs no model, and return a gallery per split."""
        raise NotImplementedError

    def check(self) -> None:
        """Read and check all that the loaders will need, before a model is built. A second call does nothing.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is not what it should be, or the settings do not fit the data.
        """
        if self._galleries:
            return
        galleries = self._open()
        for split in ("val", "test"):
            number = len(galleries[split].captions)
            if number % self.folds:
                fitting = [n for n in range(1, min(number, 100) + 1) if number % n == 0]
                raise ValueError(
                    f"folds is {self.folds}, but split {split!r} has {number} images, which do not fall into "
                    f"{self.folds} equal galleries; choose one of {fitting}"
                )
        self._galleries = galleries

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
                f"processor is a {type(processor).__name__} without {missing}; retrieval needs images and texts, so "
                "load it with transformers.AutoProcessor from the model's own directory"
            )
        text_limit(processor, self.text_length)
        self._processor = processor
        self._texts = {}

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

    def gallery(self, split: Split) -> Gallery:
        """Images and captions of a split.

        Raises:
            ValueError: If there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {sorted(SPLITS)}")
        self.check()
        return self._galleries[split]

    def eval_pairs(self, split: Split) -> Tensor:
        """Number of the image that each caption describes, ``(C,)``."""
        captions = self.gallery(split).captions
        counts = torch.tensor([len(of_image) for of_image in captions])
        return torch.arange(len(captions)).repeat_interleave(counts)

    def train_dataloader(self) -> DataLoader:
        """Batches of image-caption pairs, shuffled by the seed and the epoch."""
        gallery, texts = self._ready("train")
        transform = training_transform(self.processor, self.augment, self.flip)
        dataset = TrainPairs(gallery, texts, self.eval_pairs("train"), transform, self.train_captions, self.seed)
        return train_loader(dataset, len(dataset), self.batch_size, self.seed, self.num_workers, dataset.collate)

    def val_dataloader(self) -> list[DataLoader]:
        """Images of the validation split, then its captions."""
        return self._eval_loaders("val")

    def test_dataloader(self) -> list[DataLoader]:
        """Images of the test split, then its captions."""
        return self._eval_loaders("test")

    def _ready(self, split: Split) -> tuple[Gallery, Texts]:
        processor, gallery = self.processor, self.gallery(split)
        gallery.prepare(processor)
        if split not in self._texts:
            captions = [caption for of_image in gallery.captions for caption in of_image]
            if self.clean_captions:
                captions = [clean_caption(caption) for caption in captions]
            self._texts[split] = Texts(captions, processor, text_limit(processor, self.text_length))
        return gallery, self._texts[split]

    def _eval_loaders(self, split: Split) -> list[DataLoader]:
        gallery, texts = self._ready(split)
        datasets: list[EvalImages | EvalCaptions]
        datasets = [EvalImages(gallery, self.processor), EvalCaptions(texts, self.eval_pairs(split))]
        return [
            DataLoader(
                dataset, batch_size=self.eval_batch_size, sampler=EvalSampler(dataset), collate_fn=dataset.collate,
                num_workers=workers, pin_memory=torch.cuda.is_available(), generator=torch.Generator(),
            )
            for dataset, workers in zip(datasets, (self.num_workers, 0), strict=True)
        ]  # fmt: skip
