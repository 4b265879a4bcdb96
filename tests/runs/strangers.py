"""Strangers at a port: what a scanner of a cluster does there."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Client

STAYING: list[socket.socket] = []
"""Connections that stay as long as the process."""


def stay(port: int, said: bytes = b"") -> socket.socket:
    """Connect, say something, and stay."""
    found = socket.create_connection(("127.0.0.1", port))
    found.sendall(said)
    STAYING.append(found)
    return found


def silent(port: int) -> None:
    stay(port)


def speaks_http(port: int) -> None:
    stay(port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")


def speaks_garbage(port: int) -> None:
    for number in range(8):
        stay(port, bytes((index * 37 + number) % 256 for index in range(5000)))


def gives_wrong_lengths(port: int) -> None:
    for length in (-1, -2, 0, 1, 20, 257, 2**31 - 1):
        stay(port, struct.pack("!i", length))
    stay(port, struct.pack("!iQ", -1, 2**63))


def leaves_at_once(port: int) -> None:
    for _ in range(8):
        socket.create_connection(("127.0.0.1", port)).close()


def resets(port: int) -> None:
    for _ in range(8):
        found = socket.create_connection(("127.0.0.1", port))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        found.close()


def has_a_wrong_key(port: int) -> None:
    def tries() -> None:
        with suppress(Exception):
            Client(("127.0.0.1", port), authkey=b"another")

    threading.Thread(target=tries, daemon=True).start()


def drips(port: int) -> None:
    """A byte now and then of an answer that never ends."""
    found = stay(port, struct.pack("!i", 200))

    def drip() -> None:
        with suppress(OSError):
            while True:
                found.sendall(b"x")
                time.sleep(0.2)

    threading.Thread(target=drip, daemon=True).start()


def are_many(port: int) -> None:
    for _ in range(200):
        stay(port)


STRANGERS: tuple[Callable[[int], None], ...] = (
    silent, speaks_http, speaks_garbage, gives_wrong_lengths, leaves_at_once, resets, has_a_wrong_key, drips, are_many,
)  # fmt: skip
