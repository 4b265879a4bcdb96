"""Write a model as graphs that run without transformers, timm and upop: ONNX files or torch's exported programs.

What the graphs are is said in :mod:`upop.export.graphs`; export.json, beside them, says what each takes and gives.
Numbers of samples and lengths of texts are free, the image size is the model's. Each file is read again and run by
onnxruntime or torch, with other sizes than it was made with, against the model itself; the directory appears when all
of them agree, and not otherwise.

The graphs compute in float32, whatever the precision of the weights: onnxruntime's CPU kernels know no bfloat16.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from upop import __version__
from upop.export.directory import PREPROCESSING, PROCESSORS, load
from upop.export.graphs import graphs_of
from upop.export.graphs.files import PACKAGES, SUFFIXES, Written, missing_packages, write
from upop.export.remote import is_hugging_face
from upop.families import example_inputs
from upop.files import whole_directory, write_json
from upop.messages import closest, some

FACTS = "export.json"
FACTS_FORMAT = 1
OPSETS = range(18, 24)
"""Versions of ONNX's operators that torch 2.11 and later write without converting from another."""
OPSET = OPSETS[0]
TOLERANCE = 1e-4
"""As a part of the largest number in an output. Rounding in float32 makes 1e-7 to 1e-5 of it, more with depth."""


@dataclass(frozen=True)
class Exported:
    """What an export made, for a person to read.

    Attributes:
        directory: That holds the files.
        format: ``onnx`` or ``torch``.
        opset: Version of ONNX's operators; ``None`` for torch.
        tolerance: Largest difference that was let pass.
        graphs: That were written, in order.
        others: Names of the other files: facts, image processor and tokenizer.
    """

    directory: Path
    format: str
    opset: int | None
    tolerance: float
    graphs: Sequence[Written]
    others: Sequence[str]

    def rows(self) -> list[tuple[str, str, str]]:
        """File, size, and largest difference from the model as a part of the output's size, for every graph's files."""
        return [
            (file, f"{size / 1e6:,.1f} MB", f"{written.difference:.1e}")
            for written in self.graphs
            for file, size in written.files.items()
        ]

    def lines(self) -> list[str]:
        """The whole as lines of text."""
        kind = "torch.export" if self.opset is None else f"ONNX, opset {self.opset}"
        files = [f"{file}, {size}, within {difference} of the model" for file, size, difference in self.rows()]
        beside = f"beside them {', '.join(self.others)}"
        return [f"{kind}, tolerance {self.tolerance:.1e}", *files, beside, f"wrote {self.directory}"]


def export_portable(
    checkpoint: str | Path,
    to: str | Path | None = None,
    format: str = "onnx",
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write the graphs of a model, with its image processor and tokenizer, into a directory.

    Args:
        checkpoint: Model directory, dense or compressed, or anything else that :func:`upop.load` takes.
        to: Where to; an older export there is replaced, anything else is refused. By default a folder ``onnx`` or
            ``torch`` in the model directory.
        format: ``onnx``, or ``torch`` for what ``torch.export.load`` reads.
        opset: Version of ONNX's operators, 18 to 23. By default 18, which most runtimes read.
        tolerance: Largest difference from the model that is let pass, as a part of the largest number in an output.

    Raises:
        ValueError: If an argument is not allowed, it is not known how to make graphs of the model, torch cannot follow
            it, or a graph does not compute what the model does. Nothing is left behind then.
        FileExistsError: If ``to`` holds something else than an export.
        FileNotFoundError: If there is no such model, or a package is missing.
    """
    _check_format(format, opset)
    if to is None and not Path(checkpoint).is_dir():
        raise ValueError(
            f"there is no directory {str(checkpoint)!r} to put the export into; give a model directory, or say where "
            "the export is to go (to)"
        )
    directory = Path(checkpoint) / format if to is None else Path(to)
    _check_target(directory, tolerance)
    model, processor = load(checkpoint)
    return write_portable(model.float(), processor, directory, format, opset, tolerance)


def write_portable(
    model: nn.Module,
    processor: Any,  # noqa: ANN401 (any Hugging Face processor, or None)
    to: str | Path,
    format: str = "onnx",
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write the graphs of a model that is in memory; what is not said here is as in :func:`export_portable`.

    Args:
        model: In evaluation mode, in float32 on the CPU, without masks. It is not changed.
        processor: Its processor; ``None`` for a model that has none.
        to: Where to.
        format: ``onnx`` or ``torch``.
        opset: Version of ONNX's operators.
        tolerance: Largest difference from the model that is let pass.

    Raises:
        ValueError: Also if the model is not as said above.
        FileExistsError: As there.
        FileNotFoundError: If a package is missing.
    """
    directory = Path(to)
    _check_format(format, opset)
    _check_target(directory, tolerance)
    _check_model(model)
    opset = (opset or OPSET) if format == "onnx" else None
    with torch.no_grad():
        graphs = graphs_of(model)
    with whole_directory(directory) as temporary:
        written = [write(graph, temporary, opset, tolerance) for graph in graphs]
        if processor is not None:
            processor.save_pretrained(temporary)
        facts = _facts(model, temporary, format, opset, tolerance)
        write_json(temporary / FACTS, facts | {"graphs": {one.graph.name: _described(one) for one in written}})
    graph_files = {file for one in written for file in one.files}
    others = sorted(file.name for file in directory.iterdir() if file.name not in graph_files)
    return Exported(directory, format, opset, tolerance, written, others)


def _check_format(format: str, opset: int | None) -> None:
    """Refuse what cannot be written at all, here or anywhere."""
    if format not in SUFFIXES:
        raise ValueError(f"unknown format {format!r}; choose from {sorted(SUFFIXES)}{closest(format, SUFFIXES)}")
    if format == "torch" and opset is not None:
        raise ValueError(f"opset {opset!r} was given for format 'torch', which has none; leave it out or choose 'onnx'")
    if opset is not None and opset not in OPSETS:
        raise ValueError(f"opset {opset!r} cannot be written; choose from {OPSETS[0]} to {OPSETS[-1]}")
    missing = missing_packages() if format == "onnx" else []
    if missing:
        raise FileNotFoundError(
            f'ONNX files need {", ".join(PACKAGES)}, of which {missing} is not installed; pip install "upop[onnx]"'
        )


def _check_target(directory: Path, tolerance: float) -> None:
    """Refuse to replace anything but an export, and a tolerance that is none."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance {tolerance!r} is not in [0, 1); it is a part of an output's size, such as 1e-4")
    if directory.is_dir():
        names = sorted(entry.name for entry in directory.iterdir())
        if not names or FACTS in names:
            return
        raise FileExistsError(
            f"{str(directory)!r} holds {some(names)} and no {FACTS}, so it is no export; give another directory"
        )
    if directory.exists():
        raise FileExistsError(f"{str(directory)!r} is a file; give a directory")


def _check_model(model: nn.Module) -> None:
    """Refuse a model whose graphs would not be the model's, or not run everywhere."""
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("the model has masks (or another parametrisation) attached; detach them before exporting")
    if model.training:
        raise ValueError("the model is in training mode, in which it drops at random; call eval() before exporting")
    for name, value in model.named_parameters():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            raise ValueError(
                f"{name} is {value.dtype} on {value.device}; graphs are made in float32 on the CPU: call float().cpu()"
            )


def _facts(model: nn.Module, directory: Path, format: str, opset: int | None, tolerance: float) -> dict[str, Any]:
    """What export.json says of all graphs."""
    library = "transformers" if is_hugging_face(model) else "timm"
    packages = ["torch", library, *(PACKAGES if format == "onnx" else ())]
    return {
        "format": FACTS_FORMAT,
        "upop": __version__,
        "versions": {name: str(importlib.import_module(name).__version__) for name in packages},
        "model": type(model).__name__,
        "kind": format,
        "opset": opset,
        "precision": "float32",
        "tolerance": tolerance,
        "images": _images(model, directory),
    }


def _images(model: nn.Module, directory: Path) -> Any:  # noqa: ANN401 (what JSON can hold)
    """How images are prepared: the file that says it, or timm's own words; ``None`` where nothing does."""
    given: Any = getattr(model, "pretrained_cfg", None) or {}
    if given:
        size = list(example_inputs(model)["x"].shape[1:])
        return {"input_size": size} | {key: given[key] for key in PREPROCESSING if given.get(key) is not None}
    files = [name for name in PROCESSORS if name != "tokenizer_config.json" and (directory / name).is_file()]
    return files[0] if files else None


def _described(written: Written) -> dict[str, Any]:
    """What export.json says of one graph."""
    graph = written.graph
    return {
        "files": dict(written.files),
        "inputs": {
            port.name: {"shape": port.shape, "dtype": str(port.dtype).removeprefix("torch.")} for port in graph.inputs
        },
        "outputs": {
            output.name: {
                "shape": written.shapes[output.name],
                "dtype": "float32",
                "normalised": output.normalised,
                "largest_difference": written.differences[output.name],
            }
            for output in graph.outputs
        },
        "limits": {name: [1, most] for name, most in graph.limits().items()},
        "checked_with": graph.checked(),
    }
