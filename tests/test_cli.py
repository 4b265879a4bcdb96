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

from tests import tiny
from tests.export import test_importing as importing
from tests.recipes import write
from tests.report import samples
from tests.report.reading import read, tables, values
from upop.cli import main
from upop.export import save
from upop.files import write_json
from upop.structure import Plan


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail, and return its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("upop: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("upop: error: ")


def test_help_names_every_verb_in_under_two_seconds() -> None:
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "upop.cli", "--help"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    for verb in ("fit", "finetune", "search", "retrain", "test", "report", "inspect", "import"):
        assert f"  {verb} " in result.stdout
    assert (
        "torch"
        not in subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "upop.cli", "--help"], capture_output=True, text=True, check=True
        ).stderr
    )
    assert seconds < 2.0


@pytest.mark.parametrize("verb", ["fit", "finetune", "search", "retrain", "test"])
def test_help_of_a_verb_explains_the_keys(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--search.interval" in out
    assert "Optimizer steps between two mask updates" in out
    assert "--retrain.epochs" in out


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"remved": 0.5}}, "Group 'search' does not accept option 'remved'; did you mean 'removed'?"),
        ({"serach": {"removed": 0.5}}, "Option 'serach.removed' is not accepted; did you mean 'search'?"),
        ({"search": {"removed": "half"}}, 'Parser key "search.removed": Expected float. Got value: half'),
        (
            {"search": {"schedule": "sin"}},
            "Parser key \"search.schedule\": Expected one of ['sine', 'cubic', 'one_shot']. Got value: sin",
        ),
        (
            {"trainer": {"max_epoch": 3}},
            "Group 'trainer' does not accept option 'max_epoch'; did you mean 'max_epochs'?",
        ),
        ({"trainer": {"accelerator": "abacus"}}, "abacus"),
        ({"trainer": {"devices": 0}}, "trainer: `Trainer(devices=0)` value is not a valid input"),
        (
            {"run_dir": "/dev/null/run"},
            "run directory '/dev/null/run' is not writable: Not a directory; choose another",
        ),
        (
            {"search": {"floor": {"vision": 0.9, "text": 0.9}}},
            "search.floor['vision'] = 0.9 bind: loosen them, or change",
        ),
        ({"rundir": "x"}, "Option 'rundir' is not accepted; did you mean 'run_dir'?"),
        (
            {"search": {"removed": 1.3}},
            "search.removed is 1.3; it is the fraction to remove, between 0 and 1 (exclusive)",
        ),
        ({"retrain": {"epochs": -1}}, "epochs is -1; give 0 or more"),
        ({"retrain": {"epochs": "many"}}, 'Parser key "retrain.epochs": Expected int. Got value: many'),
        ({"distill": {"logit": 1.0}}, "Group 'distill' does not accept option 'logit'; did you mean 'logits'?"),
        (
            {"trainer": {"max_epochs": 3}},
            "trainer.max_epochs is 3, but upop sets it; set finetune.epochs, search.epochs",
        ),
        ({"trainer": {"precision": "bf16-true"}}, "trainer.precision is 'bf16-true', but weights stay in fp32; give"),
        ({"trainer": {"enable_checkpointing": False}}, "trainer.enable_checkpointing is False, but a run has to be"),
        ({"trainer": {"strategy": "fsdp"}}, "trainer.strategy is 'fsdp', which shards weights that masks need whole"),
        ({"search": {"policy": "unfied"}}, "did you mean 'unified'?"),
        ({"search": {"floor": {"audio": 0.1}}}, "audio"),
        ({"search": {"multiple_of": {"neuron": 4096}}}, "4096"),
        ({"search": {"ceiling": {"vision": 0.1, "text": 0.1}}}, "ceiling"),
    ],
)
def test_a_wrong_key_or_value_in_the_recipe(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    for key, value in change.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    assert message in fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))


def test_the_beginning_of_an_option_is_not_the_option(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(config, tmp_path / "config.yaml"))
    line = fails(capsys, "fit", "--config", file, "--search.remove", "0.75")
    assert line.endswith("unrecognized arguments: --search.remove 0.75; did you mean 'removed'?")


def test_a_wrong_key_of_the_task_or_the_data(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["data"]["init_args"]["batchsize"] = 3
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line.endswith("'upop.data.ShapesRetrieval': Option 'batchsize' is not accepted; did you mean 'batch_size'?")
    del config["data"]["init_args"]["batchsize"]
    config["model"]["init_args"]["contrst"] = "batch"
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line.endswith("'upop.tasks.Retrieval': Option 'contrst' is not accepted; did you mean 'contrast'?")


def test_a_wrong_value_of_the_data_is_all_that_is_said(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["data"]["init_args"]["batch_size"] = 0
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line == "batch_size is 0; set it to 1 or more"


def test_a_wrong_class(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config["model"]["class_path"] = "upop.tasks.Retrival"
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line.endswith("module 'upop.tasks' has no attribute 'Retrival'; did you mean 'Retrieval'?")


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


def test_report_of_several_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for number, name in enumerate(("one", "two"), start=1):
        runs.append(str(tmp_path / name))
        write_json(tmp_path / name / "summary.json", samples.summary(removed=0.25 * number))
    monkeypatch.chdir(tmp_path)
    main(["report", *runs])
    assert capsys.readouterr().out == "report: report.html\n"
    assert "2 runs compared" in (tmp_path / "report.html").read_text()
    main(["report", *runs, "--to", "other/page.html", "--metric", "i2t_r1"])
    assert "image to text R@1 against parameters" in (tmp_path / "other/page.html").read_text()
    assert fails(capsys, "report", *runs, "--metric", "men") == (
        "run 'one' has no metric 'men'; all runs have ['i2t_r1', 'mean']; did you mean 'mean'?"
    )
    assert fails(capsys, "report", str(tmp_path / "three")) == (
        f"no run directory at '{tmp_path / 'three'}'; give one that `upop fit` has written"
    )


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
        [sys.executable, "-m", "upop.cli", "fit", "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"upop: error: checkpoint '{tmp_path}/model' lacks weights ['logit_scale']; is it complete, and does its "
        "config.json belong to it?\n"
    ), "one line, and nothing else"


def test_import_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    like = save(tiny.build("blip_captioning"), importing.processor(importing.bert()), tmp_path / "like")
    made = importing.larger("captioning")
    file = importing.checkpoint(tmp_path / "model.pth", made, lambda state: state.update(temp=torch.zeros(1)))
    options = ["import", file, "--like", str(like), "--to", str(tmp_path / "out")]
    assert fails(capsys, *options) == (
        f"'{file}' is for images of 24 pixels, --like '{like}' for 16; give --image-size 24 to take it as it is, or "
        "another to interpolate its position embeddings"
    )
    capsys.readouterr()
    main([*options, "--image-size", "32"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"took {len(made.state_dict())} tensors, of captioning"
    assert lines[1] == "dropped ['temp']"
    assert "interpolated the position embeddings from 24 to 32 pixels" in lines
    assert lines[-1] == f"wrote {tmp_path / 'out'}"
    main(["inspect", str(tmp_path / "out")])
    assert "fusion" in capsys.readouterr().out
    assert fails(capsys, *options) == f"'{tmp_path / 'out'}' exists already; give a directory that does not"


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


def test_the_installed_command_runs(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("upop")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, env=os.environ, check=True)
    assert result.stdout.startswith("upop ")
