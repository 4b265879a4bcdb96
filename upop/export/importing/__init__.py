"""Make a model directory of what a model's authors released: one file of weights, named as their modules are."""

from upop.export.importing.checkpoint import Imported, import_checkpoint
from upop.export.importing.files import read

__all__ = ["Imported", "import_checkpoint", "read"]
