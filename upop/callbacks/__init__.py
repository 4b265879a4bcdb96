"""Masks and policies on Lightning's clock."""

from upop.callbacks.progressive_search import ProgressiveSearch

__all__ = ["ProgressiveSearch"]
