"""Who is let in, who is not, and that nobody waits for a stranger. Between ranks: test_watchdog.py."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

import pytest

from tests.runs.strangers import STAYING, STRANGERS, drips, has_a_wrong_key, stay
from upop.runs import connections
from upop.runs.connections import Door, enter, receive, send

KEY = "a key"


class House:
    """A door that is open until the end of a test, and who has come in."""

    def __init__(self, ranks: int = 2) -> None:
        self.door = Door("127.0.0.1", KEY, ranks)
        self.guests: queue.Queue[tuple[Connection, dict[str, Any]]] = queue.Queue()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.live)
        self.thread.start()

    def live(self) -> None:
        while not self.closing.is_set():
            self.door.open(lambda connection, hello: self.guests.put((connection, hello)))
        self.door.close()

    def enter(self, key: str = KEY, seconds: float = 5.0) -> Connection:
        return enter("127.0.0.1", self.door.port, key, {"rank": 1}, seconds)

    def close(self) -> None:
        self.closing.set()
        self.thread.join()
        while STAYING:
            STAYING.pop().close()


def hung_up(plain: socket.socket, seconds: float) -> bool:
    """Whether the other side ends a connection within some seconds."""
    plain.settimeout(seconds)
    try:
        while plain.recv(1000):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


def test_both_sides_hear_one_another(house: House) -> None:
    mine = house.enter()
    theirs, hello = house.guests.get(timeout=5)
    assert hello == {"rank": 1}
    send(mine, {"text": "é"})
    assert receive(theirs) == {"text": "é"}
    send(theirs, {"kind": "done"})
    assert receive(mine) == {"kind": "done"}
    mine.close()
    with pytest.raises(EOFError):
        receive(theirs)


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda stranger: stranger.__name__)
def test_strangers_keep_nobody_waiting(
    house: House, stranger: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    stranger(house.door.port)
    start = time.monotonic()
    connection = house.enter()
    assert time.monotonic() - start < 3
    assert house.guests.get(timeout=5)[1] == {"rank": 1}
    assert house.guests.empty(), "nobody else was let in"
    assert capfd.readouterr() == ("", "")
    connection.close()


def test_who_says_nothing_is_sent_away_in_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE", 1.0)
    start = time.monotonic()
    drips(house.door.port)
    silent = stay(house.door.port)
    assert all(hung_up(one, seconds=5.0) for one in (*STAYING, silent))
    assert 0.9 < time.monotonic() - start < 5


def test_of_too_many_the_first_is_sent_away(house: House) -> None:
    many = [stay(house.door.port) for _ in range(connections.STRANGERS + 2 + 1)]
    assert hung_up(many[0], seconds=5.0)
    assert not hung_up(many[-1], seconds=0.5)


def test_nobody_waits_at_a_door_that_is_closed(house: House) -> None:
    silent = stay(house.door.port)
    house.enter().close()  # so that it has been let wait
    house.closing.set()
    house.thread.join()
    assert hung_up(silent, seconds=2.0)
    with pytest.raises(ConnectionError, match="refused"):
        house.enter(seconds=0.0)


def test_a_rank_that_was_sent_away_comes_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse_once(connection: Connection, key: bytes) -> None:
        asked.append(key)
        if len(asked) == 1:
            raise EOFError
        deliver_challenge(connection, key)

    monkeypatch.setattr(connections, "deliver_challenge", refuse_once)
    house.enter().close()
    assert len(asked) == 3, "once at the door in vain, and then by both sides"


def test_who_knows_another_key_gives_up_and_says_why(house: House) -> None:
    has_a_wrong_key(house.door.port)
    with pytest.raises(ConnectionError, match="digest sent was rejected"):
        house.enter("another key", seconds=0.0)
    assert house.guests.empty()


def test_a_port_where_nobody_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionError, match="refused"):
        enter("127.0.0.1", port, KEY, {}, 0.0)


def test_a_message_is_an_object_of_limited_length(house: House) -> None:
    mine = house.enter()
    theirs, _ = house.guests.get(timeout=5)
    mine.send_bytes(b"[1]")
    with pytest.raises(ValueError, match="a message is a list"):
        receive(theirs)
    mine.send_bytes(b"{" + b" " * connections.LONGEST + b"}")
    with pytest.raises(OSError, match="bad message length"):
        receive(theirs)


def test_a_forked_process_holds_no_connection(house: House) -> None:
    mine = house.enter()
    theirs, _ = house.guests.get(timeout=5)
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    mine.close()
    ended = threading.Event()

    def hear() -> None:
        try:
            receive(theirs)
        except EOFError:
            ended.set()

    threading.Thread(target=hear, daemon=True).start()
    try:
        assert ended.wait(5)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_other_side_knows_the_key_too(house: House) -> None:
    """Somebody who listens in place of rank 0 is found out."""
    impostor = socket.create_server(("127.0.0.1", 0))

    def pretend() -> None:
        plain = impostor.accept()[0]
        connection = Connection(plain.detach())
        try:
            connection.send_bytes(b"#CHALLENGE#" + b"x" * 40)
            connection.recv_bytes(256)
            connection.send_bytes(b"#WELCOME#")
            answer_challenge(connection, b"a guess")
        except Exception:
            connection.close()

    threading.Thread(target=pretend, daemon=True).start()
    with pytest.raises(ConnectionError):
        enter("127.0.0.1", impostor.getsockname()[1], KEY, {}, 0.0)
    impostor.close()
