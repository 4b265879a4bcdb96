"""Runs that are killed: at a moment of the clock, at a file operation in their directory, or amid the bytes of a file.

``python -m tests.runs.killing CONFIG RUN_DIR... --kills N`` forks a child for each attempt, after everything has been
imported once, and runs ``upop fit`` in it. The first run directory is never killed; into each of the others a share of
the kills falls, before its last attempt is left alone. Prints what was killed where, as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import resource
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

IMPORTED = (
    "lightning.pytorch.cli",
    "torchvision",
    "upop.cli",
    "upop.data",
    "upop.runs",
    "upop.runs.summary",
    "upop.tasks",
)
MODIFYING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate", "os.chmod")
TORN = (
    r"^open .*\.tmp\.ckpt$",
    r"^open .*\.tmp\.safetensors$|^os.mkdir .*/\.(model|compressed)-\w+$",
    r"^open .*\.tmp\.json$",
)
"""Operations amid whose bytes a kill falls: a checkpoint, weights in a file or a directory of their own, JSON."""
LONGEST = (400_000, 80_000, 400)
"""Bytes of which one is drawn for each; the files are larger."""
BETWEEN = ("^os.mkdir search$", "^os.mkdir retrain$")
"""Operations that follow upon the end of a phase."""


@dataclass
class Kill:
    """One kill.

    Attributes:
        run: Name of the run directory.
        by: ``clock``, ``file`` or ``bytes``.
        phases: Phases that were done.
        started: Phases whose directories were there.
        what: The file operation that it fell on, for ``file``; for ``bytes`` the torn file and how long it is.
    """

    run: str
    by: str
    phases: list[str]
    started: list[str]
    what: str


@dataclass(frozen=True)
class Place:
    """A file operation in the run directory at which a run is killed.

    Attributes:
        pattern: Of the operations that are counted: their event and path.
        number: Which of them, from 1.
        size: Bytes that the file which it opens, or one in the directory which it makes, reaches before the system
            kills the run; if none gets so long, the run is killed once they are written. None: just before it.
        cut: Let them be written, and leave so many bytes of the longest: safetensors asks for room for the whole file
            first, which the system refuses, so that nothing would be torn.
    """

    pattern: str = ""
    number: int = 1
    size: int | None = None
    cut: bool = False


def attempt(config: Path, run: Path, seconds: float | None = None, place: Place | None = None) -> tuple[int, list[str]]:
    """Run ``upop fit`` in a child until it is killed, if it is.

    Args:
        config: Recipe.
        run: Run directory.
        seconds: When to kill it.
        place: Where to kill it.

    Returns:
        The signal that ended it, 0 if it ended well, and the file operations that it began.
    """
    note = run.with_name(f"{run.name}.operations")
    child = os.fork()
    if child == 0:
        _watch(run, note, place)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the child)
        from upop.cli import main

        code = 0
        try:
            main(["fit", "--config", str(config), "--run_dir", str(run)])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        os._exit(code)
    start, status = time.monotonic(), None
    while status is None:
        ended, found = os.waitpid(child, os.WNOHANG)
        if ended:
            status = found
        elif seconds is not None and time.monotonic() - start > seconds:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        else:
            time.sleep(0.005)
    lines = note.read_text().splitlines() if note.is_file() else []
    note.unlink(missing_ok=True)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"{run.name} failed with exit code {os.WEXITSTATUS(status)}")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, lines


def _watch(run: Path, note: Path, place: Place | None) -> None:
    """Note every operation that changes a file below ``run``, and die at one of them."""
    log = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    below, count, torn, dying = str(run) + os.sep, 0, "", False
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores: a file that is too long ends the process
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count, torn, dying
        writes = event in MODIFYING or (event == "open" and _writes(arguments))
        paths = [os.fsdecode(one) for one in arguments[:2] if isinstance(one, (str, bytes, os.PathLike))]
        if dying or not writes or not any(path.startswith(below) for path in paths):
            return
        if torn:
            if event not in ("open", "os.mkdir") or not paths[0].startswith(torn):  # all is written
                file, dying = longest(Path(torn)), True
                if place is not None and place.cut and place.size is not None and file.stat().st_size > place.size:
                    os.truncate(file, place.size)
                os.kill(os.getpid(), signal.SIGKILL)
            return
        line = f"{event} {paths[0].removeprefix(below)}"
        os.write(log, f"{line}\n".encode())
        count += place is not None and bool(re.search(place.pattern, line))
        if place is None or count != place.number:
            return
        if place.size is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            torn = paths[0]
            if not place.cut:
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (place.size, hard))

    sys.addaudithook(hook)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def longest(path: Path) -> Path:
    """A file, or the longest in a directory."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size, default=path)


def draw_place(draw: random.Random, operations: list[str], run: int, turn: int) -> Place:
    """Where a kill of ``main`` falls, of which those by the clock are left out."""
    if turn == 0 and run < len(BETWEEN):
        return Place(BETWEEN[run])
    if turn % 3 == 0:
        return Place(number=draw.randint(1, len(operations) // 3))
    kind = (run + turn // 3) % len(TORN)
    found = sum(bool(re.search(TORN[kind], line)) for line in operations)
    number = draw.randint(1, found // 8) if kind == 0 else 1  # of the others there are few
    size = draw.randint(1, LONGEST[kind])
    return Place(TORN[kind], number, size, cut="safetensors" in TORN[kind] and draw.random() < 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--kills", type=int, default=30)
    options = parser.parse_args()
    for name in IMPORTED:
        importlib.import_module(name)
    whole, *others = options.runs
    start = time.monotonic()
    _, operations = attempt(options.config, whole)
    seconds = time.monotonic() - start
    draw = random.Random(0)
    kills: list[Kill] = []
    for number, run in enumerate(others):
        for turn in range(-(-(options.kills - len(kills)) // (len(others) - number))):
            by_clock = turn % 3 == 2
            after = draw.uniform(0.05, 0.5) * seconds if by_clock else None
            place = None if by_clock else draw_place(draw, operations, number, turn)
            ended_by, begun = attempt(options.config, run, after, place)
            if not ended_by:
                break
            state = run / "state.json"
            done = list(json.loads(state.read_text())["phases"]) if state.is_file() else []
            started = [phase for phase in ("finetune", "search", "retrain") if (run / phase).is_dir()]
            by, what = ("clock", "") if by_clock else ("file", begun[-1])
            if place is not None and place.size is not None:
                file = longest(run / begun[-1].partition(" ")[2])
                if ended_by == signal.SIGXFSZ or file.stat().st_size == place.size:
                    by, what = "bytes", f"{file.relative_to(run)} {file.stat().st_size}"
            kills.append(Kill(run.name, by, done, started, what))
        else:
            assert not attempt(options.config, run)[0]
    print(json.dumps({"seconds": seconds, "operations": len(operations), "kills": [asdict(kill) for kill in kills]}))


if __name__ == "__main__":
    main()
