"""What the verbs do with what they are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests import tiny
from tests.cli.failing import fails
from tests.export import test_importing as importing
from tests.plans import random_plan
from tests.recipes import write
from tests.report import samples
from upop.cli import main
from upop.export import load, save
from upop.families import find_sites
from upop.files import write_json
from upop.surgery import shrink_


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


@pytest.mark.parametrize("verb", ["fit", "search", "test"])
def test_a_recipe_is_an_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, verb, "demo.yaml") == f"a recipe is given as an option: upop {verb} --config demo.yaml"


def test_inspect_takes_a_recipe_with_its_overlays(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, overlay = write(config, tmp_path / "base.yaml"), tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"search": {"units": ["neuron"]}}))
    main(["inspect", str(base)])
    assert "head_dim" in capsys.readouterr().out
    main(["inspect", str(base), str(overlay)])
    shown = capsys.readouterr().out
    assert "neuron" in shown
    assert "head_dim" not in shown


def test_inspect_shows_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, "inspect", "a", "b").startswith("upop inspect shows one model, not the 2 of ['a', 'b']")


@pytest.mark.parametrize("name", ["checkpoints/blip_base_vqa", "here/model"])
def test_inspect_of_a_directory_that_is_missing_asks_no_hub(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    line = fails(capsys, "inspect", name)
    assert line.startswith(f"no checkpoint directory at {name!r}; give a directory with config.json or a hub name")
    assert line.endswith("`upop import` makes one of its authors' file") == name.startswith("checkpoints/")


def test_bench_times_models_side_by_side(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, _ = load(checkpoint)
    sites = find_sites(model)
    plan = random_plan(sites, 1)
    shrink_(model, sites, plan)
    small = save(model, None, tmp_path / "small", plan, ("head_dim", "neuron"))
    options = ["bench", str(small), "--vs", str(checkpoint), "--batch-size", "2", "3", "--seconds", "0.01"]
    main([*options, "--json", "numbers.json"])
    shown = capsys.readouterr().out
    assert "picture: bench.png" in shown
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert {(timing["model"], timing["batch_size"]) for timing in found["timings"]} == {
        (name, size) for name in (small.name, checkpoint.name) for size in (2, 3)
    }
    assert fails(capsys, *options, "--dtype", "fp8").startswith("unknown dtype 'fp8'; known: ")
    assert fails(capsys, "bench", "nowhere/at/all").startswith("no model directory at 'nowhere/at/all'")


def test_export_writes_programs_and_fails_where_they_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.build("vit")
    sites = find_sites(model)
    plan = random_plan(sites, 1)
    shrink_(model, sites, plan)
    directory = save(model, None, tmp_path / "small", plan, ("head_dim", "neuron"))
    main(["export", str(directory), "--format", "torch", "--to", "programs"])
    assert "programs" in capsys.readouterr().out
    assert list((tmp_path / "programs").glob("*.pt2"))
    assert fails(capsys, "export", str(directory), "--format", "onxx").startswith("unknown format 'onxx'")
    save_as_it_is = torch.export.save

    def save_another(program: Any, *where: Any, **how: Any) -> None:
        name = next(name for name in program.state_dict if name.endswith("fc1.bias"))
        program.state_dict[name] = torch.nn.Parameter(program.state_dict[name].detach() + 0.1)
        save_as_it_is(program, *where, **how)

    monkeypatch.setattr(torch.export, "save", save_another)
    line = fails(capsys, "export", str(directory), "--format", "torch", "--to", "wrong")
    assert "does not compute what the model does" in line
    assert not (tmp_path / "wrong").exists()
