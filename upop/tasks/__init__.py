"""Tasks as LightningModules: they know losses and metrics, not search."""

from upop.tasks.base import Distillation, Task, Training
from upop.tasks.retrieval import Retrieval

__all__ = ["Distillation", "Retrieval", "Task", "Training"]
