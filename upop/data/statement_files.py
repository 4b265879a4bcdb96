"""Statements about images in parts, as NLVR2 and NLVR v1 have them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from upop.data.annotations import Split
from upop.data.images import ImageFolder
from upop.data.nlvr_files import Statement
from upop.data.parts import PartedFiles
from upop.data.reasoning import PairedImages, ReasoningDataModule


class StatementFiles(PartedFiles[PairedImages], ReasoningDataModule):
    """Statements about images, in parts."""

    limited = "statements"

    def _statements(self, read: Callable[[str], list[Statement]]) -> tuple[dict[Split, list[Statement]], ImageFolder]:
        """The statements of each split, and where their images are.

        Args:
            read: Reads a part by its name, with images that exist.
        """
        found = {split: list(itertools.chain(*parts)) for split, parts in self._parts(read).items()}
        found["train"] = found["train"][: self.train_limit]
        paths = [path for split in found.values() for statement in split for path in statement.images]
        return found, self._checked_folder(paths, self.images)
