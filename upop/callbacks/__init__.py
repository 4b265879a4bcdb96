"""Masks and policies on Lightning's clock, what guards them, and what makes a run resume exactly."""

from upop.callbacks.guards import NONFINITE, Guards, StepGuard
from upop.callbacks.progressive_search import ProgressiveSearch
from upop.callbacks.resuming import DataState, RandomState, StepCheckpoint
from upop.callbacks.watches import SearchWatch

__all__ = [
    "NONFINITE",
    "DataState",
    "Guards",
    "ProgressiveSearch",
    "RandomState",
    "SearchWatch",
    "StepCheckpoint",
    "StepGuard",
]
