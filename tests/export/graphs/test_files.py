import importlib
import logging
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from upop.export.graphs import files
from upop.export.graphs.ports import Graph, Output, Port, Words

STATES = Port("states", ("batch", "text_length", 6), "states")
MASK = Port("attention_mask", ("batch", "text_length"), "mask")
WORDS = Words(count=9, longest=8, end=1, pad=0)


class Mean(nn.Module):
    """The mean of the states that count, and what a layer makes of it; another layer is never called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused = nn.Linear(6, 4), nn.Linear(6, 1000)

    def forward(self, states, attention_mask):
        weights = attention_mask[..., None].float()
        mean = (states * weights).sum(1) / weights.sum(1)
        return mean, self.used(mean)


class Counting(Mean):
    """Says how many there are by len, which torch.export takes for a constant."""

    def forward(self, states, attention_mask):
        return self.used(states).mean(1) / 2, torch.ones(len(states), 1).expand(len(states), 4)


class Forking(Mean):
    """Does another thing with other numbers, which no graph can."""

    def forward(self, states, attention_mask):
        return (states.mean(1), states.sum(1)) if states.sum() > 0 else (states.sum(1), states.mean(1))


def graph(module=None):
    outputs = (Output("mean", ("batch",)), Output("said", ("batch",)))
    return Graph("tiny", (module or Mean()).eval(), (STATES, MASK), outputs, WORDS)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two directories with the graph in both formats, as far as they can be written, and what was said of them."""
    found = []
    for name in ("one", "two"):
        path = tmp_path_factory.mktemp(name)
        formats = [None, 18] if not files.missing_packages() else [None]
        found.append((path, [files.write(graph(), path, opset, 1e-5) for opset in formats]))
    return found


def test_written_and_found_to_agree(twice):
    path, said = twice[0]
    assert [list(written.files) for written in said] == [["tiny.pt2"], ["tiny.onnx"]][: len(said)]
    assert {name: size for written in said for name, size in written.files.items()} == {
        file.name: file.stat().st_size for file in path.iterdir()
    }
    for written in said:
        assert written.shapes == {"mean": ("batch", 6), "said": ("batch", 4)}
        assert set(written.differences) == {"mean", "said"}
        assert written.difference == max(written.differences.values()) <= 1e-5


def test_the_same_model_gives_the_same_bytes(twice):
    (one, _), (two, _) = twice
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_nothing_tells_where_it_was_made(twice):
    path, _ = twice[0]
    with zipfile.ZipFile(path / "tiny.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    content += b"".join(file.read_bytes() for file in path.glob("*.onnx"))
    assert len(content) > 5000
    for place in (Path(torch.__file__).parents[1], Path(__file__).parent):
        assert str(place).encode() not in content


def test_the_operators_are_of_the_version_that_was_asked_for(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    files.write(graph(), tmp_path, 23, 1e-5)
    model = onnx.load(tmp_path / "tiny.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 23)]
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    ]
    assert shapes == [["batch", "text_length", 6], ["batch", "text_length"], ["batch", 6], ["batch", 4]]
    assert [value.name for value in [*model.graph.input, *model.graph.output]] == [
        "states",
        "attention_mask",
        "mean",
        "said",
    ]


def test_only_the_weights_that_are_used(tmp_path):
    program = files.trace(graph())
    assert sorted(program.state_dict) == ["used.bias", "used.weight"]
    torch.export.save(program, tmp_path / "a.pt2")
    assert sorted(torch.export.load(tmp_path / "a.pt2").module().state_dict()) == ["used.bias", "used.weight"]
    assert sorted(name for name, _ in graph().module.named_parameters()) == [
        "unused.bias",
        "unused.weight",
        "used.bias",
        "used.weight",
    ]


def test_what_running_cannot_follow_reading_can(tmp_path):
    written = files.write(graph(Counting()), tmp_path, None, 0)
    assert written.difference == 0


def test_what_cannot_be_traced(tmp_path):
    with pytest.raises(ValueError, match=r"^torch cannot trace graph 'tiny': \w+: .*; nothing was exported$") as error:
        files.write(graph(Forking()), tmp_path, None, 0)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_past_the_limit_lie_beside(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    programs = importlib.import_module("torch.onnx._internal.exporter._onnx_program")
    if not hasattr(programs, "_LARGE_MODEL_THRESHOLD"):
        pytest.skip("this torch has its limit elsewhere")
    monkeypatch.setattr(programs, "_LARGE_MODEL_THRESHOLD", 10)
    module = Mean()
    module.used = nn.Linear(6, 4000)  # small ones stay in the first file
    written = files.write(graph(module), tmp_path, 18, 1e-5)
    assert list(written.files) == ["tiny.onnx", "tiny.onnx.data"]
    assert written.files["tiny.onnx.data"] >= 4 * 6 * 4000
    assert written.files == {file.name: file.stat().st_size for file in tmp_path.iterdir()}


def runner(change):
    """Runs a graph as it should be, but for a change of the outputs."""

    def run(inputs):
        mean, said = graph().module(**inputs)
        return change([mean, said], inputs)

    return run


def compared(change, tolerance=1e-4):
    return files.compare(graph(), runner(change), "tiny.onnx", tolerance)


def test_the_same_is_no_difference():
    shapes, differences = compared(lambda found, _: found, tolerance=0)
    assert differences == {"mean": 0.0, "said": 0.0}
    assert shapes == {"mean": ("batch", 6), "said": ("batch", 4)}


def test_the_difference_is_the_largest_of_all_sizes_as_a_part_of_the_output():
    _, differences = compared(lambda found, _: [found[0] * (1 + 1e-5), found[1]])
    assert differences["mean"] == pytest.approx(1e-5, rel=0.05)
    assert differences["said"] == 0

    def late(found, inputs):
        return [found[0], found[1] * (1.25 if len(inputs["states"]) == 2 else 1)]  # the last of the three

    assert compared(late, tolerance=0.5)[1]["said"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda found, _: [found[0] + 1, found[1]],
            r"tiny\.onnx does not compute what the model does: mean \(1, 6\) differs by \S+ of its size from "
            r"the model's \(1, 6\) with \{'batch': 1, 'text_length': 8\}, more than the tolerance of 1\.0e-04; nothing",
        ),
        (lambda found, _: [found[0] * torch.nan, found[1]], "differs by nan"),
        (lambda found, _: [found[0], found[1][:, :1]], r"said \(1, 1\) differs by inf .* the model's \(1, 4\)"),
        (lambda found, _: [found[0].double(), found[1]], r"mean \(1, 6\) differs by inf"),
        (
            # as if the number of samples that the graph was made with had become a constant
            lambda found, inputs: 1 / 0 if len(inputs["states"]) == 5 else found,
            r"tiny\.onnx cannot be run with \{'batch': 5, 'text_length': 2\}: ZeroDivisionError: division by zero; ",
        ),
        (
            # as if the mask were ignored: the first text is whole in every sample, the others are not
            lambda _, inputs: list(graph().module(inputs["states"], torch.ones_like(inputs["attention_mask"]))),
            r"mean \(5, 6\) differs by",
        ),
    ],
)
def test_anything_else_is_refused(change, text):
    with pytest.raises(ValueError, match=text):
        compared(change)


def test_relative_differences():
    ones = torch.ones(3)
    assert files.relative_difference(ones * 3, ones * 4) == 0.25
    assert files.relative_difference(ones * -4, ones * 4) == 2
    assert files.relative_difference(torch.zeros(3), torch.zeros(3)) == 0
    assert files.relative_difference(torch.ones(3) * 1e-30, torch.zeros(3)) > 1


def test_a_full_disk_speaks_for_itself(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        files.write(graph(), tmp_path, None, 0)


def test_a_file_that_cannot_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.export, "save", lambda _, path: Path(path).write_bytes(b"no archive"))
    with pytest.raises(ValueError, match=r"tiny\.pt2 cannot be read again: \w+: .*; nothing was exported"):
        files.write(graph(), tmp_path, None, 0)


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(files, "PACKAGES", ("torch", "no_such_package", "numpy"))
    assert files.missing_packages() == ["no_such_package"]


def test_loggers_and_warnings_come_back():
    logger = logging.getLogger("onnxscript")
    before = logger.level
    with files._quiet():
        assert logger.getEffectiveLevel() == logging.ERROR
        warnings.warn("not shown", stacklevel=1)
    assert logger.level == before


def test_nothing_of_the_module_changes(tmp_path):
    module = Mean().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    files.write(graph(module), tmp_path, None, 0)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(value.requires_grad for value in module.parameters())
    assert F.linear(torch.ones(1, 6), module.used.weight).requires_grad
