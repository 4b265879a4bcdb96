"""Tasks as LightningModules: they know losses and metrics, not search."""

from upop.tasks.base import Distillation, Task, Training
from upop.tasks.captioning import Captioning
from upop.tasks.reasoning import VisualReasoning
from upop.tasks.reranked import RerankedRetrieval
from upop.tasks.retrieval import Retrieval
from upop.tasks.vqa import VisualQuestionAnswering

__all__ = [
    "Captioning",
    "Distillation",
    "RerankedRetrieval",
    "Retrieval",
    "Task",
    "Training",
    "VisualQuestionAnswering",
    "VisualReasoning",
]
