"""The directory that others load: weights as safetensors, the dense config, the plan, and the processor."""

from upop.export.directory import load, save

__all__ = ["load", "save"]
