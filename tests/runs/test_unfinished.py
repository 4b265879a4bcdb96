"""What a page shows of runs that are not finished, against what the runs themselves hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from tests.recipes import recipe, tiny_config
from tests.report.reading import Node, read, tables, values
from tests.runs.test_reporting import refused, run
from upop.export import load
from upop.families import find_sites
from upop.files import write_json
from upop.runs import RunDirectory, fit
from upop.runs.reporting import write_report
from upop.runs.unfinished import logged_updates
from upop.structure import Plan


@pytest.fixture(scope="module")
def phases(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory after each phase; nothing but its configuration before the first."""
    folder = tmp_path_factory.mktemp("phases")
    config = tiny_config(checkpoint, folder / "run")
    config["finetune"] = {"epochs": 1, "lr": 1e-3}
    made = recipe(config, folder / "config.yaml")
    directory = RunDirectory(folder / "run", made.config)
    directory.begin()
    found = {"begun": shutil.copytree(directory.path, folder / "begun")}
    for phase in ("finetune", "search", "retrain"):
        fit(made, directory, only=phase)
        found[phase] = shutil.copytree(directory.path, folder / phase)
    return found


def copied(phases: dict[str, Path], phase: str, to: Path) -> Path:
    """A run directory of one's own, as it was after a phase."""
    return shutil.copytree(phases[phase], to)


def state_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "state.json").read_text())
    return found


def notice(root: Node) -> list[str]:
    """Lines of the banner of an unfinished run."""
    (found,) = [node for node in root.nodes() if node.attributes.get("class") == "notice"]
    return [node.text for node in found.all("li")]


def sections(root: Node) -> list[str]:
    return [heading.text for heading in root.all("h3")]


def test_a_run_that_only_began(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "begun", tmp_path / "my run")
    assert [file.name for file in path.iterdir()] == ["config.yaml"]
    written = write_report([path])
    assert written == path / "report.html"
    root = read(written.read_text())
    assert notice(root) == ["finetune: next", "search: to come", "retrain: to come", "summary: to come"]
    assert [node.text for node in root.all("code")] == [f"upop fit --config '{path / 'config.yaml'}'"]
    assert sections(root) == ["How it was made"]
    settings = {row[0].text: row[1].text for row in tables(root)["settings"]}
    assert settings["task"] == "Retrieval"
    assert settings["data"] == "ShapesRetrieval"
    assert settings["seed"] == "1"
    assert settings["search: removed"] == "0.5"
    assert settings["search: policy"] == "unified"
    assert [row[0].text for row in tables(root)["files"]] == ["file", "configuration"]


def test_a_run_without_finetuning_does_not_speak_of_it(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "begun", tmp_path / "run")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["finetune"]["epochs"] = 0
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    assert notice(read(write_report([path]).read_text())) == ["search: next", "retrain: to come", "summary: to come"]


def test_a_run_after_finetuning(phases: dict[str, Path], tmp_path: Path) -> None:
    root = read(write_report([copied(phases, "finetune", tmp_path / "run")]).read_text())
    assert notice(root) == ["finetune: done", "search: next", "retrain: to come", "summary: to come"]
    assert sections(root) == ["How it was made"]
    assert "seconds of finetune, last attempt" in [row[0].text for row in tables(root)["settings"]]


def test_a_run_after_its_search(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "search", tmp_path / "run")
    root = read(write_report([path]).read_text())
    assert notice(root) == ["finetune: done", "search: done", "retrain: next", "summary: to come"]
    assert sections(root) == ["Quality and size", "What is kept", "The search", "How it was made"]
    model, _ = load(path / "finetune" / "model")
    plan, evaluations = Plan.load(path / "plan.json"), state_of(path)["evaluations"]
    found = tables(root)
    head, params, flops, *metrics = found["measured so far"]
    assert [cell.text for cell in head] == ["", "dense", "cut", "of dense"]
    assert values(params)[0] == sum(parameter.numel() for parameter in model.parameters())
    assert values(params)[1] == sum(
        parameter.numel() for parameter in load(path / "search" / "compressed")[0].parameters()
    )
    assert values(flops)[:2] == [plan.facts["flops"][end] for end in ("dense", "left")]
    assert [values(row)[:2] for row in metrics] == [
        [evaluations[state][key] for state in ("dense", "cut")] for key in evaluations["dense"]
    ]
    kept = [[row[0].text, *values(row)[:5]] for row in found["units kept at every site"][1:]]
    assert kept == [
        [site.name, site.modality, site.depth, site.kind, site.units, len(plan.keep[site.name])]
        for site in find_sites(model)
    ]
    assert updates(root) == [
        {key: value for key, value in row.items() if key.count("/") < 3}  # the split by kind is left out
        for row in state_of(path)["phases"]["search"]["history"]
    ]
    assert "target 50" in next(node.text for node in root.all("desc") if "optimizer steps" in node.text)


def updates(root: Node) -> list[dict[str, float]]:
    """Rows of the table of updates, exact."""
    head, *rows = tables(root)["updates of the search"]
    keys = [cell.text.replace(" ", "_") for cell in head]
    exact = [[float(cell.attributes["data-value"] or "nan") for cell in row] for row in rows]
    return [dict(zip(keys, row, strict=True)) for row in exact]


def test_a_run_that_lacks_its_summary_alone(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "retrain", tmp_path / "run")
    root = read(write_report([path]).read_text())
    assert notice(root) == ["finetune: done", "search: done", "retrain: done", "summary: next"]
    head, params, *_ = tables(root)["measured so far"]
    assert [cell.text for cell in head] == ["", "dense", "cut", "retrained", "of dense"]
    assert values(params)[1] == values(params)[2]


def test_the_search_comes_from_its_log_until_it_is_done(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "search", tmp_path / "run")
    history = state_of(path)["phases"]["search"]["history"]
    state = state_of(path) | {"phases": {"finetune": {}}}
    write_json(path / "state.json", state)
    (path / "plan.json").unlink()
    root = read(write_report([path]).read_text())
    assert notice(root)[:2] == ["finetune: done", "search: begun, optimizer step 8 is the last in its log"]
    assert sections(root) == ["Quality and size", "The search", "How it was made"]
    found = logged_updates(path / "search")
    for row, told in zip(found, history, strict=True):
        assert row == pytest.approx(told)
    (path / "state.json").unlink()
    assert (
        notice(read(write_report([path]).read_text()))[0] == "finetune: begun, optimizer step 4 is the last in its log"
    )


def test_a_log_that_is_being_written(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "search", tmp_path / "run") / "search"
    (log,) = path.glob("logs/*/metrics.csv")
    whole, complete = log.read_bytes(), logged_updates(path)
    seen = []
    for end in range(len(whole)):
        log.write_bytes(whole[:end])
        seen.append(logged_updates(path))
    assert all(len(before) <= len(after) for before, after in pairwise(seen))
    assert {len(found) for found in seen} == set(range(len(complete) + 1))
    without = [[{key: row[key] for key in row if key != "loss"} for row in found] for found in [*seen, complete]]
    assert all(found == without[-1][: len(found)] for found in without), "a number that was cut is no number"
    log.write_bytes(b"\xff\x00,\r\n" + whole)
    assert logged_updates(path) == []
    log.write_text("x" * 200_000 + "\n1\n")
    assert logged_updates(path) == []


def write_log(file: Path, rows: Sequence[dict[str, float]]) -> None:
    keys = sorted({key for row in rows for key in row})
    lines = [",".join(keys), *(",".join(str(row.get(key, "")) for key in keys) for row in rows)]
    file.parent.mkdir(parents=True)
    file.write_text("\r\n".join(lines) + "\r\n")


def test_a_search_that_was_resumed_counts_what_it_did_last(tmp_path: Path) -> None:
    def attempt(first: int, steps: int, loss: float) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        for step in range(first, steps):
            rows.append({"epoch": 0, "step": step, "loss": loss + step, "loss/distillation": 9.0})
            if step % 2:
                rows.append({"step": step + 1, "removed/params": loss + step / 100, "units_returned": step})
        return rows

    for version, rows in (
        (2, attempt(5, 8, 100.0)),
        (10, attempt(7, 10, 1000.0)),
        (0, attempt(0, 7, 0.0)),
    ):
        write_log(tmp_path / f"logs/version_{version}/metrics.csv", rows)
    (tmp_path / "logs/version_x").mkdir()
    (tmp_path / "logs/version_11").mkdir()
    source = {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 100.0, 6: 100.0, 7: 1000.0, 8: 1000.0, 9: 1000.0}
    assert logged_updates(tmp_path) == [
        {
            "step": done,
            "removed/params": source[done - 1] + (done - 1) / 100,
            "units_returned": done - 1,
            "loss": fmean(source[step] + step for step in (done - 2, done - 1)),
        }
        for done in (2, 4, 6, 8, 10)
    ]
    assert logged_updates(tmp_path / "none") == []


@pytest.mark.parametrize("at_hand", ["finetuned", "given"])
def test_the_towers_need_an_architecture_at_hand(phases: dict[str, Path], tmp_path: Path, at_hand: str) -> None:
    path = copied(phases, "search", tmp_path / "run")
    before = [[cell.text for cell in row] for row in sites(path)]
    shutil.rmtree(path / "search" / "compressed")
    if at_hand == "given":
        shutil.rmtree(path / "finetune" / "model")
    assert [[cell.text for cell in row] for row in sites(path)] == before


def test_towers_go_by_their_modules_where_no_architecture_is(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "search", tmp_path / "run")
    before = [[cell.text for cell in row] for row in sites(path)]
    shutil.rmtree(path / "search" / "compressed")
    shutil.rmtree(path / "finetune" / "model")
    for checkpoint in ("nobody/no-such-model", str(tmp_path)):
        config = yaml.safe_load((path / "config.yaml").read_text())
        config["model"]["init_args"]["checkpoint"] = checkpoint
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        named = [
            [name, f"{tower}_model" if tower in ("vision", "text") else tower, *rest] for name, tower, *rest in before
        ]
        assert sorted([cell.text for cell in row] for row in sites(path)) == sorted(named)


def test_a_site_without_a_number_closes_its_stack(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "begun", tmp_path / "run")
    keep = {"vision_model.layers.7.mlp.neuron": [0], "vision_model.head.mlp.neuron": [0], "pooler.head_dim": [0, 2]}
    units = dict.fromkeys(keep, 4)
    write_json(path / "plan.json", {"format": 1, "model": "x", "facts": {}, "units": units, "keep": keep})
    found = {row[0].text: values(row)[:5] for row in sites(path)[1:]}
    assert found == {
        "vision_model.layers.7.mlp.neuron": ["vision_model", 7, "neuron", 4, 1],
        "vision_model.head.mlp.neuron": ["vision_model", 8, "neuron", 4, 1],
        "pooler.head_dim": ["pooler", 0, "head_dim", 4, 2],
    }


def sites(path: Path) -> list[list[Node]]:
    return tables(read(write_report([path]).read_text()))["units kept at every site"]


def test_a_finished_run_beside_one_that_is_not(phases: dict[str, Path], tmp_path: Path) -> None:
    paths = [run(tmp_path / "one"), phases["search"], phases["begun"]]
    root = read(write_report(paths, tmp_path / "x.html", "mean").read_text())
    head, one, search, begun = tables(root)["runs compared"]
    assert [row[0].text for row in (one, search, begun)] == ["one", "search (not finished)", "begun (not finished)"]
    columns = [cell.text for cell in head[1:]]
    found = dict(zip(columns, values(search), strict=True))
    assert found["cut"] == state_of(phases["search"])["evaluations"]["cut"]["mean"]
    assert found["retrained"] == found["latency, ms"] == "-"
    assert dict(zip(columns, values(begun), strict=True))["parameters"] == "-"
    assert [node.text for node in root.all("p") if node.text.startswith("Not finished: search (finetune: done")]
    curves = [node.text for node in root.all("desc") if node.text.startswith("Hollow")]
    assert curves
    assert not [text for text in curves if "search:" in text]


def test_what_an_unfinished_run_says_is_text(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "search", tmp_path / "<b>'&")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["model"]["class_path"] = config["data"]["class_path"] = "<i>"
    config["model"]["init_args"]["checkpoint"] = "</script><script>"
    config["search"]["policy"] = "<u>"
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    plan, state = json.loads((path / "plan.json").read_text()), state_of(path)
    plan["facts"] |= {"policy": "<u>", "<s>": "<s>"}
    state["evaluations"]["dense"]["<em>"] = 1.0
    state["phases"]["search"]["history"][0]["<var>"] = 1.0
    write_json(path / "plan.json", plan)
    write_json(path / "state.json", state)
    root = read(write_report([path]).read_text())
    assert not {"b", "i", "u", "s", "em", "var"} & {node.tag for node in root.nodes()}
    assert len(root.all("script")) == 1
    assert "<s>" in [cell.text for cell in root.all("td")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("state.json", "{", "is not JSON: Expecting property name"),
        ("state.json", "[]", "is of another format; this version reads format 1"),
        ("state.json", '{"format": 1}', "has no facts by name in 'phases'; delete the run directory to start again"),
        ("config.yaml", "{", "is not YAML: while parsing a flow node"),
        ("config.yaml", "", "is no configuration of a run: it lacks ['model.class_path', 'data.class_path', 'search"),
        ("config.yaml", "model: 3", "is no configuration of a run: it lacks ['model.class_path', 'data.class_path'"),
        ("plan.json", "{", "is not a plan that this version reads: Expecting property name"),
    ],
)
def test_a_broken_file_of_an_unfinished_run_is_refused(
    phases: dict[str, Path], tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = copied(phases, "search", tmp_path / "run")
    (path / name).write_text(text)
    assert refused(path).startswith(f"'{path / name}' {message}")


def test_facts_in_another_form_are_refused(phases: dict[str, Path], tmp_path: Path) -> None:
    path = copied(phases, "search", tmp_path / "run")
    state = state_of(path)
    state["evaluations"]["dense"]["mean"] = "high"
    write_json(path / "state.json", state)
    assert refused(path) == (
        f"'{path}/state.json' has 'high' as 'mean' of 'dense' in 'evaluations', which is no number; delete the run "
        "directory to start again"
    )


def test_a_metric_that_was_not_measured_yet_is_refused(phases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was measured yet, so there is no metric 'mean'; leave --metric out"):
        write_report([phases["begun"]], tmp_path / "x.html", "mean")
    assert list(tmp_path.iterdir()) == []
