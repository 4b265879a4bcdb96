"""Image captioning: captions after a prompt to train on, images to describe; Flickr8k, Flickr30k and COCO.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, its captioning fine-tuning: every caption is
cleaned, cut to 30 words and put after ``a picture of``, whose tokens are not scored.

Shapes: ``B`` samples of a batch, ``L`` tokens, ``P`` tokens of the prompt with both special ones, ``S`` pixels along a
side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from upop.data.annotations import Record, Split, Splits
from upop.data.caption_files import CaptionFiles, CocoFiles, Flickr8kFiles, Flickr30kFiles
from upop.data.coco_captions import find_coco_captions, read_coco_captions
from upop.data.galleries import GalleryDataModule
from upop.data.pairs import EvalImages, TrainPairs
from upop.data.sampling import Batch, Samples
from upop.data.settings import at_least
from upop.data.transforms import training_transform


@dataclass(frozen=True)
class Reference:
    """What people said about an image.

    Attributes:
        image_id: What the image is called in result files.
        captions: One caption at least, as they were written.
    """

    image_id: int | str
    captions: tuple[str, ...]


class CaptioningDataModule(GalleryDataModule):
    """Loaders for captioning over a gallery per split.

    Training batches hold ``pixel_values (B, 3, S, S)``, ``input_ids`` and ``attention_mask`` ``(B, L)`` of prompt and
    caption, ``image_index (B,)``, and ``prompt_length ()``, the number of tokens in front that are not scored: the
    first special one and the prompt. Evaluation batches hold ``pixel_values`` and ``index (B,)``.

    Args:
        prompt: What every caption begins with; may be empty.
        max_words: Words of a cleaned caption at most, the prompt not counted.
        clean_captions: Lower-case the training captions, strip punctuation and keep ``max_words`` words, as BLIP does.
            References stay as they are.
        **shared: As :class:`~upop.data.galleries.GalleryDataModule`.
    """

    def __init__(
        self,
        prompt: str = "a picture of ",
        max_words: int = 30,
        clean_captions: bool = True,
        **shared: Any,  # noqa: ANN401 (the base class's own, which jsonargparse finds)
    ) -> None:
        super().__init__(clean_captions=clean_captions, **shared)
        at_least(1, max_words=max_words)
        self.prompt, self.max_words = prompt, max_words

    def prompt_tokens(self) -> Batch:
        """``input_ids`` and ``attention_mask`` of the prompt, ``(1, P)``, special tokens at both ends."""
        ids = self.processor.tokenizer(self.prompt.strip())["input_ids"]
        return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}

    def references(self, split: Split) -> Sequence[Reference]:
        """What people said about each image of a split, in order."""
        gallery = self.gallery(split)
        return [Reference(name, said) for name, said in zip(gallery.ids, gallery.captions, strict=True)]

    def train_dataloader(self) -> DataLoader:
        """Batches of images with prompted captions, shuffled by the seed and the epoch."""
        gallery, texts = self._ready("train"), self._caption_tokens("train", self.prompt.strip())
        transform = training_transform(self.processor, self.augment, self.flip)
        pairs = TrainPairs(gallery, texts, self.eval_pairs("train"), transform, self.train_captions, self.seed)
        return self._train_loader(_Prompted(pairs, self.prompt_tokens()["input_ids"][0, :-1]))

    def _eval_loaders(self, split: Split) -> DataLoader:
        return self._eval_loader(EvalImages(self._ready(split), self.processor))


class _Prompted(Samples):
    """Pairs whose texts begin with a prompt.

    Args:
        pairs: Images with texts.
        prompt: Tokens that all texts begin with.
    """

    def __init__(self, pairs: TrainPairs, prompt: Tensor) -> None:
        self.pairs, self.prompt = pairs, prompt
        first = pairs.texts[0][: len(prompt)]
        if first.tolist() != prompt.tolist():
            raise ValueError(
                f"the tokenizer makes {prompt.tolist()} of the prompt, but {first.tolist()} of the prompt before a "
                "caption; choose a prompt that ends with a whole word and is shorter than text_length"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int] | int) -> Any:  # noqa: ANN401
        return self.pairs[key]

    def collate(self, samples: list[Any]) -> Batch:
        """Samples to a batch."""
        return {**self.pairs.collate(samples), "prompt_length": torch.tensor(len(self.prompt))}


class CaptionData(CaptionFiles, CaptioningDataModule):
    """Captioning from an image directory and its annotations. Use a subclass, which knows the file names."""


class Flickr8kCaptions(Flickr8kFiles, CaptionData):
    """Flickr8k: 6,000 training, 1,000 validation and 1,000 test photographs with five captions each."""


class Flickr30kCaptions(Flickr30kFiles, CaptionData):
    """Flickr30k: 29,000 training, 1,014 validation and 1,000 test photographs with five captions each."""


class CocoCaptions(CocoFiles, CaptionData):
    """COCO in Karpathy's split: 113,287 training, 5,000 validation and 5,000 test photographs, five captions each.

    Where the annotation directory has neither Karpathy's file nor BLIP's lists, COCO's own ``captions_train*.json`` and
    ``captions_val*.json`` are taken; COCO keeps the captions of its test images to itself, so val is tested on too.
    """

    def _read(self) -> Splits:
        official = find_coco_captions(Path(self.annotations))
        wanted = [*self.lists.values(), f"dataset_{self.name}.json", f"dataset_{self.name}.json.gz"]
        if not official or any((Path(self.annotations) / name).is_file() for name in wanted):
            return super()._read()
        train, val = (read_coco_captions(path) for path in official)
        return {"train": train, "val": val, "test": val}

    def _id(self, record: Record) -> int | str:
        """COCO's number of the image, which every one of its file names ends in: result files carry numbers."""
        number = PurePosixPath(record.image).stem.rpartition("_")[2]
        return int(number) if number.isdecimal() else record.id
