"""Masks and policies on Lightning's clock, and what makes a run resume exactly."""

from upop.callbacks.progressive_search import ProgressiveSearch
from upop.callbacks.resuming import RandomState, StepCheckpoint

__all__ = ["ProgressiveSearch", "RandomState", "StepCheckpoint"]
