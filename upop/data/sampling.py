"""Which samples come when: an order that follows from the seed alone, that ranks share and a resumed run rejoins.

Every draw of an epoch (the order, the caption of an image, the crop) follows from ``(seed, epoch, sample)``: it does
not matter how many workers load, or what ran before. The sampler hands workers the epoch with each sample, and the
loader keeps count of the batches that it handed out, which Lightning stores in its checkpoints: a run that was stopped
in the middle of an epoch goes on with the very next batch.

Both samplers are ``DistributedSampler`` so that Lightning leaves them in place; they share out the samples themselves,
and work with ``Trainer(use_distributed_sampler=...)`` set either way.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

Batch = dict[str, Tensor]


class Samples(Dataset, ABC):
    """What a loader indexes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def collate(self, items: list[Any]) -> Batch:
        """Items to a batch."""


def ranks() -> tuple[int, int]:
    """This process's rank and the number of processes: 0 and 1 where nothing is distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def seed_of(*parts: int | str) -> int:
    """One seed from several numbers, the same on every machine.

    Sums and products collide (epoch 1 of sample 2 with epoch 2 of sample 1); a digest of their text hardly does.
    """
    text = " ".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@contextmanager
def drawing(seed: int, epoch: int, sample: int) -> Iterator[int]:
    """Let torch's global generator draw what belongs to a sample of an epoch, and leave it as it was.

    Yields:
        The seed that it starts from, for drawing the same once more.
    """
    start = seed_of("sample", seed, epoch, sample)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        yield start


class TrainSampler(DistributedSampler):
    """Shuffled samples as ``(epoch, sample)``, in whole batches of all ranks.

    Batch ``k`` of all ranks together is the same set of samples, whatever the number of ranks, as long as
    ``ranks * batch_size`` is the same. The samples that fill no whole batch are left out; another epoch leaves out
    others.

    Args:
        samples: Number of samples in the training split.
        batch_size: Samples per batch and rank.
        seed: Seed of the order.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        rank, world = ranks()
        super().__init__(range(samples), num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.samples, self.batch_size = samples, batch_size
        self.skip = 0
        """Batches at the start of the next iteration that an earlier run has had."""

    @property
    def batches(self) -> int:
        """Batches per epoch and rank."""
        return self.samples // (self.batch_size * self.num_replicas)

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, self.epoch))
        order = torch.randperm(self.samples, generator=generator).tolist()
        for batch in range(self.skip, self.batches):
            start = (batch * self.num_replicas + self.rank) * self.batch_size
            for sample in order[start : start + self.batch_size]:
                yield self.epoch, sample

    def facts(self) -> dict[str, int]:
        """What a checkpoint must agree on for its count of batches to mean the same here."""
        return {"seed": self.seed, "samples": self.samples, "global_batch": self.batch_size * self.num_replicas}


class EvalSampler(DistributedSampler):
    """Every sample once, in order: rank ``r`` of ``w`` takes samples ``r``, ``r + w``, ... and none is repeated."""

    def __init__(self, dataset: Sized) -> None:
        rank, world = ranks()
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.mine = range(rank, len(dataset), world)

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self.mine)


class EvalLoader(DataLoader):
    """A loader that hands out one batch, and an empty one, where its rank has no sample.

    Lightning would leave out the evaluation on that rank, and the others would wait for it for ever.
    """

    def __len__(self) -> int:
        return max(1, super().__len__())

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return super().__iter__() if super().__len__() else iter([{}])


class TrainLoader(DataLoader):
    """A loader that knows how many batches of the epoch it has handed out, and can go on from there.

    Lightning calls :meth:`state_dict` when it saves a checkpoint and :meth:`load_state_dict` when it resumes inside an
    epoch. The batches that workers have prepared but nobody has taken do not count.
    """

    _handed_out = 0
    _resume: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that nothing is drawn before the first batch is asked for: Lightning makes the iterator of a
        # resumed run first and tells the sampler its epoch afterwards.
        sampler = self.sampler
        if not isinstance(sampler, TrainSampler):  # Lightning puts another one in place for overfit_batches
            yield from super().__iter__()
            return
        epoch, skip = self._resume or (-1, 0)
        self._resume = None
        sampler.skip = self._handed_out = skip if epoch == sampler.epoch else 0
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches of it that this rank has handed out (as many as every other rank)."""
        if not isinstance(self.sampler, TrainSampler):
            return {}
        return {"epoch": self.sampler.epoch, "batches": self._handed_out, **self.sampler.facts()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that ``state`` has counted, once its epoch is the sampler's.

        Raises:
            ValueError: If the checkpoint was made with other data, another seed or another global batch.
        """
        if not state or not isinstance(self.sampler, TrainSampler):
            return
        here = self.sampler.facts()
        wrong = {key: (state.get(key), value) for key, value in here.items() if state.get(key) != value}
        if wrong:
            told = ", ".join(f"{key} {then!r} then and {now!r} now" for key, (then, now) in sorted(wrong.items()))
            raise ValueError(
                f"the checkpoint stopped inside an epoch of other batches: {told}; resume with the same data, seed and "
                "batch size times processes, or start from its weights"
            )
        self._resume = (state["epoch"], state["batches"])


def train_loader(dataset: Dataset, samples: int, batch_size: int, seed: int, workers: int, collate: Any) -> TrainLoader:  # noqa: ANN401
    """The loader of a training split; ``dataset`` is indexed by ``(epoch, sample)``.

    It has a generator of its own, so that loading draws nothing from the one that dropout uses.

    Raises:
        ValueError: If there are fewer samples than one batch of all ranks takes.
    """
    sampler = TrainSampler(samples, batch_size, seed)
    if not sampler.batches:
        _, world = ranks()
        raise ValueError(
            f"batch_size {batch_size} on {world} process(es) needs {batch_size * world} training samples, but there "
            f"are {samples}; set a smaller batch_size"
        )
    return TrainLoader(
        dataset, batch_size=batch_size, sampler=sampler, drop_last=True, num_workers=workers, collate_fn=collate,
        pin_memory=torch.cuda.is_available(), generator=torch.Generator(),
    )  # fmt: skip
