"""Ranks that watch one another: when one dies, all end within seconds and say which it was and why.

Collectives wait for a rank that is gone until they time out, after half an hour. Every rank keeps a connection to rank
0 open, which the system closes when the process dies, however it does; a rank that ends with an error says so first.
It serves every launcher (Lightning's own, torchrun, SLURM) and sends nothing while all is well.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from lightning.pytorch.strategies import ParallelStrategy, Strategy

from upop.runs.connections import LONGEST, Door, enter, receive, send

PATIENCE = 3.0
"""Seconds that a rank has to end by itself, after another has ended with an error."""
LINGER = 8.0
"""Seconds that the others wait for rank 0 to go first: a launcher may kill it when one of them has gone."""
AGAIN = "run the same command again to go on where it stood"
LONGEST_EXIT = 60.0
"""Seconds after which a process that is on its way out is ended."""
CONNECTED = 30.0
"""Seconds until ranks that have not connected are named."""
TRIED = 60.0
"""Seconds that a rank tries to connect."""


class RankLostError(ConnectionError):
    """Another rank has stopped, so this one cannot go on."""


@dataclass(frozen=True)
class Farewell:
    """Why a rank has gone.

    Attributes:
        rank: Which.
        kind: ``done``; ``stopped`` by a signal; ``failed`` with an error; or ``dead`` without a word.
        text: Its error, or what is known.
        code: Exit code of the ranks that end because of it.
    """

    rank: int
    kind: Literal["done", "stopped", "failed", "dead"]
    text: str = ""
    code: int = 0

    def line(self) -> str:
        """What a user is told of it."""
        if self.kind == "stopped":
            return f"stopped, as rank {self.rank} was; {AGAIN}"
        return f"error: rank {self.rank}: {self.text}" + (f"; {AGAIN}" if self.kind == "dead" else "")


class Watchdog:
    """One per process; does nothing until :meth:`start`, and nothing on one process.

    Args:
        before_exit: Called on rank 0 with the exit code, before the process ends because of another rank.
    """

    def __init__(self, before_exit: Callable[[int], object] = lambda code: None) -> None:
        self.rank, self.world = 0, 1
        self._before_exit = before_exit
        self._process = os.getpid()
        self._leaving = threading.Event()
        self._heard = threading.Event()
        self._first_gone = threading.Event()
        self._lost: Farewell | None = None
        self._peers: dict[Connection, str] = {}
        self._ranks: dict[Connection, int] = {}
        self._told: list[Farewell] = []
        self._lock = threading.Lock()

    def start(self, strategy: Strategy) -> None:
        """Connect the ranks, once; all of them have to call it.

        Args:
            strategy: Of a Trainer whose process group exists.
        """
        if not isinstance(strategy, ParallelStrategy) or strategy.world_size < 2 or self.world > 1:
            return
        self.rank, self.world = strategy.global_rank, strategy.world_size
        door, where = None, None
        if self.rank == 0:
            key = secrets.token_hex(16)
            address = strategy.cluster_environment.main_address
            local = address in ("127.0.0.1", "localhost")
            door = Door(address if local else "", key, self.world - 1)
            where = (address, door.port, key)
        where = strategy.broadcast(where)
        target, *arguments = (self._accept, door) if door else (self._follow, *where)
        threading.Thread(target=target, args=arguments, daemon=True, name="upop-watchdog").start()

    def _accept(self, door: Door) -> None:
        """Let the other ranks connect, and watch them from the first on; name those that stay away."""
        threading.Thread(target=self._watch, daemon=True, name="upop-watchdog-ranks").start()
        limit, named = time.monotonic() + CONNECTED, False
        while self._missing():
            door.open(self._admit)
            if not named and time.monotonic() > limit and (missing := self._missing()):
                named = True  # it may be slow and no more, so that nothing ends because of it
                _warn(
                    f"{_ranks(missing)} did not connect to rank 0 within {CONNECTED:.0f} s and cannot be watched over; "
                    "if the run stands still, look whether they live, and start it again if they do not"
                )
        door.close()

    def _missing(self) -> list[int]:
        """Ranks that have not connected yet."""
        with self._lock:
            return sorted(set(range(1, self.world)) - set(self._ranks.values()))

    def _admit(self, connection: Connection, hello: dict[str, Any]) -> None:
        """Watch a rank that has connected, and tell it who has gone already."""
        with self._lock:
            self._ranks[connection], self._peers[connection] = int(hello["rank"]), str(hello["process"])
            self._pass(self._told, [connection])

    def _watch(self) -> None:
        """Rank 0: hear what the others say, until all have gone."""
        while self._missing() or self._peers:
            ready = wait(list(self._peers), timeout=0.5)
            for connection in [one for one in list(self._peers) if one in ready]:
                rank, process = self._ranks[connection], self._peers.pop(connection)
                try:
                    farewell = Farewell(**receive(connection))
                except (EOFError, OSError, ValueError, TypeError):
                    farewell = _dead(rank, process)
                self._tell(farewell)
                self._hear(farewell)

    def _follow(self, address: str, port: int, key: str) -> None:
        """The other ranks: hear what rank 0 says, until it has gone."""
        process = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            connection = enter(address, port, key, {"rank": self.rank, "process": process}, TRIED)
        except ConnectionError as error:
            if not self._leaving.is_set():
                _warn(f"rank {self.rank} is not watched over, as it cannot reach {address}:{port}: {error}")
            return
        with self._lock:
            self._peers[connection] = address
            self._pass(self._told, [connection])
        farewell = None
        while farewell != Farewell(0, "done"):
            try:
                farewell = Farewell(**receive(connection))
            except (EOFError, OSError, ValueError, TypeError):
                self._hear(_dead(0, address))
                break
            self._hear(farewell)
        self._first_gone.set()

    def _tell(self, farewell: Farewell) -> None:
        with self._lock:
            self._told.append(farewell)
            self._pass([farewell], list(self._peers))

    def _pass(self, farewells: list[Farewell], connections: list[Connection]) -> None:
        for connection in connections:
            with suppress(OSError):  # it has gone already
                for farewell in farewells:
                    send(connection, asdict(farewell))

    def _hear(self, farewell: Farewell) -> None:
        """End because of the first rank that is gone before it was done."""
        if farewell.kind != "done" and self._lost is None:
            self._lost = farewell
            self._heard.set()
            threading.Thread(target=self._end, args=(farewell,), daemon=True, name="upop-watchdog-end").start()

    def _end(self, farewell: Farewell) -> None:
        """End this process because of another rank, unless it ends by itself."""
        if self._leaving.wait(0.0 if farewell.kind == "dead" else PATIENCE):
            time.sleep(LONGEST_EXIT)
        elif self.rank == 0 or (self.rank == 1 and farewell.rank == 0):
            print(f"upop: {farewell.line()}", file=sys.stderr, flush=True)
        if self.rank == 0:
            self._before_exit(farewell.code)
        os._exit(farewell.code)

    def lost(self, seconds: float) -> Farewell | None:
        """The rank that was lost, if one is within so many seconds."""
        if self.world > 1 and self._heard.wait(seconds) and self._lost and self._lost.kind == "dead":
            time.sleep(LINGER)  # the thread that heard of it says so and ends this process
        return self._lost

    def leave(self, kind: Literal["done", "stopped", "failed"], text: str = "", code: int = 0) -> None:
        """Say goodbye; after an error wait until rank 0 has gone.

        Args:
            kind: How this rank ends.
            text: Its error.
            code: Exit code of those who end because of it.
        """
        self._leaving.set()
        if self.world > 1 and self._process == os.getpid():
            self._tell(Farewell(self.rank, kind, text[: LONGEST // 16], code))
            if self.rank and kind != "done" and self._peers:
                self._first_gone.wait(LINGER)


def _dead(rank: int, process: str) -> Farewell:
    text = f"died without a word ({process}): it was killed, or the system was out of memory"
    return Farewell(rank, "dead", text, 2)


def _ranks(ranks: list[int]) -> str:
    """Ranks by name, or how many where they are too many to read.

    >>> _ranks([3]), _ranks([1, 2]), _ranks(list(range(1, 64)))
    ('rank 3', 'ranks 1, 2', '63 ranks (1, 2, 3, 4, 5, 6, 7, 8, ...)')
    """
    named = ", ".join(map(str, ranks[:8]))
    if len(ranks) > 8:
        return f"{len(ranks)} ranks ({named}, ...)"
    return f"rank{'s' if len(ranks) > 1 else ''} {named}"


def _warn(text: str) -> None:
    print(f"upop: warning: {text}", file=sys.stderr, flush=True)
