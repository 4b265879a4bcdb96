"""A graph as a file: traced by torch.export, written, read again, run, and compared with the model itself."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from upop.export.graphs.ports import Graph

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""Formats, and what their files end in."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What ONNX needs besides torch."""
CHATTER = ("onnxscript", "onnx_ir", "torch.onnx")
"""Loggers that name every node which could not be simplified."""

Runner = Callable[[Mapping[str, Tensor]], list[Tensor]]
"""Runs a file: inputs by name to outputs in their order."""


@dataclass(frozen=True)
class Written:
    """A graph that was written and found to agree with the model.

    Attributes:
        graph: The graph.
        files: Names of its files with their sizes in bytes: one, or one more for weights past ONNX's limit of 2 GB.
        shapes: Dimensions of each output, by name.
        differences: Largest difference from the model in each output, as a part of the largest number in it.
    """

    graph: Graph
    files: Mapping[str, int]
    shapes: Mapping[str, tuple[int | str, ...]]
    differences: Mapping[str, float]

    @property
    def difference(self) -> float:
        """The largest of all."""
        return max(self.differences.values())


@torch.no_grad()
def write(graph: Graph, directory: Path, opset: int | None, tolerance: float) -> Written:
    """Write a graph and compare what the file computes with what the model computes.

    Args:
        graph: The graph; its model is in evaluation mode, on the CPU.
        directory: Where to; it exists.
        opset: Version of ONNX's operators; ``None`` for torch's own format.
        tolerance: Largest difference that is let pass, as a part of the largest number in an output.

    Raises:
        ValueError: If torch cannot follow the model, the file cannot be written or run, or it computes anything else
            than the model does.
    """
    path = directory / (graph.name + SUFFIXES["torch" if opset is None else "onnx"])
    with _explained(f"torch cannot trace graph {graph.name!r}"):
        program = trace(graph)
    with _explained(f"graph {graph.name!r} cannot be written as {path.suffix[1:]}"):
        if opset is None:
            torch.export.save(program, path)
        else:
            _write_onnx(program, graph, path, opset)
    with _explained(f"{path.name} cannot be read again"):
        run = torch_runner(path) if opset is None else onnx_runner(path)
    shapes, differences = compare(graph, run, path.name, tolerance)
    files = {file.name: file.stat().st_size for file in sorted(directory.glob(f"{path.name}*"))}
    return Written(graph, files, shapes, differences)


def trace(graph: Graph) -> ExportedProgram:
    """The program of a graph, with the weights that it uses and no others, and without a word of where it was made."""
    dims = {name: Dim(name, min=1, max=most) for name, most in graph.limits().items()}
    shapes = {port.name: _free(port.shape, dims) for port in graph.inputs}
    program = _export(graph, shapes)
    _drop_unused_(program)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # holds paths of this machine
    return program


def _export(graph: Graph, shapes: Mapping[str, Any]) -> ExportedProgram:
    """Trace by running the model, which is quick; if that fails, by reading its code.

    A run takes ``len(tensor)`` for a constant, which the free dimension then contradicts; the code says what it is.
    """
    inputs = graph.sample(graph.traced())
    with _quiet():
        try:
            return torch.export.export(graph.module, (), inputs, dynamic_shapes=shapes, strict=False)
        except Exception:
            return torch.export.export(graph.module, (), inputs, dynamic_shapes=shapes, strict=True)


def _free(shape: tuple[int | str, ...], dims: Mapping[str, Any]) -> dict[int, Any]:
    """The dimensions of a shape that vary, by their places."""
    return {place: dims[name] for place, name in enumerate(shape) if isinstance(name, str)}


def _drop_unused_(program: ExportedProgram) -> None:
    """Take the weights out of a program that nothing in it uses: torch.export keeps those of the other tower too."""
    specs = program.graph_signature.input_specs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    unused = [spec for spec in specs if spec.arg.name in nodes and spec.kind is not InputKind.USER_INPUT]
    for spec in unused:
        program.graph.erase_node(nodes[spec.arg.name])
        for values in (program.state_dict, program.constants):
            values.pop(spec.target, None)
    specs[:] = [spec for spec in specs if spec not in unused]
    program.graph_module.recompile()


def _write_onnx(program: ExportedProgram, graph: Graph, path: Path, opset: int) -> None:
    names = {name: name for name in graph.limits()}
    with _quiet():
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[port.name for port in graph.inputs],
            output_names=[output.name for output in graph.outputs],
            dynamic_shapes={port.name: _free(port.shape, names) for port in graph.inputs},  # names of the dimensions
            verbose=False,
        )
        assert written is not None
        written.save(path)  # with the weights in a file of their own where they are too many


def onnx_runner(path: Path) -> Runner:
    """A runner of an ONNX file, on the CPU."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {k: v.numpy() for k, v in inputs.items()})]

    return run


def torch_runner(path: Path) -> Runner:
    """A runner of a file that torch.export wrote."""
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return _listed(module(**inputs))

    return run


@torch.no_grad()
def compare(
    graph: Graph, run: Runner, file: str, tolerance: float
) -> tuple[dict[str, tuple[int | str, ...]], dict[str, float]]:
    """Compare a runner with the model, for every size in :meth:`~upop.export.graphs.ports.Graph.checked`.

    Args:
        graph: What it should compute.
        run: What computes it.
        file: What to call it in messages.
        tolerance: Largest difference that is let pass, as a part of the largest number in an output.

    Returns:
        Dimensions, and the largest difference, of each output.

    Raises:
        ValueError: If an output differs by more, in its shape, or is not finite.
    """
    shapes: dict[str, tuple[int | str, ...]] = {}
    differences = dict.fromkeys((output.name for output in graph.outputs), 0.0)
    for seed, sizes in enumerate(graph.checked()):
        inputs = graph.sample(sizes, seed)
        expected = _listed(graph.module(**inputs))
        with _explained(f"{file} cannot be run with {sizes}"):
            found = run(inputs)
        for output, right, value in zip(graph.outputs, expected, found, strict=True):
            shapes[output.name] = (*output.varies, *right.shape[len(output.varies) :])
            difference = relative_difference(value, right)
            if not difference <= tolerance:  # which a NaN is not
                raise ValueError(
                    f"{file} does not compute what the model does: {output.name} {tuple(value.shape)} differs by "
                    f"{difference:.1e} of its size from the model's {tuple(right.shape)} with {sizes}, more than the "
                    f"tolerance of {tolerance:.1e}; nothing was exported"
                )
            differences[output.name] = max(difference, differences[output.name])
    return shapes, differences


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a part of the largest number that is expected; infinite between other shapes or types.

    >>> relative_difference(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0]))
    0.25
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((found - expected).abs().max() / largest)


def missing_packages() -> list[str]:
    """What ONNX needs and is not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def _listed(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say in one line what a library stumbled over; a full disk speaks for itself."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise ValueError(f"{what}: {type(error).__name__}: {lines[0]}; nothing was exported") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporters say of their own workings."""
    loggers = [logging.getLogger(name) for name in CHATTER]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
