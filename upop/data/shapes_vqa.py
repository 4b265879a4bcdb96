"""Questions about the built-in world of shapes: visual question answering with nothing to download."""

from __future__ import annotations

from typing import Any

from upop.data.annotations import Split
from upop.data.questions import ANSWERS, questions
from upop.data.scenes import Scene
from upop.data.settings import at_least
from upop.data.shapes import ShapesDataModule, ShapesImages
from upop.data.vqa import QuestionedImages, VqaDataModule
from upop.data.vqa_records import Question, gathered

PEOPLE = 10
"""How many give the one right answer, as in VQA v2: its accuracy is then 1 for that answer and 0 for every other."""


class ShapesVqa(ShapesDataModule[QuestionedImages], VqaDataModule):
    """Visual question answering in a drawn world; the candidates are all answers that the world can give.

    Args:
        questions_per_scene: Number of questions about each picture at most; about twenty can be asked.
        **shared: As :class:`~upop.data.shapes.ShapesDataModule` and :class:`~upop.data.vqa.VqaDataModule`.
    """

    def __init__(self, questions_per_scene: int = 8, **shared: Any) -> None:  # noqa: ANN401 (the base classes' own)
        super().__init__(**shared)
        at_least(1, questions_per_scene=questions_per_scene)
        self.questions_per_scene = questions_per_scene

    def _open(self) -> dict[Split, QuestionedImages]:
        self._answers = list(ANSWERS)
        return {split: self._asked_about(of) for split, of in self._scenes().items()}

    def _asked_about(self, of: list[Scene]) -> QuestionedImages:
        asked = [
            (number, question)
            for number, scene in enumerate(of)
            for question in questions(scene, self.seed)[: self.questions_per_scene]
        ]
        found = gathered(
            Question(identity, one.text, (one.answer,) * PEOPLE, str(number), one.type, one.kind)
            for identity, (number, one) in enumerate(asked)
        )
        return QuestionedImages(found, ShapesImages([of[int(number)] for number in found.images], self.seed))
