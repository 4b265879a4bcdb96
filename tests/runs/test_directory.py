"""Run directories: what they remember and what they refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from upop.runs import RunDirectory
from upop.runs.directory import read_state

CONFIG = {"search": {"removed": 0.5, "units": ["head_dim"]}, "data": {"init_args": {"num_workers": 2}}}


def test_it_remembers_phases_and_evaluations(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run", CONFIG)
    assert not first.done("search")
    assert first.evaluation("dense") is None
    first.finish("search", {"seconds": 1.0})
    first.note_evaluation("dense", {"mean": 19.45})
    again = RunDirectory(tmp_path / "run", CONFIG)
    assert again.done("search")
    assert again.facts("search") == {"seconds": 1.0}
    assert again.evaluation("dense") == {"mean": 19.45}
    assert again.facts("retrain") == {}


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    RunDirectory(tmp_path, CONFIG).begin()
    with pytest.raises(
        ValueError,
        match=r"was started with another configuration \(search.removed: 0.5 -> "
        r"0.75; search.seed: '\(not set\)' -> 3\); give",
    ):
        RunDirectory(tmp_path, {**CONFIG, "search": {"removed": 0.75, "units": ["head_dim"], "seed": 3}})


def test_a_configuration_that_has_not_begun_may_be_mended(tmp_path: Path) -> None:
    RunDirectory(tmp_path, CONFIG)
    RunDirectory(tmp_path, {"search": {"removed": 0.75}}).begin()
    with pytest.raises(ValueError, match=r"search.removed: 0.75 -> 0.5"):
        RunDirectory(tmp_path, CONFIG)


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    RunDirectory(tmp_path, CONFIG).begin()
    RunDirectory(tmp_path, {**CONFIG, "data": {"init_args": {"num_workers": 8}}})


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="root may write anywhere but /proc")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        PermissionError, match=r"run directory '.*file/run' is not writable: " ".*; choose another run_dir"
    ):
        RunDirectory(tmp_path / "file" / "run", CONFIG)


def test_a_state_of_another_format(tmp_path: Path) -> None:
    RunDirectory(tmp_path, CONFIG).finish("search", {})
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(ValueError, match="is of another format; this version reads format 1"):
        RunDirectory(tmp_path, CONFIG)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON.*delete the run directory to start again"):
        RunDirectory(tmp_path, CONFIG)


def test_the_state_is_read_without_opening_the_directory(tmp_path: Path) -> None:
    assert read_state(tmp_path) == {"format": 1, "phases": {}, "evaluations": {}}
    assert list(tmp_path.iterdir()) == []
    RunDirectory(tmp_path, CONFIG).finish("search", {"seconds": 1.0})
    assert read_state(tmp_path)["phases"] == {"search": {"seconds": 1.0}}
    for part in ("phases", "evaluations"):
        for wrong in (None, [], {"search": 3}):
            state = {"format": 1, "phases": {}, "evaluations": {}} | {part: wrong}
            (tmp_path / "state.json").write_text(json.dumps(state))
            with pytest.raises(ValueError, match=f"has no facts by name in '{part}'; delete the run directory to"):
                read_state(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "value", "wanted"),
    [
        ("phases", "model", 3, "path"),
        ("phases", "steps_left_out", -1, "count"),
        ("phases", "seconds_last_attempt", 10**400, "number"),
        ("phases", "history", [{"removed/params": 0.5}], "list of updates, each with its step and numbers"),
        ("evaluations", "mean", "high", "number"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, part: str, key: str, value: object, wanted: str) -> None:
    state = {"format": 1, "phases": {}, "evaluations": {}} | {part: {"search": {key: value}}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=f"as '{key}' of 'search' in '{part}', which is no {wanted}; delete the run"):
        read_state(tmp_path)


@pytest.mark.parametrize("text", ["&a {x: *a}", "[1]", "x: 2001-99-99", "{"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(
        ValueError, match=r"(?s)config\.yaml' (is not YAML|holds a list).*; delete the run directory to"
    ):
        RunDirectory(tmp_path, CONFIG)
