"""The retrieval task: losses, momentum, queue, distillation and recalls, on the built-in data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from tests import tiny
from tests.recipes import recipe
from upop.export import load
from upop.metrics import retrieval_recalls
from upop.runs import evaluate
from upop.tasks import Distillation, Retrieval, Training


def trainer(path: Path, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=path,
        **arguments,
    )


@pytest.fixture
def made(config: dict[str, Any], tmp_path: Path) -> Any:
    config["model"]["init_args"] |= {"contrast": "queue", "queue_size": 12}
    return recipe(config, tmp_path / "config.yaml")


def fitted(made: Any, path: Path, task: Retrieval, steps: int = 3) -> Retrieval:
    task.training_settings = Training(epochs=1, lr=1e-3)
    trainer(path, max_steps=steps).fit(task, datamodule=made.data)
    return task


def test_queue_holds_the_latest_momentum_features(made: Any, tmp_path: Path) -> None:
    task = made.new_task(*load(made.task.checkpoint))
    fitted(made, tmp_path, task, steps=3)
    assert int(task.queue_place) == 3 * 6 % 12
    assert (task.queue_index >= 0).all(), "18 pairs have gone through 12 places"
    torch.testing.assert_close(task.image_queue.norm(dim=1), torch.ones(12))


def test_momentum_encoders_follow_slowly_and_are_not_trained(made: Any, tmp_path: Path) -> None:
    task = made.new_task(*load(made.task.checkpoint))
    start = copy.deepcopy(task.model.state_dict())
    fitted(made, tmp_path, task, steps=1)
    end, mean = task.model.state_dict(), task.momentum_model.state_dict()
    name = "visual_projection.weight"
    assert not torch.equal(start[name], end[name])
    assert torch.equal(mean[name], start[name]), "the average moves before the step, towards the weights then"
    assert not any(parameter.requires_grad for parameter in task.momentum_model.parameters())


def test_carried_state_goes_on(made: Any, tmp_path: Path) -> None:
    task = fitted(made, tmp_path, made.new_task(*load(made.task.checkpoint)))
    after = made.new_task(*load(made.task.checkpoint))
    after.carry({name: value.clone() for name, value in task.carried().items()})
    for name, value in task.carried().items():
        assert torch.equal(value, after.carried()[name]), name


def test_carried_state_of_another_kind_is_refused(made: Any) -> None:
    task = made.new_task(*load(made.task.checkpoint))
    state = {name: value.clone() + 1 for name, value in task.carried().items()}
    before = {name: value.clone() for name, value in task.carried().items()}
    state["queue"] = state.pop("text_queue")
    message = r"the state of the phase before lacks \['text_queue'\] and has unexpected \['queue'\]; run "
    with pytest.raises(ValueError, match=message):
        task.carry(state)
    assert all(torch.equal(value, task.carried()[name]) for name, value in before.items())


def test_the_teacher_is_not_trained_and_not_saved(made: Any, tmp_path: Path) -> None:
    model, processor = load(made.task.checkpoint)
    task = made.new_task(model, processor)
    teacher, _ = load(made.task.checkpoint)
    before = copy.deepcopy(teacher.state_dict())
    keys = set(task.state_dict())
    task.learn_from(teacher, Distillation(1.0, 1.0))
    fitted(made, tmp_path, task)
    assert set(task.state_dict()) == keys
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_distillation_of_an_equal_student_adds_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    made = recipe(config, tmp_path / "config.yaml")
    losses = []
    for distilled in (False, True):
        task = made.new_task(*load(made.task.checkpoint))
        if distilled:
            task.learn_from(load(made.task.checkpoint)[0], Distillation(1.0, 1.0))
        task.training_settings = Training(epochs=1, lr=1e-3)
        run = trainer(tmp_path, max_steps=1)
        run.fit(task, datamodule=made.data)
        losses.append(float(run.callback_metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_test_metrics_equal_the_recalls_of_features_computed_by_hand(config: dict[str, Any], tmp_path: Path) -> None:
    made = recipe(config, tmp_path / "config.yaml")
    task = made.new_task(*load(made.task.checkpoint))
    found = evaluate(made, task)
    made.data.setup("test")
    images, texts = made.data.test_dataloader()
    with torch.no_grad():
        image = torch.cat(
            [task.model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output for batch in images]
        )
        text = torch.cat(
            [
                task.model.get_text_features(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                ).pooler_output
                for batch in texts
            ]
        )
    expected = retrieval_recalls(F.normalize(image, dim=1), F.normalize(text, dim=1), made.data.eval_pairs("test"))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["clip", "siglip", "dual_encoder"])
def test_every_dual_encoder_has_features_of_one_size_and_a_scale(name: str) -> None:
    task = Retrieval("unused", contrast="queue", queue_size=4)
    model = tiny.build(name)
    task.adopt(model, None)
    batch = tiny.inputs(model)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    images, texts = task.features(task.model, batch)
    assert images.shape == texts.shape == (3, task.image_queue.shape[1])
    assert 0 < float(task.scale(task.model)) <= 100.001


@pytest.mark.slow
def test_compiled_towers_train_to_the_same_weights(config: dict[str, Any], tmp_path: Path) -> None:
    weights = []
    for compiled in (False, True):
        config["model"]["init_args"]["compile"] = compiled
        made = recipe(config, tmp_path / "config.yaml")
        task = fitted(made, tmp_path, made.new_task(*load(made.task.checkpoint)), steps=2)
        weights.append(task.model.state_dict())
    for name, value in weights[0].items():
        if not name.endswith("k_proj.bias"):  # softmax cancels it: its gradient is rounding, which Adam blows up
            torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_messages() -> None:
    with pytest.raises(ValueError, match="contrast is 'que'; give 'batch' or 'queue'"):
        Retrieval("x", contrast="que")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"momentum is 1.0; it is the share that stays, in \[0, 1\)"):
        Retrieval("x", momentum=1.0)
    with pytest.raises(ValueError, match=r"soft_targets is 2; it is a weight in \[0, 1\]"):
        Retrieval("x", soft_targets=2)
    with pytest.raises(ValueError, match="queue_size is 0; give the number of pairs"):
        Retrieval("x", queue_size=0)
    with pytest.raises(ValueError, match="ViTModel is no dual encoder; retrieval takes CLIP, SigLIP"):
        Retrieval("x").adopt(tiny.build("vit"), None)
    with pytest.raises(ValueError, match="distillation is on, but the task has no teacher; call learn_from first"):
        _ = Retrieval("x").teacher
    with pytest.raises(ValueError, match=r"Retrieval carries no state, got \['a'\]"):
        Retrieval("x").carry({"a": torch.zeros(1)})
