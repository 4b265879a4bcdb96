"""The Trainer of a phase: what the recipe says of it, what upop sets, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger

from tests.recipes import recipe
from upop.runs import RunDirectory
from upop.runs.training import check_trainer, new_trainer, train


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 3}, "trainer.max_epochs is 3, but upop sets it; set finetune.epochs, search.epochs"),
        ({"default_root_dir": "there"}, "trainer.default_root_dir is 'there', but upop sets it; set run_dir"),
        ({"enable_checkpointing": False}, "but a run has to be resumable; leave it out"),
        ({"precision": "16-true"}, "trainer.precision is '16-true', but weights stay in fp32; give bf16-mixed"),
    ],
)
def test_what_follows_from_other_keys_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_trainer(settings)


def test_a_trainer_is_as_the_recipe_wants_it_with_logs_in_the_folder_of_its_phase(
    config: dict[str, Any], tmp_path: Path
) -> None:
    made = recipe(config | {"trainer": config["trainer"] | {"gradient_clip_val": 0.5}}, tmp_path / "config.yaml")
    made.trainer = dict(made.trainer) | {"callbacks": Timer()}
    trainer = new_trainer(made, [], tmp_path / "phase", max_epochs=3)
    assert trainer.gradient_clip_val == 0.5
    assert trainer.max_epochs == 3
    assert any(isinstance(callback, Timer) for callback in trainer.callbacks)
    assert isinstance(trainer.logger, CSVLogger)
    assert Path(trainer.logger.log_dir).is_relative_to(tmp_path / "phase")


def test_a_checkpoint_that_lacks_parts_is_refused_with_its_name(config: dict[str, Any], tmp_path: Path) -> None:
    made = recipe(config, tmp_path / "config.yaml")
    directory = RunDirectory(tmp_path / "run", made.config)
    last = directory.phase("search") / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "loops": {}}, last)
    with pytest.raises(ValueError, match=r"last\.ckpt' lacks \['callbacks', 'lr_schedulers', 'optimizer_states'\]"):
        train(made, directory, "search", made.task, [])
