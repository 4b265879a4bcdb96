import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from upop.metrics import RetrievalRecall, ranks, recall_at, retrieval_recalls

KEYS = {f"{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "mean")} | {"r1_mean", "mean"}


def naive_rank(scores, good):
    """Negatives before the best positive in a list sorted so that, among equal scores, positives come last."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item in good))
    best = max(good, key=lambda item: scores[item])
    ahead = order[: order.index(best)]
    return len([item for item in ahead if item not in good])


def naive_recalls(images, texts, caption_image):
    scores = images.double().numpy() @ texts.double().numpy().T
    owner = caption_image.tolist()
    captions = [{t for t, o in enumerate(owner) if o == i} for i in range(len(images))]
    i2t = np.array([naive_rank(row.tolist(), good) for row, good in zip(scores, captions, strict=True)])
    t2i = np.array([naive_rank(column.tolist(), {o}) for column, o in zip(scores.T, owner, strict=True)])
    out = {f"{way}_r{k}": 100 * np.mean(r < k) for way, r in (("i2t", i2t), ("t2i", t2i)) for k in (1, 5, 10)}
    out |= {f"{way}_mean": np.mean([out[f"{way}_r{k}"] for k in (1, 5, 10)]) for way in ("i2t", "t2i")}
    out["mean"] = (out["i2t_mean"] + out["t2i_mean"]) / 2
    return out | {"r1_mean": (out["i2t_r1"] + out["t2i_r1"]) / 2}


def data(images=12, captions=30, dim=6, seed=0, integers=True):
    generator = torch.Generator().manual_seed(seed)
    caption_image = torch.cat([torch.arange(images), torch.randint(images, (captions - images,), generator=generator)])
    caption_image = caption_image[torch.randperm(captions, generator=generator)]
    image = torch.randn(images, dim, generator=generator)
    text = image[caption_image] + 1.5 * torch.randn(captions, dim, generator=generator)
    if integers:  # many ties, and products that numpy gets exactly
        image, text = image.round(), text.round()
    return image, text, caption_image


@given(st.integers(2, 14), st.integers(0, 30), st.integers(1, 5), st.integers(0, 10**6), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_recalls_match_brute_force_with_ties(images, more, dim, seed, chunk):
    image, text, caption_image = data(images, images + more, dim, seed)
    got = retrieval_recalls(image, text, caption_image, chunk=chunk)
    assert set(got) == KEYS
    assert got == pytest.approx(naive_recalls(image, text, caption_image), abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_ranks_do_not_depend_on_the_order_of_rows_or_the_chunk(seed, chunk):
    image, text, caption_image = data(20, 40, 33, seed, integers=False)
    text[:5] = text[5:10]  # exact ties of rows that land in different blocks of the matmul
    image[3] = image[7]
    pairs = torch.stack([caption_image, torch.arange(40)], 1)
    expected = ranks(image, text, pairs)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    again = ranks(image, text[order], torch.stack([caption_image[order], torch.arange(40)], 1), chunk=chunk)
    assert torch.equal(expected, again)
    other_way = ranks(text, image, pairs.flip(1))
    rows = torch.randperm(20, generator=torch.Generator().manual_seed(seed + 1))
    moved = torch.argsort(rows)[caption_image]
    permuted = ranks(text, image[rows], torch.stack([torch.arange(40), moved], 1), chunk=chunk)
    assert torch.equal(other_way, permuted)
    assert retrieval_recalls(image, text, caption_image) == retrieval_recalls(image[rows], text, moved, chunk=chunk)


def test_ranks_match_numpy_argsort_on_real_numbers():
    image, text, caption_image = data(200, 500, 64, integers=False)
    order = np.argsort(-(image.double().numpy() @ text.double().numpy().T), axis=1)
    expected = (caption_image.numpy()[order] == np.arange(200)[:, None]).argmax(1)
    pairs = torch.stack([caption_image, torch.arange(500)], 1)
    assert ranks(image, text, pairs, chunk=17).tolist() == expected.tolist()


def test_scores_are_exact_for_rows_of_any_size():
    """A row of tiny and one of huge features keep their order against a reference in whole numbers."""
    generator = torch.Generator().manual_seed(3)
    whole = torch.randint(-(2**11), 2**11, (40, 50), generator=generator)
    image, text = whole[:8].float() * 2.0**-40, whole[8:].float() * 2.0**30
    caption_image = torch.arange(32) % 8
    scores = (whole[:8] @ whole[8:].T).numpy()
    pairs = torch.stack([caption_image, torch.arange(32)], 1)
    expected = [naive_rank(row.tolist(), set(range(i, 32, 8))) for i, row in enumerate(scores)]
    assert ranks(image, text, pairs).tolist() == expected


def test_a_collapsed_model_gets_nothing():
    got = retrieval_recalls(torch.ones(50, 4), torch.ones(250, 4), torch.arange(250) % 50)
    assert set(got.values()) == {0.0}


def test_the_best_caption_counts_and_its_siblings_are_not_ahead():
    image = torch.eye(2)
    text = torch.tensor([[5.0, 0.0], [5.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    pairs = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 3]])
    assert ranks(image, text, pairs).tolist() == [0, 0]
    assert ranks(text, image, pairs.flip(1)).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_dtype_and_autocast(dtype):
    image, text, caption_image = data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = retrieval_recalls(image.to(dtype), text.to(dtype), caption_image.int())
    assert got == retrieval_recalls(image, text, caption_image)


def test_folds_are_averaged_over_consecutive_images():
    image, text, caption_image = data(12, 40)
    parts = []
    for fold in range(3):
        mine = (caption_image >= 4 * fold) & (caption_image < 4 * fold + 4)
        parts.append(naive_recalls(image[4 * fold : 4 * fold + 4], text[mine], caption_image[mine] - 4 * fold))
    expected = {key: np.mean([part[key] for part in parts]) for key in KEYS}
    assert retrieval_recalls(image, text, caption_image, folds=3) == pytest.approx(expected, abs=1e-9)


def test_recall_at():
    assert recall_at(torch.tensor([0, 1, 2, 30]), (1, 3)) == {1: 25.0, 3: 75.0}


def broken(image=None, text=None, caption_image=None, **options):
    fine = data(4, 6, 3)
    given = [new if new is not None else old for new, old in zip((image, text, caption_image), fine, strict=True)]
    return lambda: retrieval_recalls(*given, **options)


PAIRS = torch.tensor([[0, 0], [1, 1]])
NAN = torch.tensor([[1.0, float("nan"), 0.0], [0.0, 0.0, 0.0], [float("inf"), 0.0, 0.0], [1.0, 1.0, 1.0]])
REFUSED = {
    "flat": (broken(image=torch.ones(4)), r"image features have shape \(4,\); give \(rows, D\)"),
    "no rows": (broken(text=torch.ones(0, 3)), r"text features have shape \(0, 3\)"),
    "widths": (broken(image=torch.ones(4, 5)), "image features have 5 columns and text features 3; project both"),
    "nan": (broken(image=NAN), "2 of 4 image feature rows are not finite in float32; look for"),
    "too large": (broken(image=torch.full((4, 3), 1e300, dtype=torch.float64)), "4 of 4 image feature rows"),
    "captions": (
        broken(caption_image=torch.arange(5)),
        r"caption_image is torch.int64 of shape \(5,\); .* the 6 texts",
    ),
    "float": (broken(caption_image=torch.ones(6)), "caption_image is torch.float32"),
    "unknown": (broken(caption_image=torch.arange(6)), "a caption names image 5, but the images are 0 to 3"),
    "negative": (broken(caption_image=torch.arange(6) - 3), "a caption names image -3, but the images are 0 to 3"),
    "bare": (broken(caption_image=torch.tensor([0, 0, 2, 2, 0, 0])), r"2 of 4 images have no caption, .* \[1, 3\]"),
    "folds": (broken(folds=3), "4 images cannot be split into 3 equal folds"),
    "no folds": (broken(folds=0), "4 images cannot be split into 0 equal folds"),
    "chunk": (broken(chunk=0), "chunk is 0; give the number of queries"),
    "pair shape": (
        lambda: ranks(torch.eye(2), torch.eye(2), PAIRS[:, 0]),
        r"positives are torch.int64 of shape \(2,\)",
    ),
    "pair query": (lambda: ranks(torch.eye(2), torch.eye(2), PAIRS + 1), "names query 2, but there are 0 to 1"),
    "pair item": (lambda: ranks(torch.eye(2), torch.eye(2)[:1], PAIRS), "names gallery item 1, but there are 0 to 0"),
    "pair twice": (lambda: ranks(torch.eye(2), torch.eye(2), PAIRS[[0, 0, 1]]), "a positive pair is listed twice"),
    "no positive": (lambda: ranks(torch.eye(2), torch.eye(2), PAIRS[:1]), r"1 of 2 queries have no positive, .* \[1\]"),
    "no ranks": (lambda: recall_at(torch.ones(0)), r"ranks have shape \(0,\); give one rank per query"),
    "k": (lambda: recall_at(torch.zeros(2), (0, 5)), r"recall at \(0, 5\) was asked for; give whole numbers from 1"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def filled(image, text, caption_image, image_rows, text_rows, **options):
    metric = RetrievalRecall(**options)
    for rows in image_rows:
        metric.update_images(image[rows], rows)
    for rows in text_rows:
        metric.update_texts(text[rows], rows, caption_image[rows])
    return metric


def test_metric_takes_rows_in_any_order_and_drops_repeats():
    image, text, caption_image = data(12, 30, integers=False)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    image_rows = [torch.arange(12).flip(0), torch.tensor([3, 4])]
    metric = filled(image, text, caption_image, image_rows, [order[:11], order[11:], order[:2]], folds=2)
    got = {key: value.item() for key, value in metric.compute().items()}
    assert got == pytest.approx(retrieval_recalls(image, text, caption_image, folds=2))
    metric.reset()
    assert metric.images == []


def test_metric_update_takes_both_at_once():
    image, text, caption_image = data(8, 8)
    metric = RetrievalRecall()
    number = torch.arange(8)
    metric.update(images=image, image_index=number, texts=text, text_index=number, text_image=caption_image)
    assert metric.compute()["mean"].item() == pytest.approx(retrieval_recalls(image, text, caption_image)["mean"])


def test_metric_refuses():
    image, text, caption_image = data(4, 6, 3)
    rows = torch.arange(4)
    with pytest.raises(ValueError, match=r"images have shape \(4,\); give features of shape \(batch, D\)"):
        RetrievalRecall().update_images(image[:, 0], rows)
    with pytest.raises(ValueError, match="texts have shape None"):
        RetrievalRecall().update(text_index=rows)
    with pytest.raises(ValueError, match="image_index is None; give one whole number for each of the 4 images"):
        RetrievalRecall().update(images=image)
    with pytest.raises(ValueError, match=r"text_image is torch.float32 of shape \(6,\)"):
        RetrievalRecall().update_texts(text, torch.arange(6), torch.ones(6))
    metric = filled(image, text, caption_image, [rows], [])
    with pytest.raises(ValueError, match="no texts were given; update the metric with every image and every text"):
        metric.compute()
    metric = filled(image, text, caption_image, [rows], [torch.tensor([0, 2, 5])])
    with pytest.raises(ValueError, match=r"3 of 6 texts are missing, the first ones \[1, 3, 4\]"):
        metric.compute()
    metric = filled(image, text, caption_image, [rows], [torch.arange(6)])
    metric.update_images(image[:1], torch.tensor([-2]))
    with pytest.raises(ValueError, match="image index -2 is negative; number the images of the data set from 0"):
        metric.compute()
    metric = filled(image, text, torch.tensor([0, 1, 2, 3, 0, 1]), [rows], [torch.arange(6)])
    metric.update_texts(text[:1], torch.tensor([0]), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"text 0 came with images \[0, 3\]; give each text one number and one image"):
        metric.compute()


def shard(rank, address, results):
    """One of two processes; the second has no text at all, and both have image 0."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    image, text, caption_image = data(9, 20, integers=False)
    image_rows = [torch.tensor([8, 0, 2, 4]), torch.tensor([6])] if rank == 0 else [torch.tensor([1, 3, 5, 7, 0])]
    metric = filled(image, text, caption_image, image_rows, [torch.arange(20)] if rank == 0 else [])
    results[rank] = {key: value.item() for key, value in metric.compute().items()}
    dist.destroy_process_group()


def test_metric_over_two_processes_with_uneven_shards(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(shard, args=(f"file://{tmp_path}/rendezvous", results), nprocs=2)
        expected = retrieval_recalls(*data(9, 20, integers=False))
        assert results[0] == pytest.approx(expected)
        assert results[1] == pytest.approx(expected)
