"""What a run does, as objects: the task, the data, the search and how each phase trains."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from upop.callbacks import Guards, ProgressiveSearch
from upop.export import load
from upop.families import example_inputs
from upop.runs.checkpoints import Checkpoints
from upop.runs.timing import Measure
from upop.tasks import Distillation, Task, Training


@dataclass
class Recipe:
    """Everything a run needs, instantiated.

    Attributes:
        task: Prototype of the task, without a model; every phase trains a copy.
        data: Data module; its own files are checked before any model is read.
        search: Prototype of the search callback.
        training: How each phase trains, by phase.
        distillation: What the search and the retraining learn from the dense model.
        trainer: Keyword arguments of Lightning's Trainer, for every phase.
        seed: Seed of every phase.
        config: The resolved configuration, plain values.
        measure: How the speed is measured at the end.
        guards: What the phases are guarded against.
        checkpoints: When a phase writes the checkpoint that it goes on from.
    """

    task: Task
    data: Any  # a data module with check() and set_processor(processor)
    search: ProgressiveSearch
    training: Mapping[str, Training]
    distillation: Distillation = field(default_factory=Distillation)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 42
    config: Mapping[str, Any] = field(default_factory=dict)
    measure: Measure = field(default_factory=Measure)
    guards: Guards = field(default_factory=Guards)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    def start(self) -> tuple[nn.Module, Any]:
        """The dense model that the run starts from, and its processor.

        Raises:
            ValueError: If the model is not ready for the task and would not be finetuned.
        """
        model, processor = load(self.task.checkpoint, self.task.from_scratch)
        started = self.task.start_from(model)
        if started is not model and not self.finetunes:
            raise ValueError(
                f"{self.task.checkpoint!r} is a {type(model).__name__}; the {type(started).__name__} that is made of "
                "it has to be trained first: give finetune.epochs of 1 or more"
            )
        return started, processor

    def new_task(self, model: nn.Module, processor: Any, phase: str | None = None) -> Task:  # noqa: ANN401
        """A copy of the task with a model, set up for a phase."""
        task = copy.deepcopy(self.task)
        if phase:
            task.training_settings = self.training[phase]
        task.adopt(model, processor)
        if any(settings.gradient_checkpointing for settings in self.training.values()):
            task.check_checkpointing()
        self.data.set_processor(processor)
        return task

    def sample(self, model: nn.Module) -> dict[str, Tensor]:
        """One sample of the shapes that the run evaluates with, to count and time; the data know the processor."""
        limit = self.data.text_length or self.data.processor.tokenizer.model_max_length
        most = example_inputs(model)["input_ids"].shape[1]
        return example_inputs(model, min(limit, most))

    @property
    def finetunes(self) -> bool:
        """Whether the dense model is trained first."""
        return self.training["finetune"].epochs > 0
