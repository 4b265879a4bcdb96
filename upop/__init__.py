"""upop compresses vision-language transformers by structure: search, cut, retrain, hand over a smaller model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from upop.export import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (module attribute of any type)
    """Import :func:`upop.load` when it is first asked for, so that ``import upop`` needs no torch."""
    if name == "load":
        from upop.export import load

        return load
    raise AttributeError(f"module 'upop' has no attribute {name!r}")
