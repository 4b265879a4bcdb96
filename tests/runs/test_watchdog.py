"""Connections between ranks: who ends because of whom. Whole runs are in test_dead_ranks.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from tests.runs.strangers import STRANGERS
from upop.runs import watchdog
from upop.runs.watchdog import Farewell, Watchdog

FORK = multiprocessing.get_context("fork")
Life = Callable[[Watchdog], None]
Meeting = Callable[[int], None]
"""What happens at the port of rank 0 before the others hear of it."""


class Ranks(DDPStrategy):
    """What a watchdog asks of a strategy; rank 0's word goes to the others through a queue."""

    def __init__(self, rank: int, world: int, queue: Any, meets: Meeting = lambda port: None) -> None:
        super().__init__(cluster_environment=SimpleNamespace(main_address="127.0.0.1"))  # type: ignore[arg-type]
        self.rank, self.world, self.queue, self.meets = rank, world, queue, meets

    global_rank = property(lambda self: self.rank)
    world_size = property(lambda self: self.world)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if self.rank:
            return self.queue.get(timeout=20)
        self.meets(obj[1])
        for _ in range(self.world - 1):
            self.queue.put(obj)
        return obj


def ends(
    *lives: Life, exits: Callable[[int], object] = lambda code: None, meets: Meeting = lambda port: None
) -> list[int | None]:
    """Exit codes of ranks that live so, each in a process; those that live longest have ten seconds."""
    queue = FORK.Queue()

    def live(rank: int, life: Life) -> None:
        dog = Watchdog(exits)
        dog.start(Ranks(rank, len(lives), queue, meets))
        time.sleep(0.5)  # until they are connected
        life(dog)
        os._exit(0)

    processes: list[ForkProcess] = [FORK.Process(target=live, args=pair) for pair in enumerate(lives)]
    for process in processes:
        process.start()
    limit = time.monotonic() + 10
    for process in processes:
        process.join(max(0.0, limit - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def waits(_: Watchdog) -> None:
    """As in a collective that never ends."""
    time.sleep(60)


def dies(_: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_done(dog: Watchdog) -> None:
    dog.leave("done")


def works_on(dog: Watchdog) -> None:
    dog.leave("done")
    time.sleep(2)


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_all_end_when_one_dies(dead: int, capfd: pytest.CaptureFixture[str]) -> None:
    lives = [waits, waits, waits]
    lives[dead] = dies
    codes = ends(*lives)
    assert codes[dead] == -signal.SIGKILL
    assert [code for rank, code in enumerate(codes) if rank != dead] == [2, 2]
    assert capfd.readouterr().err.count(f"upop: error: rank {dead}: died without a word (") == 1


def dies_when_connected(dog: Watchdog) -> None:
    while not dog._peers:
        time.sleep(0.05)
    dies(dog)


def all_strangers(port: int) -> None:
    for stranger in STRANGERS:
        stranger(port)


@pytest.mark.parametrize(
    ("dead", "meets"), [(0, all_strangers), (1, all_strangers), *[(1, stranger) for stranger in STRANGERS]]
)
def test_strangers_at_the_port_hide_nothing(dead: int, meets: Meeting, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    codes = ends(*[dies_when_connected if rank == dead else waits for rank in range(2)], meets=meets)
    assert (codes[dead], codes[1 - dead]) == (-signal.SIGKILL, 2)
    assert time.monotonic() - start < 9
    said = capfd.readouterr().err
    assert said.startswith(f"upop: error: rank {dead}: died without a word (")
    assert said.count("\n") == 1, "nothing is said of strangers"


def test_strangers_end_nobody() -> None:
    assert ends(works_on, is_done, is_done, meets=all_strangers) == [0, 0, 0]


def test_ranks_that_never_connect_are_named_and_end_nobody(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "CONNECTED", 1.0)

    def die_before(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def works_longer(dog: Watchdog) -> None:
        time.sleep(2.0)
        dog.leave("done")

    monkeypatch.setattr(watchdog, "enter", die_before)
    assert ends(works_longer, waits, waits) == [0, -signal.SIGKILL, -signal.SIGKILL]
    assert capfd.readouterr().err == (
        "upop: warning: ranks 1, 2 did not connect to rank 0 within 1 s and cannot be watched over; if the run stands "
        "still, look whether they live, and start it again if they do not\n"
    )


def test_a_rank_that_connects_late_is_told_who_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    enter = watchdog.enter

    def late(address: str, port: int, key: str, hello: dict[str, Any], seconds: float) -> Any:
        time.sleep(2.0 * (hello["rank"] == 2))
        return enter(address, port, key, hello, seconds)

    def fails(dog: Watchdog) -> None:
        dog.leave("failed", "no such image", 2)
        os._exit(2)

    def hears(dog: Watchdog) -> None:
        lost = dog.lost(8.0)
        os._exit(7 if lost == Farewell(1, "failed", "no such image", 2) else 8)

    monkeypatch.setattr(watchdog, "enter", late)
    assert ends(waits, fails, hears) == [2, 2, 7]


def test_a_rank_that_cannot_connect_says_so_and_goes_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "TRIED", 0.0)
    enter = watchdog.enter
    monkeypatch.setattr(watchdog, "enter", lambda address, port, *rest: enter(address, 1, *rest))
    assert ends(works_on, works_on) == [0, 0]
    said = capfd.readouterr().err
    assert said.startswith("upop: warning: rank 1 is not watched over, as it cannot reach 127.0.0.1:")
    assert "refused" in said


def test_a_worker_that_lives_on_does_not_hide_that_its_rank_is_dead() -> None:
    def dies_with_a_worker(dog: Watchdog) -> None:
        if os.fork() == 0:
            time.sleep(12)
            os._exit(0)
        dies(dog)

    assert ends(waits, dies_with_a_worker) == [2, -signal.SIGKILL]


def test_ranks_that_are_done_end_nobody() -> None:
    assert ends(works_on, is_done, is_done) == [0, 0, 0]
    assert ends(is_done, works_on, is_done) == [0, 0, 0]


def test_the_error_of_one_is_told_by_the_first_and_ends_all(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(dog: Watchdog) -> None:
        dog.leave("failed", "no such image", 2)
        os._exit(2)

    assert ends(waits, fails, waits) == [2, 2, 2]
    assert capfd.readouterr().err == "upop: error: rank 1: no such image\n"


def test_ranks_that_fail_alike_speak_for_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(dog: Watchdog) -> None:
        dog.leave("failed", "the same", 2)
        os._exit(3)

    assert ends(fails, fails) == [3, 3]
    assert capfd.readouterr().err == ""


def test_a_stop_that_one_rank_alone_hears_of_stops_all_and_is_acted_upon_by_the_first(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def stops(dog: Watchdog) -> None:
        dog.leave("stopped", code=138)
        os._exit(138)

    assert ends(waits, stops, exits=lambda code: os.write(2, f"requeue at {code}\n".encode())) == [138, 138]
    said = capfd.readouterr().err
    assert said == (
        "upop: stopped, as rank 1 was; run the same command again to go on where it stood\nrequeue at 138\n"
    )


def test_an_error_that_follows_from_another_rank_s_names_it() -> None:
    def fails(dog: Watchdog) -> None:
        dog.leave("failed", "no such image", 2)
        os._exit(2)

    def hears(dog: Watchdog) -> None:
        lost = dog.lost(5.0)
        os._exit(7 if lost == Farewell(1, "failed", "no such image", 2) else 8)

    assert ends(hears, fails) == [7, 2]


def test_one_process_needs_no_watchdog() -> None:
    dog = Watchdog()
    dog.start(SingleDeviceStrategy())
    assert dog.lost(10.0) is None
    dog.leave("failed", "an error", 2)
    assert dog.world == 1
