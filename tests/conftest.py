"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.recipes import tiny_checkpoint, tiny_config

pytest.register_assert_rewrite("tests.runs.blip_searches", "tests.runs.processes")  # their asserts say what differed

settings.register_profile("no deadline", deadline=None)  # how long an example takes says more about the machine
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained-looking CLIP directory."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration that runs all phases in seconds."""
    return tiny_config(checkpoint, tmp_path / "run")
