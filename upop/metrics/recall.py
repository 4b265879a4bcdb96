"""Image-text retrieval recall, exact under ties and in any order of rows.

The rank of a query is the number of gallery items that are not its positives and score *at least* as high as its best
positive. A tied negative counts as ahead: a collapsed model that scores everything alike then gets the recall it has
earned, near 0, instead of one that depends on the order of the files.

A float32 matmul gives the same pair of rows another last bit in a block of another shape, which makes and breaks ties.
Here every feature row is rounded to a fixed-point grid so coarse (22 bits below the row's largest entry for up to 512
features, about what a float32 matmul resolves) that all products and sums are exact in float64. The scores are then one
set of numbers, whatever the chunk, the order of the rows, the number of processes, autocast or TF32, and one pass over
them ranks both directions.

torchmetrics' own retrieval recall drops scores <= 0, so the ranks are ours.

Shapes: ``Q`` queries, ``G`` gallery items, ``I`` images, ``T`` texts (captions), ``D`` features, ``P`` positive pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

KS = (1, 5, 10)


def ranks(queries: Tensor, gallery: Tensor, positives: Tensor, chunk: int = 128) -> Tensor:
    """Rank of the best positive of each query, 0 = found first, ``(Q,)`` int64.

    The score is the dot product of the features as given, read as float32; normalise them first for the cosine.

    Args:
        queries: Features, ``(Q, D)``.
        gallery: Features, ``(G, D)``.
        positives: Query number and gallery number of each pair that belongs together, ``(P, 2)``, each pair once.
        chunk: Queries whose scores are held at a time; the memory is about ``10 * chunk * G`` bytes.

    Raises:
        ValueError: If shapes do not fit, a feature is not finite, a pair counts past the end or is listed twice, a
            query has no positive, or ``chunk`` is below 1.

    >>> eye = torch.eye(3)
    >>> pairs = torch.tensor([[0, 0], [1, 1], [2, 0]])
    >>> ranks(eye, eye, pairs).tolist()
    [0, 0, 2]
    """
    _check_features(queries, gallery, ("query", "gallery"))
    _check_positives(positives, len(queries), len(gallery))
    return _pass(queries, gallery, positives, chunk)[0]


def recall_at(ranks: Tensor, ks: Sequence[int] = KS) -> dict[int, float]:
    """Percentage of queries whose best positive is among the first ``k``, by ``k``.

    Args:
        ranks: Ranks from 0, ``(Q,)``.
        ks: How many gallery items a query may return.

    Raises:
        ValueError: If there is no query, or a ``k`` is below 1.

    >>> recall_at(torch.tensor([0, 3, 12, 0]))
    {1: 50.0, 5: 75.0, 10: 75.0}
    """
    if ranks.ndim != 1 or not len(ranks):
        raise ValueError(f"ranks have shape {tuple(ranks.shape)!r}; give one rank per query, for at least 1 query")
    if not ks or min(ks) < 1:
        raise ValueError(f"recall at {tuple(ks)!r} was asked for; give whole numbers from 1")
    return {k: 100.0 * int((ranks < k).sum()) / len(ranks) for k in ks}


def retrieval_recalls(
    images: Tensor, texts: Tensor, caption_image: Tensor, folds: int = 1, chunk: int = 128
) -> dict[str, float]:
    """Recall of images for texts and of texts for images, in percent.

    Of the captions of an image the best one counts. The score is the dot product of the features as given, read as
    float32; normalise them first for the cosine.

    Args:
        images: Features, ``(I, D)``.
        texts: Features, ``(T, D)``, in any order.
        caption_image: Image number of each text, ``(T,)``, integer.
        folds: Number of galleries, consecutive equal parts of the images in index order, whose recalls are averaged
            ("COCO 1K" is 5 folds of the 5K test images).
        chunk: Images whose scores are held at a time; the memory is about ``10 * chunk * T`` bytes.

    Returns:
        ``i2t_r1``, ``i2t_r5``, ``i2t_r10``, the same for ``t2i``, ``i2t_mean`` and ``t2i_mean`` of the three,
        ``r1_mean`` of the two R@1, and ``mean`` of all six.

    Raises:
        ValueError: If sizes do not fit, a feature is not finite, an image has no caption, a caption names an unknown
            image, ``folds`` does not divide the images, or ``chunk`` is below 1.
    """
    _check_features(images, texts, ("image", "text"))
    _check_captions(caption_image, len(images), len(texts))
    if folds < 1 or len(images) % folds:
        raise ValueError(f"{len(images)} images cannot be split into {folds!r} equal folds; choose a divisor")
    size = len(images) // folds
    caption_image = caption_image.to(images.device).long()
    sums = dict.fromkeys((f"{way}_r{k}" for way in ("i2t", "t2i") for k in KS), 0.0)
    for fold in range(folds):
        chosen = torch.nonzero(caption_image // size == fold).flatten()
        pairs = torch.stack([caption_image[chosen] - fold * size, torch.arange(len(chosen), device=chosen.device)], 1)
        found = _pass(images[fold * size : (fold + 1) * size], texts[chosen], pairs, chunk)
        for way, way_ranks in zip(("i2t", "t2i"), found, strict=True):
            for k, recall in recall_at(way_ranks).items():
                sums[f"{way}_r{k}"] += recall
    recalls = {name: total / folds for name, total in sums.items()}
    return recalls | means(recalls)


def means(recalls: Mapping[str, float]) -> dict[str, float]:
    """Means of ``i2t_r1`` to ``t2i_r10``: of either way, of both at 1, and of all.

    >>> means({f"{way}_r{k}": 10.0 * k for way in ("i2t", "t2i") for k in KS})["r1_mean"]
    10.0
    """
    i2t, t2i = ([recalls[f"{way}_r{k}"] for k in KS] for way in ("i2t", "t2i"))
    ways = {"i2t_mean": math.fsum(i2t) / len(i2t), "t2i_mean": math.fsum(t2i) / len(t2i)}
    return ways | {"r1_mean": (i2t[0] + t2i[0]) / 2, "mean": math.fsum(i2t + t2i) / len(i2t + t2i)}


class RetrievalRecall(Metric):
    """Retrieval recall over a data set whose rows arrive in batches, in any order, on any number of processes.

    Every image and text carries its index number in the data set. At the end the rows are put in the order of these
    numbers and rows that a sampler repeated to fill a batch are dropped, so the result is that of one process. Use
    :meth:`update_images` and :meth:`update_texts`; one batch has no recall worth logging, so do not call the metric.

    Args:
        folds: Number of galleries, as in :func:`retrieval_recalls`.
        chunk: Images whose scores are held at a time, as in :func:`retrieval_recalls`.
        **kwargs: As of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    images: list[Tensor]
    image_index: list[Tensor]
    texts: list[Tensor]
    text_index: list[Tensor]
    text_image: list[Tensor]

    def __init__(self, folds: int = 1, chunk: int = 128, **kwargs: Any) -> None:  # noqa: ANN401 (Metric's own)
        kwargs.setdefault("dist_sync_fn", _gather_rows)
        super().__init__(**kwargs)
        self.folds = folds
        self.chunk = chunk
        for name in ("images", "image_index", "texts", "text_index", "text_image"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update_images(self, features: Tensor, index: Tensor) -> None:
        """Add images.

        Args:
            features: ``(batch, D)``, normalised by the caller where the cosine is meant.
            index: Number of each image in the data set, from 0, ``(batch,)``, integer.

        Raises:
            ValueError: If sizes do not fit.
        """
        self.update(images=features, image_index=index)

    def update_texts(self, features: Tensor, index: Tensor, image_index: Tensor) -> None:
        """Add texts.

        Args:
            features: ``(batch, D)``, normalised by the caller where the cosine is meant.
            index: Number of each text in the data set, from 0, ``(batch,)``, integer.
            image_index: Number of the image that each text describes, ``(batch,)``, integer.

        Raises:
            ValueError: If sizes do not fit.
        """
        self.update(texts=features, text_index=index, text_image=image_index)

    def update(
        self,
        *,
        images: Tensor | None = None,
        image_index: Tensor | None = None,
        texts: Tensor | None = None,
        text_index: Tensor | None = None,
        text_image: Tensor | None = None,
    ) -> None:
        """Add images, texts or both; see :meth:`update_images` and :meth:`update_texts`.

        Raises:
            ValueError: If sizes do not fit, or features come without their numbers.
        """
        image_rows = _check_batch("images", images, {"image_index": image_index})
        text_rows = _check_batch("texts", texts, {"text_index": text_index, "text_image": text_image})
        for name, rows in (image_rows | text_rows).items():
            getattr(self, name).append(rows)

    def compute(self) -> dict[str, Tensor]:
        """The recalls of :func:`retrieval_recalls`, in percent, as scalars on the metric's device.

        Raises:
            ValueError: If index numbers are missing or contradict each other, and as :func:`retrieval_recalls`.
        """
        for name in ("images", "texts"):
            if not len(getattr(self, name)):
                raise ValueError(f"no {name} were given; update the metric with every image and every text first")
        images, image_index = dim_zero_cat(self.images), dim_zero_cat(self.image_index)
        texts, text_index = dim_zero_cat(self.texts), dim_zero_cat(self.text_index)
        text_image = dim_zero_cat(self.text_image)
        image_rows = _in_order(image_index, "image")
        text_rows = _in_order(text_index, "text")
        caption_image = text_image[text_rows]
        wrong = torch.nonzero(caption_image[text_index] != text_image).flatten()
        if len(wrong):
            number = int(text_index[wrong[0]])
            both = sorted({int(caption_image[number]), int(text_image[wrong[0]])})
            raise ValueError(f"text {number} came with images {both!r}; give each text one number and one image")
        recalls = retrieval_recalls(images[image_rows], texts[text_rows], caption_image, self.folds, self.chunk)
        return {name: torch.tensor(value, device=self.device) for name, value in recalls.items()}


@torch.no_grad()
def _pass(queries: Tensor, gallery: Tensor, positives: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Ranks of the queries in the gallery ``(Q,)`` and of the gallery in the queries ``(G,)``, in one pass.

    A gallery item without a positive query gets the rank ``Q``.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk!r}; give the number of queries to score at a time, at least 1")
    queries, gallery = _on_grid(queries), _on_grid(gallery)
    row, column = positives.to(queries.device).long().unbind(1)
    pairs = torch.cat(
        [(queries[r] * gallery[c]).sum(1) for r, c in zip(row.split(4096), column.split(4096), strict=True)]
    )
    row_best = pairs.new_full((len(queries),), -math.inf).scatter_reduce(0, row, pairs, "amax")
    column_best = pairs.new_full((len(gallery),), -math.inf).scatter_reduce(0, column, pairs, "amax")
    row_ahead = torch.empty(len(queries), dtype=torch.int32, device=pairs.device)
    column_ahead = torch.zeros(len(gallery), dtype=torch.int32, device=pairs.device)
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        scores = queries[part] @ gallery.T  # (chunk, G)
        # int32: a sum of booleans in the default int64 takes five times as long
        row_ahead[part] = (scores >= row_best[part, None]).sum(1, dtype=torch.int32)
        column_ahead += (scores >= column_best).sum(0, dtype=torch.int32)
    # Positives that tie with the best one, itself included, are not ahead of it.
    row_tied = torch.bincount(row[pairs == row_best[row]], minlength=len(queries))
    column_tied = torch.bincount(column[pairs == column_best[column]], minlength=len(gallery))
    return row_ahead - row_tied, column_ahead - column_tied


def _on_grid(features: Tensor) -> Tensor:
    """Float64 features, each row rounded to whole multiples of its own power of two, so that dot products are exact.

    With ``b`` bits per entry a product has ``2b`` bits and a sum of ``D`` of them at most ``2b + log2(D)``, which must
    not exceed the 53 bits of float64.
    """
    if features.device.type == "mps":
        features = features.cpu()  # Metal has no float64
    bits = (53 - math.ceil(math.log2(max(features.shape[1], 1)))) // 2
    exact = features.float().double()
    exponent = torch.frexp(exact.abs().amax(1, keepdim=True)).exponent
    step = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent - bits)
    return (exact / step).round_().mul_(step)


def _gather_rows(rows: Tensor, group: Any = None) -> list[Tensor]:  # noqa: ANN401 (any process group)
    """A state of every process. One without rows, where torchmetrics makes up an empty float vector, takes part too."""
    facts = torch.tensor([rows.ndim, rows.shape[-1], int(rows.is_floating_point()), len(rows)], device=rows.device)
    all_facts = [torch.empty_like(facts) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_facts, facts, group=group)
    if not len(rows):
        for ndim, width, floating, count in torch.stack(all_facts).tolist():
            if count:
                dtype = torch.float32 if floating else torch.int64
                rows = torch.empty((0, width) if ndim == 2 else (0,), dtype=dtype, device=rows.device)
    return gather_all_tensors(rows, group)


def _in_order(index: Tensor, what: str) -> Tensor:
    """Row of each index number, from 0 up, the first one where rows repeat a number.

    Raises:
        ValueError: If a number is negative or missing.
    """
    numbers, order = torch.sort(index, stable=True)
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[1:] = numbers[1:] != numbers[:-1]
    numbers = numbers[first]
    if numbers[0] < 0:
        raise ValueError(f"{what} index {int(numbers[0])} is negative; number the {what}s of the data set from 0")
    total = int(numbers[-1]) + 1
    if len(numbers) != total:
        missing = sorted(set(range(total)) - set(numbers.tolist()))
        raise ValueError(
            f"{len(missing)} of {total} {what}s are missing, the first ones {missing[:5]!r}; "
            f"update the metric with every {what} of the data set"
        )
    return order[first]


def _check_batch(what: str, features: Tensor | None, numbers: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The rows to store, by the name of their state, or nothing where nothing was given."""
    if features is None and all(value is None for value in numbers.values()):
        return {}
    if features is None or features.ndim != 2:
        shape = None if features is None else tuple(features.shape)
        raise ValueError(f"{what} have shape {shape!r}; give features of shape (batch, D) with their numbers")
    rows = {what: features.detach().float()}
    for name, value in numbers.items():
        if value is None or tuple(value.shape) != (len(features),) or value.is_floating_point():
            found = "None" if value is None else f"{value.dtype} of shape {tuple(value.shape)!r}"
            raise ValueError(f"{name} is {found}; give one whole number for each of the {len(features)} {what}")
        rows[name] = value.detach().to(features.device).long()
    return rows


def _check_features(queries: Tensor, gallery: Tensor, names: tuple[str, str]) -> None:
    """Refuse features that cannot be compared."""
    for name, features in zip(names, (queries, gallery), strict=True):
        if features.ndim != 2 or not len(features):
            raise ValueError(
                f"{name} features have shape {tuple(features.shape)!r}; give (rows, D) with at least 1 row"
            )
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"{names[0]} features have {queries.shape[1]} columns and {names[1]} features {gallery.shape[1]}; "
            f"project both to the same space"
        )
    for name, features in zip(names, (queries, gallery), strict=True):
        wrong = int((~torch.isfinite(features.float())).any(1).sum())
        if wrong:
            raise ValueError(
                f"{wrong} of {len(features)} {name} feature rows are not finite in float32; look for an overflow, or a "
                f"division by a zero norm"
            )


def _check_captions(caption_image: Tensor, images: int, texts: int) -> None:
    """Refuse captions that do not belong to the images."""
    if tuple(caption_image.shape) != (texts,) or caption_image.is_floating_point():
        raise ValueError(
            f"caption_image is {caption_image.dtype} of shape {tuple(caption_image.shape)!r}; give one image number "
            f"for each of the {texts} texts"
        )
    low, high = int(caption_image.min()), int(caption_image.max())
    if low < 0 or high >= images:
        raise ValueError(f"a caption names image {low if low < 0 else high}, but the images are 0 to {images - 1}")
    bare = torch.nonzero(torch.bincount(caption_image.long(), minlength=images) == 0).flatten().tolist()
    if bare:
        raise ValueError(
            f"{len(bare)} of {images} images have no caption, the first ones {bare[:5]!r}; leave these images out"
        )


def _check_positives(positives: Tensor, queries: int, gallery: int) -> None:
    """Refuse pairs that do not name a positive for each query."""
    if positives.ndim != 2 or positives.shape[1] != 2 or positives.is_floating_point():
        raise ValueError(
            f"positives are {positives.dtype} of shape {tuple(positives.shape)!r}; give whole numbers of shape (P, 2): "
            f"query number, gallery number"
        )
    for column, name, total in ((0, "query", queries), (1, "gallery item", gallery)):
        outside = positives[(positives[:, column] < 0) | (positives[:, column] >= total), column]
        if len(outside):
            raise ValueError(f"a positive pair names {name} {int(outside[0])}, but there are 0 to {total - 1}")
    if len(torch.unique(positives, dim=0)) != len(positives):
        raise ValueError("a positive pair is listed twice; list each pair once")
    bare = torch.nonzero(torch.bincount(positives[:, 0].long(), minlength=queries) == 0).flatten().tolist()
    if bare:
        raise ValueError(
            f"{len(bare)} of {queries} queries have no positive, the first ones {bare[:5]!r}; leave them out"
        )
