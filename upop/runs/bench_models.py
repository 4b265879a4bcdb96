"""The models that are timed side by side: found, named apart, loaded, and held against one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor, nn

from upop.export import load
from upop.export.compression import CONFIG
from upop.families import example_inputs
from upop.families.models import looks_like_path
from upop.messages import some
from upop.report.bench import Model
from upop.runs.timing import weight_bytes


def check_sources(sources: Sequence[str], directories: int) -> None:
    """Refuse what cannot be a model; the last ``directories`` are directories, a baseline may be on the hub."""
    if not directories:
        raise ValueError("no model to time; give one or several model directories, such as runs/NAME/compressed")
    real = [Path(source).resolve() for source in sources]
    twice = next((source for source, place in zip(sources, real, strict=True) if real.count(place) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is given twice; give each model once")
    for number, source in enumerate(sources):
        path = Path(source)
        if number < len(sources) - directories and not looks_like_path(source):
            continue  # a hub name or one of timm's
        if not path.is_dir():
            raise FileNotFoundError(
                f"no model directory at {source!r}; give one with a config.json, such as runs/NAME/compressed"
            )
        if not (path / CONFIG).is_file():
            found = some(sorted(entry.name for entry in path.iterdir()))
            raise FileNotFoundError(f"no {CONFIG} in {source!r} (it holds {found}); is it a model directory?")


def labels(sources: Sequence[str]) -> list[str]:
    """Names of models: the end of each one's path, as long as it takes to tell it from the others.

    >>> labels(["models/clip", "runs/a/compressed", "runs/b/compressed"])
    ['clip', 'a/compressed', 'b/compressed']
    """
    parts = [(Path(source).resolve() if Path(source).is_dir() else Path(source)).parts for source in sources]

    def name(part: tuple[str, ...]) -> str:
        alone = (end for end in range(1, len(part)) if [other[-end:] for other in parts].count(part[-end:]) == 1)
        return str(Path(*part[-next(alone, len(part)) :]))

    return [name(part) for part in parts]


def load_models(names: Sequence[str], sources: Sequence[str]) -> dict[str, nn.Module]:
    """The models by name, on the CPU in fp32, with the name of what is being loaded where there is a terminal."""
    models = {}
    with Console(stderr=True).status("loading") as status:
        for name, source in zip(names, sources, strict=True):
            status.update(f"loading {name}")
            models[name], _ = load(source)
    return models


def common_inputs(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """One sample of what all models take, on the meta device.

    Raises:
        ValueError: If they do not take the same.
    """
    inputs = {name: example_inputs(model) for name, model in models.items()}
    first, sample = next(iter(inputs.items()))
    for name, other in inputs.items():
        if _shapes(other) != _shapes(sample):
            raise ValueError(
                f"{first} takes {_shapes(sample)}, {name} takes {_shapes(other)}; models to compare have to take "
                "the same inputs"
            )
    return sample


def facts(name: str, model: nn.Module, flops: int, source: str | None = None) -> Model:
    """What a model is.

    Args:
        name: What it is called.
        model: The model, on the device and in the dtype in which it is timed.
        flops: FLOPs per sample.
        source: Where it was loaded from, if it was.
    """
    files = Path(source).glob("*.safetensors") if source is not None else ()
    return Model(
        name,
        source,
        type(model).__name__,
        sum(parameter.numel() for parameter in model.parameters()),
        flops,
        weight_bytes(model),
        sum(file.stat().st_size for file in files) or None,
    )


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    """Shapes of one sample, for a message."""
    return ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in sorted(inputs.items()))
