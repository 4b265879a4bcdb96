"""The order follows from the seed, ranks share it out, and a loader goes on where it stopped."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upop.data import sampling
from upop.data.sampling import EvalLoader, EvalSampler, TrainLoader, TrainSampler, drawing, seed_of, train_loader


def on(monkeypatch, rank, world):
    monkeypatch.setattr(sampling, "ranks", lambda: (rank, world))


def batches(sampler):
    rows = [sample for _, sample in sampler]
    return [rows[start : start + sampler.batch_size] for start in range(0, len(rows), sampler.batch_size)]


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
def test_batch_k_of_all_ranks_is_batch_k_of_one_process(samples, batch_size, world, epoch):
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for rank, ranks in [(0, 1), *((rank, world) for rank in range(world))]:
            on(patch, rank, ranks)
            sampler = TrainSampler(samples, batch_size * world // ranks, seed=3)
            sampler.set_epoch(epoch)
            assert len(sampler) == len(list(sampler))
            found.append(batches(sampler))
    whole, *shares = found
    assert len(whole) == samples // (batch_size * world)
    for number, batch in enumerate(whole):
        assert batch == list(itertools.chain.from_iterable(share[number] for share in shares))
    assert len(set(itertools.chain.from_iterable(whole))) == len(whole) * batch_size * world


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed, epoch):
        sampler = TrainSampler(50, 5, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    orders = {tuple(sample for _, sample in order(seed, epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4
    assert {epoch for epoch, _ in order(0, 7)} == {7}


@given(st.integers(0, 40), st.integers(1, 5))
def test_evaluation_shares_are_the_whole_without_repeats(samples, world):
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for rank in range(world):
            on(patch, rank, world)
            sampler = EvalSampler(range(samples))
            assert len(sampler) == len(list(sampler))
            shares.append(list(sampler))
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(samples))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rank_without_samples_evaluates_one_empty_batch(monkeypatch, workers):
    found = []
    for rank in range(3):
        on(monkeypatch, rank, 3)
        loader = EvalLoader(
            range(2),
            batch_size=4,
            sampler=EvalSampler(range(2)),
            num_workers=workers,
            collate_fn=lambda rows: {"n": rows},
        )
        found.append((len(loader), list(loader), list(loader)))
    assert found == [(1, [{"n": [0]}], [{"n": [0]}]), (1, [{"n": [1]}], [{"n": [1]}]), (1, [{}], [{}])]


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return key


def loader(workers=0, samples=23, batch_size=4, seed=0):
    return train_loader(Numbers(), samples, batch_size, seed, workers, collate=list)


def take(of, epoch, number=99):
    of.sampler.set_epoch(epoch)
    return list(itertools.islice(iter(of), number))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 3, 5])
def test_a_loader_goes_on_with_the_next_batch(workers, taken):
    stopped = loader(workers)
    whole = take(loader(), 2)
    assert take(stopped, 2, taken) == whole[:taken]
    resumed = loader(workers)
    resumed.load_state_dict(stopped.state_dict())
    iterator = iter(resumed)  # Lightning makes the iterator before it tells the epoch
    resumed.sampler.set_epoch(2)
    assert list(iterator) == whole[taken:]
    assert len(resumed) == 5
    assert take(resumed, 3) == take(loader(), 3)


def test_a_state_of_another_epoch_skips_nothing():
    resumed = loader()
    resumed.load_state_dict({**loader().state_dict(), "epoch": 1, "batches": 5})
    assert take(resumed, 2) == take(loader(), 2)


def test_a_state_of_other_batches_is_refused():
    state = loader().state_dict()
    with pytest.raises(
        ValueError, match="global_batch 4 then and 2 now, seed 0 then and 9 now; resume with the same data"
    ):
        loader(batch_size=2, seed=9).load_state_dict(state)
    loader().load_state_dict({})


def test_too_few_samples_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"batch_size 4 on 1 process\(es\) needs 4 training samples, but there are 3"):
        loader(samples=3)
    on(monkeypatch, 1, 8)
    with pytest.raises(ValueError, match=r"batch_size 4 on 8 process\(es\) needs 32 training samples"):
        loader()


def test_another_sampler_may_take_the_place(monkeypatch):
    """As Lightning's overfit_batches puts it there."""
    other = TrainLoader(Numbers(), batch_size=2, sampler=torch.utils.data.SequentialSampler(range(4)), collate_fn=list)
    assert list(other) == [[0, 1], [2, 3]]
    assert other.state_dict() == {}


def test_seeds_hardly_collide():
    assert len({seed_of("sample", 0, epoch, sample) % 2**32 for epoch in range(20) for sample in range(1000)}) > 19_990


def test_drawing_follows_from_its_sample_and_leaves_no_trace():
    before = torch.random.get_rng_state()
    drawn = {}
    for key in itertools.product(range(2), repeat=3):
        with drawing(*key) as start:
            drawn[key] = torch.rand(3).tolist()
            torch.manual_seed(start)
            assert torch.rand(3).tolist() == drawn[key]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len({tuple(values) for values in drawn.values()}) == 8
    with drawing(1, 0, 1):
        assert torch.rand(3).tolist() == drawn[1, 0, 1]
