"""Connections between ranks, through a port that strangers find too.

Rank 0 has a :class:`Door`, the others :func:`enter`. Both prove that they know a key, each in a thread of its own: a
port on a cluster is scanned, and who says nothing there must not keep a rank waiting.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any
from weakref import WeakSet

LONGEST = 65536
"""Bytes of a message."""
HANDSHAKE = 10.0
"""Seconds that somebody at the door has to prove who it is; a rank that was too slow comes again."""
STRANGERS = 64
"""How many may wait at the door, beside the ranks; then the one that has waited longest goes."""
BACKLOG = 1024
"""How many the system lets wait outside, before anybody is asked who it is."""
AGAIN_AFTER = 0.5
"""Seconds until a rank that was not let in comes again."""
REFUSED = (AuthenticationError, AssertionError, EOFError, OSError, ValueError)
"""What a handshake ends with when the other side is not one of ours or has gone."""

_open: WeakSet[Connection | socket.socket] = WeakSet()


class Door:
    """Where the other ranks come in.

    Args:
        address: Of the interface to listen on; empty for all.
        key: What a rank has to know.
        ranks: How many are to come.
    """

    def __init__(self, address: str, key: str, ranks: int) -> None:
        self._key, self._most = key.encode(), ranks + STRANGERS
        self._socket = socket.create_server((address, 0), backlog=ranks + BACKLOG)
        self._socket.settimeout(AGAIN_AFTER)
        self._waiting: dict[Connection, float] = {}
        self._lock = threading.Lock()
        self.port = int(self._socket.getsockname()[1])
        _open.add(self._socket)

    def close(self) -> None:
        """Let nobody in any more, and hang up on those who wait."""
        self._socket.close()
        self._hang_up(most=0)

    def open(self, admit: Callable[[Connection, dict[str, Any]], object]) -> None:
        """Wait half a second for somebody, and hang up on those who have stood there too long.

        Args:
            admit: Called in another thread with the connection of one that knows the key, and what it says of itself.
        """
        try:
            found = self._socket.accept()[0]
            found.setblocking(True)
            connection = _connection(found)
            with self._lock:
                self._waiting[connection] = time.monotonic()
            name = "upop-watchdog-handshake"
            threading.Thread(target=self._greet, args=(connection, admit), daemon=True, name=name).start()
        except TimeoutError:
            pass
        except (OSError, RuntimeError):  # no more files or threads
            time.sleep(0.1)
        self._hang_up(self._most)

    def _greet(self, connection: Connection, admit: Callable[[Connection, dict[str, Any]], object]) -> None:
        hello = None
        with suppress(*REFUSED):
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            hello = receive(connection)
        with self._lock:
            in_time = self._waiting.pop(connection, None) is not None
        if hello is None or not in_time or not _welcome(connection):
            connection.close()
            return
        admit(connection, hello)

    def _hang_up(self, most: int) -> None:
        now = time.monotonic()
        with self._lock:  # under which nobody closes one that still waits
            for connection, since in list(self._waiting.items()):
                if now - since > HANDSHAKE or len(self._waiting) > most:
                    del self._waiting[connection]
                    _shut(connection)


def enter(address: str, port: int, key: str, hello: dict[str, Any], seconds: float) -> Connection:
    """Connect to the door of rank 0, and wait until it has let this rank in.

    Args:
        address: Host of rank 0.
        port: Of its door.
        key: What a rank has to know.
        hello: What this one says of itself.
        seconds: How long to come again where that fails.

    Raises:
        ConnectionError: If it has failed for so long.
    """
    limit = time.monotonic() + seconds
    while True:
        try:
            return _enter(address, port, key.encode(), hello)
        except REFUSED as error:
            if time.monotonic() > limit:
                raise ConnectionError(str(error) or type(error).__name__) from error
        time.sleep(AGAIN_AFTER)


def _enter(address: str, port: int, key: bytes, hello: dict[str, Any]) -> Connection:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as plain:
        plain.settimeout(HANDSHAKE)
        plain.connect((address, port))
        plain.setblocking(True)
        connection = _connection(plain)
    try:  # without a limit: rank 0 takes a rank that hangs up after it was let in for dead
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        send(connection, hello)
        receive(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def send(connection: Connection, message: dict[str, Any]) -> None:
    """Send a message."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict[str, Any]:
    """Wait for a message.

    Raises:
        ValueError: If it is none.
        EOFError: If the other side has gone.
        OSError: If the other side is lost, or the message too long.
    """
    message = json.loads(connection.recv_bytes(LONGEST))
    if not isinstance(message, dict):
        raise ValueError(f"a message is a {type(message).__name__}")
    return message


def _connection(plain: socket.socket) -> Connection:
    """Make a connection of a socket, which notices within half a minute that the machine at the other end is gone."""
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    connection = Connection(plain.detach())
    _open.add(connection)
    return connection


def _welcome(connection: Connection) -> bool:
    """Tell a rank that it is in; else it comes again."""
    try:
        send(connection, {})
    except OSError:
        return False
    return True


def _shut(connection: Connection) -> None:
    """End a connection under a thread that waits for it, which then closes it."""
    plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=connection.fileno())
    with suppress(OSError):  # the other side was faster
        plain.shutdown(socket.SHUT_RDWR)
    plain.detach()


def _forget() -> None:
    """In a forked process: let go of the connections; a worker must not hold those of a dead process."""
    for connection in list(_open):
        connection.close()


os.register_at_fork(after_in_child=_forget)
