"""Runs that are killed: at a moment of the clock, or at a number of the file operations in their directory.

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


@dataclass
class Kill:
    """One kill.

    Attributes:
        run: Name of the run directory.
        by: ``clock`` or ``file``.
        phases: Phases that were done.
        started: Phases whose directories were there.
        what: The file operation that it fell on, for ``file``.
    """

    run: str
    by: str
    phases: list[str]
    started: list[str]
    what: str


def attempt(
    config: Path, run: Path, seconds: float | None = None, operation: int | None = None
) -> tuple[bool, int, str]:
    """Run ``upop fit`` in a child until it is killed, if it is.

    Args:
        config: Recipe.
        run: Run directory.
        seconds: When to kill it.
        operation: Number of the file operation in the run directory, from 1, just before which it is killed.

    Returns:
        Whether it ended well, how many file operations it began, and the last of them.
    """
    note = run.with_name(f"{run.name}.operations")
    child = os.fork()
    if child == 0:
        _watch(run, note, operation)
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
    return os.WIFEXITED(status), len(lines), lines[-1] if lines else ""


def _watch(run: Path, note: Path, operation: int | None) -> None:
    """Note every operation that changes a file below ``run``, and die at one of them."""
    log = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    below, count = str(run) + os.sep, 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        writes = event in MODIFYING or (event == "open" and _writes(arguments))
        paths = [os.fsdecode(one) for one in arguments[:2] if isinstance(one, (str, bytes, os.PathLike))]
        if writes and any(path.startswith(below) for path in paths):
            count += 1
            os.write(log, f"{event} {paths[0].removeprefix(below)}\n".encode())
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


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
    _, operations, _ = attempt(options.config, whole)
    seconds = time.monotonic() - start
    draw, kills = random.Random(0), []
    for number, run in enumerate(others):
        for turn in range(-(-(options.kills - len(kills)) // (len(others) - number))):
            by_file = turn % 3 != 2
            ended, _, what = attempt(
                options.config,
                run,
                None if by_file else draw.uniform(0.05, 0.7) * seconds,
                draw.randint(1, max(2, operations // 2)) if by_file else None,
            )
            if ended:
                break
            state = run / "state.json"
            done = list(json.loads(state.read_text())["phases"]) if state.is_file() else []
            started = [phase for phase in ("finetune", "search", "retrain") if (run / phase).is_dir()]
            kills.append(Kill(run.name, "file" if by_file else "clock", done, started, what if by_file else ""))
        else:
            assert attempt(options.config, run)[0]
    print(json.dumps({"seconds": seconds, "operations": operations, "kills": [asdict(kill) for kill in kills]}))


if __name__ == "__main__":
    main()
