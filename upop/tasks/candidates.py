"""The best candidates of each query of a gallery, and their matching scores, many pairs at a time.

Source: ALBEF, Li et al., NeurIPS 2021, https://arxiv.org/abs/2107.07651, and BLIP, Li et al., ICML 2022,
https://arxiv.org/abs/2201.12086: their evaluation scores the most similar candidates again by matching. Theirs goes
query by query; here the pairs of both directions are put together, sorted by image, and each is scored once.

Shapes: ``I`` images and ``T`` texts of a gallery, ``D`` feature size, ``Q`` queries, ``G`` gallery items, ``K``
candidates of a query, ``P`` pairs, ``L`` tokens, ``S`` image tokens, ``E`` their width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from upop.metrics.recall import KS
from upop.tasks.matching import match_groups


class Encoded:
    """What one rank has encoded of a split, batch by batch.

    Args:
        device: Where rows are brought together.

    Attributes:
        states: Image states ``(S, E)`` by image number, in host memory: those of a large gallery fill gigabytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states: dict[int, Tensor] = {}
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, index: Tensor, **rows: Tensor) -> None:
        """Add rows ``(batch, width)`` by name, and their numbers in the split ``(batch,)``."""
        for name, part in rows.items():
            self._parts.setdefault(name, []).append((index, part))

    def keep(self, index: Tensor, states: Tensor) -> None:
        """Add image states, ``(batch, S, E)``."""
        self.states.update(zip(index.tolist(), states.cpu(), strict=True))

    def everywhere(self, name: str, dtype: torch.dtype, most: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows of all ranks in the order of their numbers, ``(rows, width)``; every rank has to ask.

        A rank may have none, and a row may be on several. Whole numbers are at least 0, and 0 fills short rows up.

        Args:
            name: As in :meth:`add`.
            dtype: Type of the rows.
            most: Elementwise maximum over the ranks.
        """
        parts = self._parts.get(name, [])
        count = max((int(index.max()) + 1 for index, _ in parts), default=0)
        width = max((rows.shape[1] for _, rows in parts), default=0)
        shape = most(torch.tensor([count, width], device=self.device)).tolist()
        least = torch.finfo(dtype).min if dtype.is_floating_point else 0
        whole = torch.full(shape, least, dtype=dtype, device=self.device)
        for index, rows in parts:
            whole[index, : rows.shape[1]] = rows
        return most(whole)


@dataclass(frozen=True)
class Candidates:
    """What each query of a gallery is compared with by matching.

    Attributes:
        texts: Texts most similar to each image, ``(I, K)``.
        text_similarity: Their cosines, ``(I, K)``.
        images: Images most similar to each text, ``(T, K)``.
        image_similarity: Their cosines, ``(T, K)``.
    """

    texts: Tensor
    text_similarity: Tensor
    images: Tensor
    image_similarity: Tensor

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image ``(P,)`` and text ``(P,)`` of each pair to score, each once, and the pair of each place.

        The places ``(I * K + T * K,)`` are those of :attr:`texts` and then of :attr:`images`, row by row.
        """
        (images, _), (texts, _) = self.texts.shape, self.images.shape
        row = torch.arange(max(images, texts), device=self.texts.device)[:, None]
        keys = torch.cat([(row[:images] * texts + self.texts).flatten(), (self.images * texts + row[:texts]).flatten()])
        pairs, place = torch.unique(keys, return_inverse=True)
        return pairs // texts, pairs % texts, place

    def scores(self, matching: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Matching score plus similarity, of :attr:`texts` ``(I, K)`` and of :attr:`images` ``(T, K)``.

        Args:
            matching: Score of each pair, ``(P,)``.
            place: As of :meth:`pairs`.
        """
        of_texts, of_images = matching[place].split([self.texts.numel(), self.images.numel()])
        return (
            of_texts.view_as(self.texts) + self.text_similarity,
            of_images.view_as(self.images) + self.image_similarity,
        )


def find_candidates(images: Tensor, texts: Tensor, k: int) -> Candidates:
    """The ``k`` most similar texts of each image and images of each text.

    Args:
        images: Normalised features, ``(I, D)``.
        texts: Normalised features, ``(T, D)``.
        k: Candidates of each query, at most the smaller of ``I`` and ``T``.
    """
    text_similarity, of_images = nearest(images, texts, k)
    image_similarity, of_texts = nearest(texts, images, k)
    return Candidates(of_images, text_similarity, of_texts, image_similarity)


def nearest(queries: Tensor, gallery: Tensor, k: int, chunk: int = 512) -> tuple[Tensor, Tensor]:
    """Similarities and numbers of the ``k`` best gallery items of each query, ``(Q, K)`` each.

    Args:
        queries: Normalised features, ``(Q, D)``.
        gallery: Normalised features, ``(G, D)``.
        k: Candidates wanted, at most ``G``.
        chunk: Queries whose similarities are held at a time.
    """
    found = [(part @ gallery.t()).topk(k, dim=1) for part in queries.split(chunk)]
    return torch.cat([values for values, _ in found]), torch.cat([numbers for _, numbers in found])


def blocks(image: Tensor, length: Tensor, most: int) -> Iterator[Tensor]:
    """Share out pairs among forward passes: blocks of images with texts each, ``(images, texts)`` pair numbers.

    Texts of an image that fit into one pass stay together, short ones with short ones; images with few texts share a
    pass. A place that no pair fills holds -1. Every pair comes once.

    Args:
        image: Image of each pair, ``(P,)``.
        length: Tokens of each pair's text, ``(P,)``.
        most: Places of a block at most.
    """
    order = torch.argsort(length, stable=True)
    order = order[torch.argsort(image[order], stable=True)]
    counts = torch.unique_consecutive(image[order], return_counts=True)[1]
    parts = [part for of_image in order.split(counts.tolist()) for part in of_image.split(most)]
    parts.sort(key=len, reverse=True)
    start = 0
    while start < len(parts):
        texts = len(parts[start])
        group = parts[start : start + most // texts]
        yield torch.nn.utils.rnn.pad_sequence(group, batch_first=True, padding_value=-1)
        start += len(group)


def score_pairs(
    model: Any,  # noqa: ANN401 (a BLIP)
    states: Mapping[int, Tensor],
    image: Tensor,
    text: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    most: int,
    advance: Callable[[int], object] = int,
) -> Tensor:
    """Matching score of pairs: the logit of a match, ``(P,)`` fp32.

    Args:
        model: ``BlipForImageTextRetrieval``, dense, masked or cut, in evaluation mode.
        states: Image states ``(S, E)`` by image number, on any device.
        image: Image number of each pair, ``(P,)``.
        text: Text number of each pair, ``(P,)``.
        input_ids: Tokens of all texts, ``(T, L)``, on the device of the model.
        attention_mask: Which of them count, ``(T, L)``.
        most: Pairs that one forward pass scores at most.
        advance: Called with the number of pairs that a pass has scored.
    """
    length = attention_mask.shape[1]
    end = (attention_mask * torch.arange(1, length + 1, device=text.device)).amax(1)  # (T,) up to the last token
    found = torch.empty(len(image), device=text.device)
    for block in blocks(image.cpu(), end[text].cpu(), most):
        block = block.to(text.device)  # (images, texts)
        real, chosen = block >= 0, block.clamp(min=0)
        rows = text[chosen]
        width = int(end[rows].max())
        of_block = torch.stack([states[number] for number in image[chosen[:, 0]].tolist()])
        of_block = of_block.to(device=text.device, dtype=model.dtype)
        logits = match_groups(model, of_block, input_ids[rows][..., :width], attention_mask[rows][..., :width])
        found[block[real]] = logits[..., 1][real]
        advance(int(real.sum()))
    return found


def check_k(k: int, images: int, where: str) -> None:
    """Refuse more candidates than a gallery has images, or too few for R@10.

    Args:
        k: Candidates of each query.
        images: Images of a gallery; texts there are at least as many.
        where: What to call the gallery.
    """
    least = min(max(KS), images)
    if k > images:
        raise ValueError(f"k is {k} candidates, but {where} has {images} images per gallery; set k to {images} or less")
    if k < least:
        raise ValueError(f"k is {k} candidates, but {where} reports R@{max(KS)}; set k to {least} or more")
