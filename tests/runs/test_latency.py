"""Where a latency table comes from, and runs that search by one: the same when resumed, the same on every rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

import upop
from tests import tiny
from tests.recipes import recipe
from tests.runs.breaking import stopped_in_the_second_epoch
from tests.runs.processes import over_two_ranks, settings
from tests.runs.processes import upop as upop_command
from tests.runs.timers import Abacus
from upop.cost import CostModel, LatencySettings, LatencyTable, measure
from upop.families import example_inputs, find_sites
from upop.runs import Recipe, RunDirectory, check, fit, measuring
from upop.runs.latency import cache, device_name, latency_table, place
from upop.runs.summary import summarise
from upop.structure import Plan

CPU = torch.device("cpu")
SETTINGS = LatencySettings(batch_size=2, seconds=0.0)


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Abacus:
    """A timer that counts parameters, and a cache of its own."""
    found = Abacus()
    monkeypatch.setattr(measuring, "fastest", found)
    monkeypatch.setenv("UPOP_CACHE", str(tmp_path / "cache"))
    return found


def table_of(model: nn.Module, settings: LatencySettings = SETTINGS, **arguments: Any) -> LatencyTable:
    return latency_table(model, find_sites(model), example_inputs(model), settings, CPU, **arguments)


def files() -> list[Path]:
    return sorted(cache().iterdir())


def test_a_model_is_measured_once(timer: Abacus) -> None:
    first = table_of(tiny.build("vit"))
    turns = timer.turns
    assert turns > 0
    again = table_of(tiny.build("vit", seed=3))  # whatever the weights
    assert timer.turns == turns
    assert again.to_dict() == first.to_dict()
    (file,) = files()
    assert file.name.startswith("ViTModel-fp32-2-")
    facts = json.loads(file.read_text())["setting"]
    assert (facts["dtype"], facts["batch_size"], facts["model"]) == ("fp32", 2, "ViTModel")
    assert (facts["torch"], facts["upop"], facts["device"]) == (torch.__version__, upop.__version__, device_name(CPU))
    assert facts["threads"] == torch.get_num_threads()


def test_another_setting_is_measured_anew(timer: Abacus, monkeypatch: pytest.MonkeyPatch) -> None:
    table_of(tiny.build("vit"))
    model = tiny.build("vit")
    others: list[dict[str, Any]] = [
        {"settings": LatencySettings(batch_size=3, seconds=0.0)},
        {"settings": LatencySettings(batch_size=2, dtype="bf16", seconds=0.0)},
        {"settings": LatencySettings(batch_size=2, seconds=0.1)},
        {"multiple_of": {"neuron": 8}},
    ]
    for number, other in enumerate(others, start=2):
        before = timer.turns
        table_of(model, **other)
        assert timer.turns > before
        assert len(files()) == number
    versions = ("transformers.__version__", "torch.__version__", "upop.runs.latency.__version__")
    for change in (*versions, "upop.runs.latency._timm_version"):
        before = timer.turns
        with monkeypatch.context() as patched:
            patched.setattr(change, (lambda: "0.0") if change.endswith("_timm_version") else "0.0")
            table_of(model)
        assert timer.turns > before, change
    before = timer.turns
    model.layers[0].mlp.activation_fn = nn.ReLU()
    table_of(model)
    table_of(tiny.build("deit"))
    assert timer.turns == before + 2
    before = timer.turns
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    table_of(tiny.build("vit"))
    assert timer.turns > before


@pytest.mark.parametrize("text", ["", "{", '{"format": 99}', '{"format": 1}'])
def test_a_corrupt_table_in_the_cache_is_measured_again(timer: Abacus, text: str) -> None:
    first = table_of(tiny.build("vit"))
    turns = timer.turns
    (file,) = files()
    file.write_text(text)
    with pytest.warns(UserWarning, match="is not a latency table that this version reads: .*; measuring again"):
        assert table_of(tiny.build("vit")).to_dict() == first.to_dict()
    assert timer.turns == 2 * turns
    assert LatencyTable.load(file).to_dict() == first.to_dict(), "mended"


def test_a_foreign_table_in_the_cache_is_measured_again(timer: Abacus) -> None:
    table_of(tiny.build("vit"))
    (file,) = files()
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"setting": data["setting"] | {"device": "another"}}))
    with pytest.warns(UserWarning, match="holds the times of another setting; measuring again"):
        table_of(tiny.build("vit"))


def test_a_cache_that_cannot_be_written_is_said(timer: Abacus, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.warns(UserWarning, match="the latency table cannot be kept at .*; set UPOP_CACHE"):
        assert table_of(tiny.build("vit")).whole > 0


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UPOP_CACHE", str(tmp_path))
    assert cache() == tmp_path / "latency"
    monkeypatch.setenv("UPOP_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache() == tmp_path / "home/.cache/upop/latency"


def test_a_run_goes_on_with_its_own_table_on_any_machine(timer: Abacus, tmp_path: Path) -> None:
    table = table_of(tiny.build("vit"))
    data = table.to_dict()
    data["setting"] |= {"device": "another", "torch": "0.0", "threads": 99, "multiple_of": {"neuron": 16}}
    own = tmp_path / "latency.json"
    LatencyTable.from_dict(data | {"whole": 12345}).save(own)
    turns = timer.turns
    assert table_of(tiny.build("vit"), own=own).whole == 12345
    assert timer.turns == turns
    own.unlink()
    assert table_of(tiny.build("vit"), own=own).whole == table.whole
    assert not own.exists()
    table.save(own)
    with pytest.raises(
        ValueError, match=r"was measured with batch_size 2, but this run has 3; delete the run directory"
    ):
        table_of(tiny.build("vit"), LatencySettings(batch_size=3), own=own)
    with pytest.raises(ValueError, match="was measured with model 'ViTModel', but this run has 'DeiTModel'"):
        table_of(tiny.build("deit"), own=own)
    own.write_text("{")
    with pytest.raises(ValueError, match="latency.json' is not a latency table that this version reads"):
        table_of(tiny.build("vit"), own=own)


def test_the_device_that_the_model_is_for() -> None:
    gpu = torch.device("cuda", 1)
    assert place(LatencySettings(), gpu) == gpu
    assert place(LatencySettings(device="cpu"), gpu) == CPU
    with pytest.raises(ValueError, match=r"^search.latency.device is 'gpu'; give 'cpu', 'cuda', or 'auto' for the one"):
        place(LatencySettings(device="gpu"), CPU)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="search.latency.device is 'cuda', but torch finds no GPU here"):
            place(LatencySettings(device="cuda"), CPU)


def by_latency(config: dict[str, Any], **search: Any) -> dict[str, Any]:
    settings = {"removed": 0.4, "of": "latency", "latency": {"batch_size": 2, "seconds": 0.0}}
    return config | {"search": config["search"] | settings | search}


def made(config: dict[str, Any]) -> tuple[Recipe, RunDirectory]:
    path = Path(config["run_dir"])
    found = recipe(config, path.parent / "config.yaml")
    return found, RunDirectory(path, found.config)


def test_a_run_that_searches_by_latency(
    config: dict[str, Any], timer: Abacus, capsys: pytest.CaptureFixture[str]
) -> None:
    made_recipe, directory = made(by_latency(config, multiple_of="auto"))
    fit(made_recipe, directory)
    table = LatencyTable.load(directory.path / "search/latency.json")
    assert table.to_dict() == LatencyTable.load(files()[0]).to_dict()
    dense, _ = upop.load(made_recipe.task.checkpoint)
    sites = find_sites(dense)
    cost = CostModel(sites, measure(dense, sites, made_recipe.sample(dense)), table)
    plan = Plan.load(directory.path / "plan.json")
    assert cost.removed(plan.kept(), "latency") == pytest.approx(0.4 * cost.prunable("latency"), rel=0.02)
    dense_ns, left = cost.whole("latency"), cost.remaining(plan.kept(), "latency")
    assert plan.facts["latency"] == {"dense": dense_ns, "left": left}
    assert (plan.facts["of"], plan.facts["multiple_of"]) == ("latency", {"head_dim": 2, "neuron": 4})
    history = directory.facts("search")["history"]
    assert history[-1]["removed/latency"] == pytest.approx(0.4, rel=0.02)
    capsys.readouterr()

    summary = summarise(made_recipe, directory)
    screen = capsys.readouterr().out
    found = summary["latency"]
    assert found["predicted"] == pytest.approx(
        {"dense_ms": dense_ns / 1e6, "compressed_ms": left / 1e6, "removed": 1 - left / dense_ns}
    )
    # By this timer the cut model is timed exactly as predicted, but for what is rounded down.
    assert found["measured"] == pytest.approx(found["predicted"], rel=1e-4)
    assert found["table"] == table.setting
    assert sum(row["latency_removed"] for row in summary["removed"]) == dense_ns - left
    for text in (
        "latency budget",
        "whole model, predicted",
        "whole model, measured",
        "vision neuron: what can go",
        "aligned to head_dim 2, neuron 4:",
    ):
        assert text in screen
        assert text in (directory.path / "summary.txt").read_text()
    assert "a batch of 2 in fp32 on" in screen


def test_a_run_without_latency_has_none_of_it(config: dict[str, Any], timer: Abacus) -> None:
    made_recipe, directory = made(config)
    fit(made_recipe, directory)
    summary = summarise(made_recipe, directory)
    assert "latency" not in summary
    assert "latency" not in Plan.load(directory.path / "plan.json").facts
    assert not (directory.path / "search/latency.json").exists()
    assert timer.turns == 0
    assert not cache().exists()


def test_a_resumed_search_goes_by_the_table_that_it_began_with(
    config: dict[str, Any], tmp_path: Path, timer: Abacus, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = by_latency(config)
    fit(*made(config), only="search")
    broken = config | {"run_dir": str(tmp_path / "broken")}
    with stopped_in_the_second_epoch():
        fit(*made(broken), only="search")
    for file in files():
        file.unlink()  # the cache is gone, and measuring again would give other numbers
    turns = timer.turns
    monkeypatch.setattr(measuring, "fastest", lambda *_: pytest.fail("measured again"))
    fit(*made(broken), only="search")
    assert timer.turns == turns
    for name in ("plan.json", "search/latency.json", "search/compressed/model.safetensors"):
        assert (Path(config["run_dir"]) / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_other_ranks_measure_nothing(config: dict[str, Any], timer: Abacus, monkeypatch: pytest.MonkeyPatch) -> None:
    made_recipe, directory = made(by_latency(config))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    check(made_recipe, directory)
    assert timer.turns == 0


def test_bad_settings_are_refused_before_anything_is_measured(config: dict[str, Any], timer: Abacus) -> None:
    for change, text in (
        ({"ceiling": {"visoin": 0.5}}, "did you mean 'vision'"),
        ({"latency": {"device": "gpu"}}, "search.latency.device is 'gpu'"),
    ):
        made_recipe, directory = made(by_latency(config, **change))
        with pytest.raises(ValueError, match=text):
            check(made_recipe, directory)
    assert timer.turns == 0
    made_recipe, directory = made(by_latency(config, scope="model", removed=0.99))
    with pytest.raises(ValueError, match=r"asks to remove .* latency \(0\.99 of the model latency\), but between"):
        check(made_recipe, directory)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"of": "latancy"}, "search.of.*'latency'.*latancy"),
        (
            {"multiple_of": "sometimes"},
            "search.multiple_of is 'sometimes'; give 'auto', or a multiple by kind, such as",
        ),
        ({"latency": {"batch_size": 0}}, "search.latency.batch_size is 0; give 1 sample or more"),
        ({"latency": {"dtype": "fp64"}}, "search.latency.dtype.*fp64"),
        ({"latency": {"bacth_size": 4}}, "does not accept option 'latency.bacth_size'"),
    ],
)
def test_bad_options(config: dict[str, Any], change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){text}"):
        made(config | {"search": config["search"] | change})


@pytest.mark.slow
def test_two_ranks_select_by_the_table_of_rank_zero(
    config: dict[str, Any], tmp_path: Path, timer: Abacus, checkpoint: Path
) -> None:
    """Both ranks of the subprocess read no clock: rank 0 has the run's own table, rank 1 gets it."""
    one = by_latency(settings(checkpoint, tmp_path / "one"), multiple_of="auto")
    fit(*made(one), only="search")
    two = over_two_ranks(one, tmp_path / "two")
    LatencyTable.load(tmp_path / "one/search/latency.json").save(tmp_path / "two/search/latency.json")
    result = upop_command("search", two)
    assert result.returncode == 0, result.stderr
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("one", "two")]
    assert plans[0]["keep"] == plans[1]["keep"]
    assert plans[0]["facts"]["latency"] == plans[1]["facts"]["latency"]
