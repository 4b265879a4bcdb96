"""Runs over two processes, started as a user starts them: the same plan, weights and metrics as one process has."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file

from tests.recipes import other_checkpoint, recipe, tiny_config, write
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


def upop(verb: str, config: dict[str, Any], *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``upop`` on a configuration in a process group of its own, and leave none of its processes behind."""
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
        if environment:
            process.wait(timeout=LIMIT)  # its other ranks hold the pipes until they are killed
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate(timeout=LIMIT)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def settings(checkpoint: Path, run_dir: Path, **model: Any) -> dict[str, Any]:
    """One process, a global batch of 6; validation and test splits that two ranks cannot share evenly."""
    config = tiny_config(checkpoint, run_dir)
    config["model"]["init_args"] |= model
    config["data"]["init_args"] |= {"val_scenes": 5, "test_scenes": 7, "eval_batch_size": 2}
    config["distill"] = {"logits": 1.0, "features": 1.0}
    config["trainer"]["callbacks"] = [{"class_path": "tests.runs.test_distributed.Die"}]
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


def assert_same(one: Path, two: Path, files: tuple[str, ...]) -> None:
    """The same units and, up to float rounding, the same weights, gradients and scores of the search.

    Softmax does not feel the bias of the keys: its gradient is rounding noise, which Adam turns into whole steps.
    """
    assert json.loads((one / "plan.json").read_text())["keep"] == json.loads((two / "plan.json").read_text())["keep"]
    for file in files:
        expected, found = load_file(one / file), load_file(two / file)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if not name.endswith("k_proj.bias"):
                close(found[name], value, f"{file}: {name}")
    # Adam hides a wrong factor on the gradients, and so does the ranking on the scores; their sums show it
    last = [torch.load(run / "search/checkpoints/last.ckpt", weights_only=True) for run in (one, two)]
    moments = [moments_of(checkpoint) for checkpoint in last]
    assert len(moments[0]) == len(moments[1]) > 50
    for expected_moment, found_moment in zip(*moments, strict=True):
        close(found_moment, expected_moment, f"gradient of a parameter {tuple(expected_moment.shape)}")
    scores = [scores_of(checkpoint) for checkpoint in last]
    assert any(bool(score.abs().max() > 1e-3) for score in scores[0].values())
    for name, score in scores[0].items():
        close(scores[1][name], score, f"score of {name}")


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


@pytest.fixture(scope="module")
def queue_runs(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, subprocess.CompletedProcess[str]]:
    """The configuration over two ranks, the directory of the same run in one process, and how the former went."""
    folder = tmp_path_factory.mktemp("queue")
    config = settings(checkpoint, folder / "one", contrast="queue", queue_size=24, momentum=0.9)
    both = over_two_ranks(config, folder / "two")
    return both, fit_here(config), upop("fit", both)


def test_two_ranks_leave_what_one_process_leaves(
    queue_runs: tuple[dict[str, Any], Path, subprocess.CompletedProcess[str]],
) -> None:
    config, one, result = queue_runs
    two = Path(config["run_dir"])
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.count("compressed model") == 1, "the summary is printed once"
    assert result.stderr.count("plan written to") == 1
    states = [json.loads((run / "state.json").read_text()) for run in (one, two)]
    assert list(states[1]["phases"]) == ["search", "retrain"]
    assert not list(two.rglob(".*")), "no temporary files stay"
    assert [path.name for path in sorted((two / "search/logs").iterdir())] == ["version_0"]
    assert_same(one, two, (*WEIGHTS, CARRIED))
    assert states[0]["evaluations"]["dense"] == states[1]["evaluations"]["dense"], "uneven shards, the same recalls"


@pytest.mark.slow
def test_two_ranks_contrast_their_common_batch(checkpoint: Path, tmp_path: Path) -> None:
    config = settings(checkpoint, tmp_path / "one", contrast="batch")
    config["finetune"] = {"epochs": 1, "lr": 1e-3}
    config["trainer"]["accumulate_grad_batches"] = 2
    both = over_two_ranks(config, tmp_path / "two")
    result = upop("fit", both)
    assert result.returncode == 0, result.stderr
    assert_same(fit_here(config), tmp_path / "two", ("finetune/model/model.safetensors", *WEIGHTS))


@pytest.mark.slow
def test_a_run_killed_on_two_ranks_goes_on_to_the_same_result(
    queue_runs: tuple[dict[str, Any], Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    config, _, _ = queue_runs
    broken = config | {"run_dir": str(tmp_path / "broken")}
    assert upop("fit", broken, UPOP_TEST_DIE="1").returncode == -signal.SIGKILL
    assert not (tmp_path / "broken/plan.json").exists()
    result = upop("fit", broken)
    assert result.returncode == 0, result.stderr
    assert "search: going on from" in result.stderr
    for name in ("plan.json", CARRIED, *WEIGHTS):
        assert (tmp_path / "broken" / name).read_bytes() == (Path(config["run_dir"]) / name).read_bytes(), name


@pytest.mark.slow
def test_two_ranks_evaluate_a_checkpoint_as_one_does(checkpoint: Path, tmp_path: Path) -> None:
    config = settings(checkpoint, tmp_path / "one")
    one = upop("test", config)
    two = upop("test", over_two_ranks(config, tmp_path / "two"))
    assert one.returncode == two.returncode == 0, two.stderr
    assert "image to text R@1" in one.stdout
    assert two.stdout == one.stdout, "printed once, the same to the digit"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip", "dual_encoder"])
def test_other_dual_encoders_train_on_two_ranks(tmp_path: Path, name: str) -> None:
    checkpoint = other_checkpoint(tmp_path / name, name)
    result = upop("search", over_two_ranks(settings(checkpoint, tmp_path / "one"), tmp_path / "two"))
    assert result.returncode == 0, result.stderr


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    other = RunDirectory(tmp_path / "run", {"seed": 1})
    other.begin()
    other.finish("search", {})
    other.note_evaluation("dense", {"mean": 1.0})
    assert other.done("search"), "it knows what rank 0 writes"
    assert other.evaluation("dense") == {"mean": 1.0}
    assert not (tmp_path / "run").exists()
