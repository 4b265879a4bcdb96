"""Benchmarks from directories to files, with tiny models, and with a clock that does as it is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from tests.export import samples
from tests.plans import random_plan
from upop.export import save
from upop.families import find_sites
from upop.runs import bench as module
from upop.runs.bench import LEAST_ROUNDS, Conditions, bench, compare, run_bench
from upop.runs.timing import order
from upop.surgery import shrink_

QUICK = Conditions("cpu", batch_sizes=(1, 3), seconds=0.01)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense CLIP and a cut one."""
    root = tmp_path_factory.mktemp("models")
    dense = samples.directory(root / "dense")
    model = samples.model("clip")
    sites = find_sites(model)
    plan = random_plan(sites, 3)
    shrink_(model, sites, plan)
    return dense, save(model, samples.processor("clip"), root / "run" / "compressed", plan, ["head_dim", "neuron"])


def flops(model: nn.Module) -> int:
    """Counted in a real forward pass of a real sample; older torch knows no fused CPU kernel."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**tiny.inputs(model, batch=1))
    return counter.get_total_flops()


def test_from_directories_to_files(
    directories: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, cut = directories
    to, numbers = tmp_path / "new" / "speed.png", tmp_path / "speed.json"
    made = run_bench([cut], dense, QUICK, to, numbers)
    screen = capsys.readouterr().out
    for said in ("dense", "compressed", "baseline", "batch 3", "peak", "rounds faster than dense", str(to)):
        assert said in screen.replace("\n", " ") or said in screen, said
    with Image.open(to) as image:
        assert image.format == "PNG"
        assert image.width > 1000

    read = json.loads(numbers.read_text())
    assert read == json.loads(json.dumps(made.to_dict()))
    assert (read["format"], read["versus"], read["dtype"], read["threads"]) == (
        1,
        "dense",
        "fp32",
        torch.get_num_threads(),
    )
    assert read["libraries"]["torch"] == torch.__version__.partition("+")[0]
    models = {one["name"]: one for one in read["models"]}
    assert list(models) == ["dense", "compressed"]
    for name, path in (("dense", dense), ("compressed", cut)):
        model = samples.model("clip") if name == "dense" else module.load_models(["it"], [str(path)])["it"]
        assert models[name]["params"] == sum(parameter.numel() for parameter in model.parameters())
        assert models[name]["flops"] == flops(model)
        assert models[name]["file_bytes"] == (path / "model.safetensors").stat().st_size
    assert models["compressed"]["params"] < models["dense"]["params"]
    assert [(one["model"], one["batch_size"]) for one in read["timings"]] == [
        ("dense", 1), ("compressed", 1), ("dense", 3), ("compressed", 3),
    ]  # fmt: skip
    for dense_one, cut_one in (read["timings"][:2], read["timings"][2:]):
        assert cut_one["speed_up"] == pytest.approx(dense_one["latency_ms"] / cut_one["latency_ms"])
        ratio = models["dense"]["flops"] / models["compressed"]["flops"]
        assert cut_one["realised"] == pytest.approx(cut_one["speed_up"] / ratio)
        assert 0 <= cut_one["rounds_faster"] <= cut_one["rounds"]
        assert dense_one["peak_bytes"] > cut_one["peak_bytes"]
        inputs = cut_one["batch_size"] * (4 * 3 * 16 * 16 + 8 * 12)
        assert cut_one["peak_bytes"] > models["compressed"]["weight_bytes"] + inputs
        for one in (dense_one, cut_one):
            assert one["rounds"] >= LEAST_ROUNDS
            assert one["latency_p90_ms"] >= one["latency_ms"] > 0
            assert one["throughput"] == pytest.approx(1000 * one["batch_size"] / one["latency_ms"])


def test_without_a_baseline(
    directories: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = run_bench(list(directories), conditions=QUICK)
    assert made.versus is None
    assert [model.name for model in made.models] == ["dense", "compressed"]
    assert not any(map(made.speed_up, made.timings))
    assert [file.name for file in tmp_path.iterdir()] == ["bench.png"], "no JSON unless it is asked for"
    assert "picture: bench.png" in capsys.readouterr().out


class Clock:
    """Time that passes only in the forward passes of models."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def model(self, name: str, seconds: Callable[[int], float]) -> nn.Module:
        """A tiny model whose n-th pass takes these seconds."""
        made, count = tiny.build("clip"), iter(range(10_000))

        def took(*_: object) -> None:
            if torch.is_inference_mode_enabled():  # not where FLOPs are counted
                self.calls.append(name)
                self.now += seconds(next(count))

        made.register_forward_hook(took)
        return made


def test_numbers_are_those_of_the_clock() -> None:
    clock = Clock()
    draws = np.random.default_rng(0).uniform(0.2, 0.6, 10_000)
    took = {"dense": lambda n: 3.0 if n == 0 else 0.5, "cut": lambda n: draws[n], "third": lambda n: 0.25}
    models = {name: clock.model(name, seconds) for name, seconds in took.items()}
    made = compare(models, Conditions("cpu", batch_sizes=[2], seconds=25.0), "dense", clock=clock)
    dense, cut, third = made.timings
    rounds = dense.rounds
    timed = [clock.calls[-3 * rounds :][start : start + 3] for start in range(0, 3 * rounds, 3)]
    assert timed == [[list(models)[place] for place in order(3, number)] for number in range(rounds)]
    first = clock.calls.count("cut") - rounds
    expected = draws[first : first + rounds]
    assert cut.latency_ms == pytest.approx(1000 * np.median(expected))
    assert cut.latency_p90_ms == pytest.approx(1000 * np.percentile(expected, 90, method="higher"))
    assert cut.rounds_faster == (expected < 0.5).sum()
    assert (dense.latency_ms, third.latency_ms) == (pytest.approx(500), pytest.approx(250))
    assert (dense.rounds_faster, third.rounds_faster) == (None, rounds)
    assert (dense.first_pass_s, third.first_pass_s) == (3.0, pytest.approx(0.25)), "apart from the latency"
    assert made.speed_up(third) == pytest.approx(2)
    spent = sum(expected) + 0.75 * rounds
    assert 25 <= spent < 25 + 1.35, "the rounds end with the time that they were given"


@pytest.mark.parametrize("name", sorted(tiny.MODELS))
def test_every_family_runs(name: str) -> None:
    made = compare({"it": tiny.build(name)}, Conditions("cpu", batch_sizes=[2], seconds=0.001))
    assert made.timings[0].latency_ms > 0
    assert made.models[0].flops == flops(tiny.build(name))
    assert {key: tuple(shape) for key, shape in made.inputs.items()} == {
        key: tuple(value.shape[1:]) for key, value in tiny.inputs(tiny.build(name)).items()
    }


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_has_half_the_weights(dtype: str) -> None:
    sizes = {}
    for name in ("fp32", dtype):
        model = tiny.build("blip_retrieval")
        made = compare({"it": model}, Conditions("cpu", name, [2], seconds=0.001))
        sizes[name] = made.models[0].weight_bytes - sum(b.nbytes for b in model.buffers())
        assert {parameter.element_size() for parameter in model.parameters()} == {4 if name == "fp32" else 2}
    assert sizes[dtype] == sizes["fp32"] / 2


def test_every_model_is_compiled_for_every_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo

    compiled: list[tuple[int, ...]] = []

    def backend(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        compiled.extend(tuple(one.shape) for one in inputs if isinstance(one, torch.Tensor) and one.dim() == 4)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 5}
    widths = (1.0, 1.5, 2.0)  # of one class and of other sizes, as cut models are
    models = {f"{ratio}": timm.models.VisionTransformer(mlp_ratio=ratio, **size).eval() for ratio in widths}
    with torch._dynamo.config.patch(recompile_limit=1):  # of one model; three share their class
        made = compare(models, Conditions("cpu", batch_sizes=[1, 2], compiled=True, seconds=0.001))
    images = [shape for shape in compiled if shape[1:] == (3, 16, 16)]
    assert sorted(images) == [(1, 3, 16, 16)] * 3 + [(2, 3, 16, 16)] * 3
    assert made.compiled
    assert all(timing.first_pass_s > timing.latency_ms / 1000 for timing in made.timings)


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: list[Any]) -> Any:
        raise RuntimeError("no working C++ compiler\nmore of it\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(ValueError, match=r"torch.compile fails on it: .*no working C\+\+ compiler.*; time it without$"):
        compare({"it": tiny.build("timm_vit")}, Conditions("cpu", batch_sizes=[1], compiled=True))


def test_out_of_memory_is_told_in_one_line() -> None:
    model = tiny.build("clip")

    def hook(*_: object) -> None:
        if torch.is_inference_mode_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    model.register_forward_hook(hook)
    with pytest.raises(ValueError, match="no memory for a batch of 7 of it on cpu: CUDA out of memory.*smaller batch"):
        compare({"it": model}, Conditions("cpu", batch_sizes=[7]))


def test_nothing_is_loaded_before_everything_is_checked(
    directories: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_models", lambda *_: pytest.fail("loaded"))
    dense, cut = directories
    with pytest.raises(FileNotFoundError, match="no model directory at '.*/missing'"):
        bench([tmp_path / "missing"], "openai/clip-vit-base-patch32")
    with pytest.raises(FileNotFoundError, match="no model directory at '.*/missing'"):
        bench([cut], tmp_path / "missing")
    with pytest.raises(ValueError, match="given twice"):
        bench([dense], dense)
    with pytest.raises(ValueError, match=r"'speed.pdf' is no name of a picture"):
        run_bench([cut], dense, QUICK, to="speed.pdf")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder.png' is a directory; give the name of a file"):
        run_bench([cut], dense, QUICK, to=tmp_path / "folder.png")
    with pytest.raises(IsADirectoryError, match="is a directory; give the name of a file"):
        run_bench([cut], dense, QUICK, tmp_path / "a.png", json=tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds 0 GPUs"):
        bench([cut], dense, Conditions("cuda"))


def test_models_of_other_inputs(directories: tuple[Path, Path], tmp_path: Path) -> None:
    other = samples.directory(tmp_path / "vit", "vit")
    with pytest.raises(ValueError, match=r"dense takes input_ids \(12,\), pixel_values .*, vit takes pixel_values"):
        bench([other], directories[0], QUICK)


def test_a_terminal_is_told_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    monkeypatch.setattr(module, "REFRESH", 0.0)
    compare({"dense": tiny.build("vit"), "cut": tiny.build("vit")}, Conditions("cpu", batch_sizes=[4], seconds=0.01))
    for said in ("warming up dense, batch 4", "timing dense, cut in turns, batch 4", "round 5"):
        assert said in screen.getvalue()
