"""The same global batch in one process and in two: BLIP's tasks select the same units by the same sums of gradients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.recipes import recipe, write
from tests.runs.test_distributed import ROOT, close, over_two_ranks, scores_of
from upop.export import load, save
from upop.metrics.captions import check_metrics
from upop.runs import RunDirectory, fit

TASKS: dict[str, dict[str, Any]] = {
    "retrieval": {"k": 10, "negatives": "all_ranks", "contrast": "queue", "queue_size": 20, "momentum": 0.9},
    "vqa": {"k_test": 4},
    "caption": {"metrics": ["bleu_4"]},
    "nlvr": {},
}
DATA: dict[str, dict[str, Any]] = {
    "vqa": {"train_scenes": 13, "questions_per_scene": 2},
    "nlvr": {"train_pairs": 26, "test_pairs": 11},
}


def search(*paths: str) -> None:
    """Run the searches of these configurations; each rank of a run does."""
    for path in paths:
        copy = Path(path).with_suffix(f".{os.environ.get('LOCAL_RANK', 'alone')}.yaml")  # ranks write their own
        made = recipe(yaml.safe_load(Path(path).read_text()), copy)
        fit(made, RunDirectory(made.config["run_dir"], made.config), only="search")


def on_two_ranks(paths: list[str]) -> None:
    """As :func:`search`, in two processes, which a launcher of the tests' own starts: importing torch takes longest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = "import sys; from tests.runs.test_global_batch import search; search(*sys.argv[1:])"
    ranks = []
    try:
        for rank in ("0", "1"):
            places = {"LOCAL_RANK": rank, "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, "-c", code, *paths]
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | places
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        for process in ranks:
            _, errors = process.communicate(timeout=800)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()


def configuration(task: str, folder: Path) -> dict[str, Any]:
    """The search of a demo, made tiny: a global batch of 8, of 26 samples, and of the 11 to test on one rank has 6."""
    config: dict[str, Any] = yaml.safe_load((ROOT / f"configs/demo_{task}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    torch.manual_seed(0)
    checkpoint = folder / f"{task}_dense"
    architecture = "captioning" if task == "caption" else task
    save(*load(f"configs/models/shapes_blip_{architecture}", from_scratch=True), checkpoint)
    model |= TASKS[task] | {"checkpoint": str(checkpoint), "from_scratch": False}
    data |= {"train_scenes": 26, "test_scenes": 11, "batch_size": 8, "eval_batch_size": 2} | DATA.get(task, {})
    config["finetune"]["epochs"] = 0
    config["search"] |= {"epochs": 2, "interval": 2, "lr": 1e-4, "tolerance": 0.05}
    config["trainer"] |= {"devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1}
    return config | {"run_dir": str(folder / task / "one")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the runs of every task, in ``<task>/one`` and ``<task>/two``."""
    folder, paths = tmp_path_factory.mktemp("global_batch"), {"one": list[str](), "two": list[str]()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # recipes name their models relative to it
        for task in TASKS:
            if task == "caption" and not scorable():
                continue
            one = configuration(task, folder)
            two = over_two_ranks(one, folder / task / "two")
            for name, config in (("one", one), ("two", two)):
                paths[name].append(str(write(config, folder / f"{task}_{name}.yaml")))
        on_two_ranks(paths["two"])
        search(*paths["one"])
    return folder


def scorable() -> bool:
    """Whether captions can be scored on this machine."""
    try:
        check_metrics(["bleu_4"])
    except FileNotFoundError:
        return False
    return True


def moments(checkpoint: dict[str, Any]) -> dict[int, Tensor]:
    """The mean of the gradients that Adam kept, by parameter."""
    return {number: state["exp_avg"] for number, state in checkpoint["optimizer_states"][0]["state"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_ranks_select_what_one_process_selects(runs: Path, task: str) -> None:
    if task == "caption" and not scorable():
        pytest.skip("captions cannot be scored here")
    one, two = runs / task / "one", runs / task / "two"
    plans = [json.loads((run / "plan.json").read_text()) for run in (one, two)]
    assert plans[0]["keep"] == plans[1]["keep"]
    last = [torch.load(run / "search/checkpoints/last.ckpt", weights_only=True) for run in (one, two)]
    sums, means = [scores_of(checkpoint) for checkpoint in last], [moments(checkpoint) for checkpoint in last]
    assert max(float(score.abs().max()) for score in sums[0].values()) > 1e-3
    for name, score in sums[0].items():
        close(sums[1][name], score, f"score of {name}")
    assert len(means[0]) == len(means[1]) > 50
    for number, mean in means[0].items():
        close(means[1][number], mean, f"gradient of parameter {number}")
    scores = [json.loads((run / "state.json").read_text())["evaluations"] for run in (one, two)]
    for state in ("dense", "cut"):
        assert scores[1][state] == pytest.approx(scores[0][state]), state
