"""The command line: verbs, messages in one line with exit code 2, and a help that needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.cli.failing import fails
from tests.recipes import write
from tests.report.reading import read, tables, values
from upop.cli import main
from upop.structure import Plan


def test_help_names_every_verb_in_under_two_seconds() -> None:
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "upop", "--help"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    for verb in ("fit", "finetune", "search", "retrain", "test", "report", "bench", "inspect", "import"):
        assert f"  {verb} " in result.stdout
    assert (
        "torch"
        not in subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "upop", "--help"], capture_output=True, text=True, check=True
        ).stderr
    )
    assert seconds < 2.0


def test_fit_test_and_inspect(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(config, tmp_path / "config.yaml"))
    main(["fit", "--config", path])
    screen = capsys.readouterr().out
    assert "compressed model" in screen
    page = Path(config["run_dir"]) / "report.html"
    assert screen.splitlines()[-1] == f"report: {page}"
    written = page.read_text()
    plan = json.loads((page.parent / "plan.json").read_text())
    _, *rows = tables(read(written))["units kept at every site"]
    assert {row[0].text: values(row)[4] for row in rows} == {name: len(kept) for name, kept in plan["keep"].items()}
    main(["report", config["run_dir"]])
    assert capsys.readouterr().out == f"report: {page}\n"
    assert page.read_text() == written
    main(["test", "--config", path])
    assert "image to text R@1" in capsys.readouterr().out
    main(["test", "--config", path, "--checkpoint", config["model"]["init_args"]["checkpoint"]])
    assert "text to image R@10" in capsys.readouterr().out
    main(["inspect", path])
    assert "0.5 removed" in capsys.readouterr().out
    main(["inspect", str(Path(config["run_dir"]) / "compressed")])
    assert "compressed" in capsys.readouterr().out


def test_files_that_are_missing(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "File does not exist" in fails(capsys, "fit", "--config", str(tmp_path / "none.yaml"))
    assert "no checkpoint directory at '/nowhere/at/all'" in fails(capsys, "inspect", "/nowhere/at/all")
    config["model"]["init_args"]["checkpoint"] = "/nowhere/at/all"
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert "no checkpoint directory at '/nowhere/at/all'" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    config["data"] = photographs(tmp_path / "data") | {"class_path": "upop.data.Flickr8kRetrieval"}
    (tmp_path / "data/3.jpg").write_bytes(b"no picture")
    config["data"]["init_args"]["num_workers"] = workers
    path = str(write(config, tmp_path / "config.yaml"))
    expected = f"image '{tmp_path}/data/3.jpg' cannot be decoded: "
    assert fails(capsys, "fit", "--config", path).startswith(expected)
    assert fails(capsys, "fit", "--config", path, "--data.init_args.verify=true").startswith(
        f"1 of 16 images are broken: {expected}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": []}, "split 'train': 1 of 12 images have no caption or an empty one: ['3.jpg']"),
        ({"imgid": 15}, "gives id '15' to two images, '3.jpg' and '15.jpg'"),
        ({"filename": "4.jpg", "imgid": 4, "split": "test"}, "lists image '4.jpg' twice, in split 'test' and 'train'"),
        ({"filename": "17.jpg"}, "1 of 16 images are missing under "),
        ({"split": "tran"}, "'split' is 'tran'; expected one of ['restval', 'test', 'train', 'val']"),
    ],
)
def test_wrong_annotations_are_named(
    config: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    config["data"] = photographs(tmp_path / "data", change) | {"class_path": "upop.data.Flickr8kRetrieval"}
    assert message in fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))


def photographs(folder: Path, change: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a data module over sixteen images in three splits, the fourth entry changed."""
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for number in range(16):
        Image.new("RGB", (40, 40), (number * 10, 0, 0)).save(folder / f"{number}.jpg")
        split = "train" if number < 12 else "val" if number < 14 else "test"
        sentences = [{"raw": f"a red square {number}"}]
        entries.append({"filename": f"{number}.jpg", "split": split, "imgid": number, "sentences": sentences})
    entries[3] |= change or {}
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": entries}))
    return {"init_args": {"images": str(folder), "annotations": str(folder), "batch_size": 6, "num_workers": 0}}


def test_weights_that_are_missing(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(checkpoint / "model.safetensors")
    del weights["logit_scale"]
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    config["model"]["init_args"]["checkpoint"] = str(tmp_path / "model")
    path = write(config, tmp_path / "config.yaml")
    result = subprocess.run(
        [sys.executable, "-m", "upop", "fit", "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"upop: error: checkpoint '{tmp_path}/model' lacks weights ['logit_scale']; is it complete, and does its "
        "config.json belong to it?\n"
    ), "one line, and nothing else"


def test_a_plan_made_for_another_model(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Plan({"visual.0.mlp.neuron": (0, 1)}, {"visual.0.mlp.neuron": 4}, "another").save(tmp_path / "plan.json")
    path = str(write(config, tmp_path / "config.yaml"))
    line = fails(capsys, "test", "--config", path, "--plan", str(tmp_path / "plan.json"))
    assert line.startswith("plan names site 'visual.0.mlp.neuron', but this model has ['text_model.")
    assert line.endswith("was it made for this model?")


def test_another_configuration_on_a_run_directory(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(config, tmp_path / "config.yaml"))
    main(["search", "--config", path])
    line = fails(capsys, "fit", "--config", path, "--search.removed=0.75")
    assert "was started with another configuration (search.removed: 0.5 -> 0.75)" in line


def test_debug_shows_the_traceback(config: dict[str, Any], tmp_path: Path) -> None:
    config["search"]["removed"] = 2
    with pytest.raises(ValueError, match="search.removed is 2"):
        main(["fit", "--debug", "--config", str(write(config, tmp_path / "config.yaml"))])


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'fti'" in fails(capsys, "fti")


def test_an_interrupt_says_how_to_go_on(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("upop.runs.fit", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(write(config, tmp_path / "config.yaml"))])
    assert stop.value.code == 130
    assert "run the same command again to go on where it stood" in capsys.readouterr().err


def test_a_gpu_without_memory_says_what_helps(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1 is."
        )

    monkeypatch.setattr("upop.runs.fit", full)
    path = str(write(config, tmp_path / "config.yaml"))
    line = fails(capsys, "fit", "--config", path)
    assert line.startswith("CUDA out of memory. Tried to allocate 2.00 GiB; what helps: a smaller data.init_args.b")
    for setting in (
        "trainer.accumulate_grad_batches",
        "gradient_checkpointing",
        "bf16-mixed",
        "trainer.strategy: fsdp2",
    ):
        assert setting in line
    with pytest.raises(torch.OutOfMemoryError):
        main(["fit", "--debug", "--config", path])


def test_a_fault_of_upop_itself_keeps_its_traceback(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("upop.runs.fit", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(["fit", "--config", str(write(config, tmp_path / "config.yaml"))])


def test_the_installed_command_runs(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("upop")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, env=os.environ, check=True)
    assert result.stdout.startswith("upop ")
