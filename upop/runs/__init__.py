"""A run directory and its phases: finetune, search, retrain, export; resumable."""

from upop.runs.directory import RunDirectory
from upop.runs.phases import PHASES, check, fit
from upop.runs.recipe import Recipe
from upop.runs.training import evaluate

__all__ = ["PHASES", "Recipe", "RunDirectory", "check", "evaluate", "fit"]
