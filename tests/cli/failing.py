from __future__ import annotations

import pytest

from upop.cli import main


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail, and return its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("upop: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("upop: error: ")
