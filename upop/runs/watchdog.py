"""Ranks that watch one another: when one dies, all end within seconds and say which it was and why.

Collectives wait for a rank that is gone until they time out, after half an hour. Every rank keeps a connection to rank
0 open, which the system closes when the process dies, however it does; a rank that ends with an error says so first.
It serves every launcher (Lightning's own, torchrun, SLURM) and sends nothing while all is well.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, Literal

from lightning.pytorch.strategies import ParallelStrategy, Strategy

PATIENCE = 3.0
"""Seconds that a rank has to end by itself, after another has ended with an error."""
LINGER = 8.0
"""Seconds that the others wait for rank 0 to go first: a launcher may kill it when one of them has gone."""
AGAIN = "run the same command again to go on where it stood"
LONGEST_EXIT = 60.0
"""Seconds after which a process that is on its way out is ended."""
LONGEST = 65536
"""Bytes of a message."""


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
        self._lock = threading.Lock()

    def start(self, strategy: Strategy) -> None:
        """Connect the ranks, once; all of them have to call it.

        Args:
            strategy: Of a Trainer whose process group exists.
        """
        if not isinstance(strategy, ParallelStrategy) or strategy.world_size < 2 or self.world > 1:
            return
        self.rank, self.world = strategy.global_rank, strategy.world_size
        os.register_at_fork(after_in_child=self._forget)  # a worker must not hold the connection of a dead process
        listener, where = None, None
        if self.rank == 0:
            key = secrets.token_hex(16)
            address = strategy.cluster_environment.main_address
            local = address in ("127.0.0.1", "localhost")
            listener = Listener((address if local else "", 0), backlog=self.world, authkey=key.encode())
            where = (address, listener.address[1], key)
        where = strategy.broadcast(where)
        target, *arguments = (self._accept, listener) if listener else (self._follow, *where)
        threading.Thread(target=target, args=arguments, daemon=True, name="upop-watchdog").start()

    def _accept(self, listener: Listener) -> None:
        """Let the other ranks connect, and watch them from the first on."""
        threading.Thread(target=self._watch, daemon=True, name="upop-watchdog-ranks").start()
        with listener:
            while len(self._ranks) < self.world - 1:
                try:
                    connection = listener.accept()
                    hello = _receive(connection)
                    _keep_alive(connection)
                    with self._lock:
                        self._ranks[connection] = int(hello["rank"])
                        self._peers[connection] = str(hello["process"])
                except (AuthenticationError, EOFError, OSError, ValueError, KeyError):
                    time.sleep(0.1)  # not one of ours

    def _watch(self) -> None:
        """Rank 0: hear what the others say, until all have gone."""
        while len(self._ranks) < self.world - 1 or self._peers:
            ready = wait(list(self._peers), timeout=0.5)
            for connection in [one for one in list(self._peers) if one in ready]:
                rank, process = self._ranks[connection], self._peers.pop(connection)
                try:
                    farewell = Farewell(**_receive(connection))
                except (EOFError, OSError, ValueError, TypeError):
                    farewell = _dead(rank, process)
                self._tell(farewell)
                self._hear(farewell)

    def _follow(self, address: str, port: int, key: str) -> None:
        """The other ranks: hear what rank 0 says, until it has gone."""
        try:
            connection = Client((address, port), authkey=key.encode())
            _keep_alive(connection)
            process = f"process {os.getpid()} on {socket.gethostname()}"
            _send(connection, {"rank": self.rank, "process": process})
        except (AuthenticationError, EOFError, OSError) as error:
            text = f"rank {self.rank} is not watched over, as it cannot reach {address}:{port}: {error}"
            print(f"upop: warning: {text}", file=sys.stderr, flush=True)
            return
        self._peers = {connection: address}
        farewell = None
        while farewell != Farewell(0, "done"):
            try:
                farewell = Farewell(**_receive(connection))
            except (EOFError, OSError, ValueError, TypeError):
                self._hear(_dead(0, address))
                break
            self._hear(farewell)
        self._first_gone.set()

    def _tell(self, farewell: Farewell) -> None:
        with self._lock:
            for connection in list(self._peers):
                try:
                    _send(connection, asdict(farewell))
                except OSError:
                    continue  # it has gone already

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

    def _forget(self) -> None:
        """In a forked process: let go of the connections."""
        for connection in self._ranks or self._peers:
            connection.close()
        self._peers, self._ranks = {}, {}


def _dead(rank: int, process: str) -> Farewell:
    text = f"died without a word ({process}): it was killed, or the system was out of memory"
    return Farewell(rank, "dead", text, 2)


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _receive(connection: Connection) -> dict[str, Any]:
    message = json.loads(connection.recv_bytes(LONGEST))
    if not isinstance(message, dict):
        raise ValueError(f"a message is a {type(message).__name__}")
    return message


def _keep_alive(connection: Connection) -> None:
    """Notice within half a minute that the machine at the other end is gone, which closes nothing."""
    with socket.socket(fileno=os.dup(connection.fileno())) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
