from __future__ import annotations

import pytest

from upop.cli import main


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail, and return its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("upop: error: ")]
    assert len(lines) == 1
    assert said.rstrip().endswith(lines[0]), "the error is not the last that is said"
    return lines[0].removeprefix("upop: error: ")
