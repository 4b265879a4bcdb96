"""Searches of BLIP's tasks, each twice: in one process and in two, with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.recipes import recipe, write
from tests.runs.processes import ROOT, free_port
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


def search_twice(folder: Path, doubled: Callable[[dict[str, Any], Path], dict[str, Any]]) -> Path:
    """Run the search of every task that can be scored here, in ``<task>/one`` and, on two ranks, in ``<task>/two``.

    Args:
        folder: Where to; it is returned.
        doubled: Makes a configuration over two ranks of one for one, given the run directory of the former.
    """
    paths = {"one": list[str](), "two": list[str]()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # recipes name their models relative to it
        for task in [task for task in TASKS if task != "caption" or scorable()]:
            one = configuration(task, folder)
            for name, config in (("one", one), ("two", doubled(one, folder / task / "two"))):
                paths[name].append(str(write(config, folder / f"{task}_{name}.yaml")))
        on_two_ranks(paths["two"])
        search(*paths["one"])
    return folder


def both(folder: Path, task: str) -> tuple[Path, Path]:
    """The runs of a task that :func:`search_twice` left; skips the test where the task cannot be scored."""
    if task == "caption" and not scorable():
        pytest.skip("captions cannot be scored here")
    return folder / task / "one", folder / task / "two"


def scorable() -> bool:
    """Whether captions can be scored on this machine."""
    try:
        check_metrics(["bleu_4"])
    except FileNotFoundError:
        return False
    return True


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


def search(*paths: str) -> None:
    """Run the searches of these configurations; each rank of a run does."""
    for path in paths:
        copy = Path(path).with_suffix(f".{os.environ.get('LOCAL_RANK', 'alone')}.yaml")  # ranks write their own
        made = recipe(yaml.safe_load(Path(path).read_text()), copy)
        fit(made, RunDirectory(made.config["run_dir"], made.config), only="search")


def on_two_ranks(paths: list[str]) -> None:
    """As :func:`search`, in two processes, which a launcher of the tests' own starts: importing torch takes longest."""
    port = str(free_port())
    code = "import sys; from tests.runs.blip_searches import search; search(*sys.argv[1:])"
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
