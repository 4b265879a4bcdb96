"""A run directory and its phases: finetune, search, retrain, export; resumable."""

from upop.runs.directory import RunDirectory
from upop.runs.phases import PHASES, Recipe, check, evaluate, fit

__all__ = ["PHASES", "Recipe", "RunDirectory", "check", "evaluate", "fit"]
