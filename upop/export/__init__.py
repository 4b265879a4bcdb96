"""The directory that others load: weights as safetensors, the dense config, the plan, and the processor."""

from upop.export.directory import load, save
from upop.export.importing import import_checkpoint
from upop.export.portable import Exported, export_portable, write_portable

__all__ = ["Exported", "export_portable", "import_checkpoint", "load", "save", "write_portable"]
