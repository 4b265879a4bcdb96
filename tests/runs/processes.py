"""Runs in processes of their own, as a user starts them, over one rank and over two, and what they have to agree in."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from tests.recipes import recipe, tiny_config, write
from upop.runs import RunDirectory, fit

ROOT = Path(__file__).parents[2]
WEIGHTS = ("search/compressed/model.safetensors", "compressed/model.safetensors")
CARRIED = "search/carried.safetensors"
LIMIT = 300
"""Seconds that a run may take, on a machine that is busy with others; it takes ten to forty."""


class Die(Callback):
    """Kills its process in the second epoch, where the environment says so; without a word, as a cluster does."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if os.environ.get("UPOP_TEST_DIE") and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def started(verb: str, config: dict[str, Any], *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """``upop`` on a configuration, in a process group of its own that is killed where this with-block fails."""
    path = write(config, Path(config["run_dir"]).with_suffix(".yaml"))
    process = subprocess.Popen(
        [sys.executable, "-m", "upop", verb, "--config", str(path), *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def upop(verb: str, config: dict[str, Any], *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``upop`` on a configuration, and leave none of its processes behind.

    With an environment, in which it may fail, its other ranks are killed as soon as the command itself has ended.
    """
    with started(verb, config, *options, **environment) as process:
        if environment:
            process.wait(timeout=LIMIT)  # its other ranks hold the pipes until they are killed
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def settings(checkpoint: Path, run_dir: Path, **model: Any) -> dict[str, Any]:
    """One process, a global batch of 6; validation and test splits that two ranks cannot share evenly."""
    config = tiny_config(checkpoint, run_dir)
    config["model"]["init_args"] |= model
    config["data"]["init_args"] |= {"val_scenes": 5, "test_scenes": 7, "eval_batch_size": 2}
    config["distill"] = {"logits": 1.0, "features": 1.0}
    config["trainer"]["callbacks"] = [{"class_path": "tests.runs.processes.Die"}]
    del config["trainer"]["limit_val_batches"]
    return config


def over_two_ranks(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The same run in two processes."""
    config = copy.deepcopy(config) | {"run_dir": str(run_dir)}
    config["data"]["init_args"]["batch_size"] //= 2
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    return config


def fit_here(config: dict[str, Any]) -> Path:
    """Run a configuration in this process."""
    path = Path(config["run_dir"])
    made = recipe(config, path.with_suffix(".yaml"))
    fit(made, RunDirectory(path, made.config))
    return path


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ended_by(group: int, seconds: float) -> None:
    """Wait until no process of a group is left."""
    limit = time.monotonic() + seconds
    while alive(group):
        assert time.monotonic() < limit, "a rank goes on alone"
        time.sleep(0.1)


def alive(group: int) -> bool:
    """Whether a process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def result(run: Path) -> dict[str, Any]:
    """Everything that a run gives, but for its durations and the speed that was measured."""
    state = json.loads((run / "state.json").read_text())
    for facts in state["phases"].values():
        facts.pop("seconds_last_attempt")
    summary = json.loads((run / "summary.json").read_text())
    told = {key: summary[key] for key in ("recipe", "removed", "sites", "search", "steps_left_out")}
    files = {str(file.relative_to(run)): file.read_bytes() for file in sorted((run / "compressed").iterdir())}
    return {"state": state, "told": told, "plan": (run / "plan.json").read_bytes()} | files


def assert_killed_goes_on(config: dict[str, Any], broken: Path) -> None:
    """Run a configuration in ``broken``, killed in its search and started again: the same bytes as of its own run."""
    again = config | {"run_dir": str(broken)}
    assert upop("fit", again, UPOP_TEST_DIE="1").returncode == -signal.SIGKILL
    assert not (broken / "plan.json").exists()
    result = upop("fit", again)
    assert result.returncode == 0, result.stderr
    assert "search: going on from" in result.stderr
    for name in ("plan.json", CARRIED, *WEIGHTS):
        assert (broken / name).read_bytes() == (Path(config["run_dir"]) / name).read_bytes(), name


def assert_same(one: Path, two: Path, files: tuple[str, ...]) -> None:
    """The same units and, up to float rounding, the same weights, gradients and scores of the search.

    Softmax does not feel the bias of the keys: its gradient is rounding noise, which Adam turns into whole steps.
    """
    # Adam hides a wrong factor on the gradients, and so does the ranking on the scores; their sums show it
    last = assert_same_search(one, two)
    for file in files:
        expected, found = load_file(one / file), load_file(two / file)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if not name.endswith("k_proj.bias"):
                close(found[name], value, f"{file}: {name}")
    moments = [moments_of(checkpoint) for checkpoint in last]
    assert len(moments[0]) == len(moments[1]) > 50
    for expected_moment, found_moment in zip(*moments, strict=True):
        close(found_moment, expected_moment, f"gradient of a parameter {tuple(expected_moment.shape)}")


def assert_same_search(one: Path, two: Path) -> list[dict[str, Any]]:
    """The same units and, up to float rounding, the same scores; returns both last checkpoints of the search."""
    plans = [json.loads((run / "plan.json").read_text())["keep"] for run in (one, two)]
    assert plans[0] == plans[1]
    last = [torch.load(run / "search/checkpoints/last.ckpt", weights_only=True) for run in (one, two)]
    scores = [scores_of(checkpoint) for checkpoint in last]
    assert any(bool(score.abs().max() > 1e-3) for score in scores[0].values())
    for name, score in scores[0].items():
        close(scores[1][name], score, f"score of {name}")
    return last


def close(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=3e-5, msg=lambda text: f"{what}: {text}")


def moments_of(checkpoint: dict[str, Any]) -> list[torch.Tensor]:
    """Adam's first moments, by shape and then in the order of the model; strategies number parameters in other ways."""
    state = checkpoint["optimizer_states"][0]["state"]
    found = [state[number]["exp_avg"] for number in sorted(state)]
    return sorted(found, key=lambda moment: tuple(moment.shape))


def scores_of(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the policy had accumulated, by site."""
    state = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("ProgressiveSearch"))
    return state["policy"]["sums"]
