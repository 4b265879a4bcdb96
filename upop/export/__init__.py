"""The directory that others load: weights as safetensors, the dense config, the plan, and the processor."""

from upop.export.directory import load, save
from upop.export.importing import import_checkpoint

__all__ = ["import_checkpoint", "load", "save"]
