import json

import pytest
import torch

import upop
from tests import tiny
from tests.export.importing import authors
from tests.export.test_importing import LIKE, bert, checkpoint, processor, refused
from tests.families.blip_nlvr import samples as nlvr
from tests.families.test_salesforce import HEADS, model
from upop.export import save
from upop.export.compression import plan_of
from upop.export.importing import import_checkpoint
from upop.families.salesforce import to_salesforce

TASKS = pytest.mark.parametrize("task", LIKE)
ENCODER = "text_encoder.encoder.layer.1"


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("like")
    for task in LIKE:
        save(tiny.build(f"blip_{task}", seed=9), processor(bert()), root / task)
    return root


def dense(task):
    """A dense checkpoint with the authors' names, far enough from uniform attention that a wrong scale shows."""
    made = nlvr.model(text_config=tiny.TEXT | tiny.IDS, merge_from=2) if task == "nlvr" else model(task)
    state = to_salesforce(made.state_dict())
    return {name: 3 * tensor if tensor.dim() == 2 else tensor for name, tensor in state.items()}


def compressed(task, **changes):
    return authors.cut_blip(dense(task), HEADS, **changes)


def write(path, state):
    torch.save({"model": state}, path)
    return str(path)


@torch.no_grad()
def outputs(task, loaded):
    """What a model of Hugging Face's classes or ours computes of the samples."""
    given = nlvr.inputs()
    images, ids, mask = given["pixel_values"][:, 0], given["input_ids"], given["attention_mask"]
    if task == "nlvr":
        return [loaded(**given).logits]
    if task == "retrieval":
        matching = loaded(ids, images, attention_mask=mask).itm_score
        return [matching, loaded(ids, images, attention_mask=mask, use_itm_head=False).itm_score]
    if task == "captioning":
        return [loaded(images, ids, attention_mask=mask).logits]
    caught = []
    hook = loaded.text_decoder.register_forward_hook(lambda _, __, result: caught.append(result.logits))
    loaded(ids, images, decoder_input_ids=authors.answers(ids), attention_mask=mask)
    hook.remove()
    return caught


def close(task, found, expected):
    """Equal where a text has words."""
    words = nlvr.inputs()["attention_mask"].bool() if task == "captioning" else ...
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.01
        torch.testing.assert_close(mine[words], theirs[words], rtol=1e-5, atol=1e-5)


@TASKS
@pytest.mark.parametrize("seed", [0, 1])
def test_a_compressed_checkpoint_computes_what_the_authors_code_computes(task, seed, directories, tmp_path):
    state = compressed(task, seed=seed)
    import_checkpoint(write(tmp_path / "model.pth", state), str(directories / task), tmp_path / "out")
    given = nlvr.inputs()
    expected = authors.blip(task, state, given["pixel_values"], given["input_ids"], given["attention_mask"], HEADS)
    loaded, _ = upop.load(tmp_path / "out")
    close(task, outputs(task, loaded), expected)


@TASKS
def test_the_reference_tells_scales_apart(task):
    """Were queries not rescaled for NLVR, or rescaled elsewhere, the outputs would differ by far more than rounding."""
    state, given = compressed(task), nlvr.inputs()
    expected = authors.blip(task, state, given["pixel_values"], given["input_ids"], given["attention_mask"], HEADS)
    part = ".self.query.weight" if task != "nlvr" else ".self0.query.weight"
    other = {name: tensor * 1.3 if name.endswith(part) else tensor for name, tensor in state.items()}
    found = authors.blip(task, other, given["pixel_values"], given["input_ids"], given["attention_mask"], HEADS)
    assert max((one - two).abs().max().item() for one, two in zip(found, expected, strict=True)) > 1e-3


@TASKS
def test_the_plan_has_the_sizes_of_the_file(task, directories, tmp_path):
    state = compressed(task)
    imported = import_checkpoint(write(tmp_path / "model.pth", state), str(directories / task), tmp_path / "out")
    plan, kinds = plan_of(tmp_path / "out")
    assert kinds == ["head_dim", "neuron"]
    assert all(units == tuple(range(len(units))) for units in plan.keep.values())
    vision = "visual_encoder.blocks.0" if task == "nlvr" else "vision_model.encoder.layers.0"
    tower = "text_decoder.bert" if task == "captioning" else "text_encoder"
    attention = "attn" if task == "nlvr" else "self_attn"
    qkv, fc1 = state["visual_encoder.blocks.0.attn.qkv.weight"], state["visual_encoder.blocks.0.mlp.fc1.weight"]
    query = state[f"{tower}.encoder.layer.1.attention.self.query.weight"]
    text = f"{tower}.encoder.layer.1.attention" + (
        ".self" if f"{tower}.encoder.layer.1.attention.self.head_dim" in plan.keep else ""
    )
    kept = plan.kept()
    assert kept[f"{vision}.{attention}.head_dim"] == len(qkv) // 3 // HEADS[0]
    assert kept[f"{vision}.mlp.neuron"] == len(fc1)
    assert kept[f"{text}.head_dim"] == len(query) // HEADS[1]
    left = sum(count for site, count in kept.items() if site.endswith(".neuron"))
    total = sum(count for site, count in plan.units.items() if site.endswith(".neuron"))
    assert any(
        note.startswith("compressed: keeps ") and note.endswith(f"{left} of {total} neurons") for note in imported.notes
    )
    facts = json.loads((tmp_path / "out/config.json").read_text())["compression"]["facts"]
    assert facts == {"file": "model.pth", "units": next(note for note in imported.notes if "the first ones" in note)}
    assert (
        "the vision tower's qkv biases are the file's: the authors' cut draws new ones, which were retrained"
        in imported.notes
    )
    assert any(
        note.endswith("attentions run at the scale of their cut head size, as they were retrained")
        for note in imported.notes
    )


def test_weights_without_a_scale_are_those_of_the_file(directories, tmp_path):
    state = compressed("nlvr")
    import_checkpoint(write(tmp_path / "model.pth", state), str(directories / "nlvr"), tmp_path / "out")
    found = upop.load(tmp_path / "out")[0].state_dict()
    assert found.keys() == state.keys()
    changed = {name for name in state if not torch.equal(found[name], state[name])}
    assert changed == {
        name
        for name in state
        if ".query." in name and len(state[name]) < 24  # those of whole attentions are as they were
    }


@TASKS
def test_a_compressed_directory_can_lend_its_configuration(task, directories, tmp_path):
    file = write(tmp_path / "model.pth", compressed(task))
    import_checkpoint(file, str(directories / task), tmp_path / "first")
    import_checkpoint(file, str(tmp_path / "first"), tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_only_some_layers_are_cut(directories, tmp_path):
    """The dense file with one layer of its MLPs cut, and nothing else."""
    state = dense("vqa")
    authors.Cutter(state, 0.5, 0).mlp(f"{ENCODER}.intermediate.dense", f"{ENCODER}.output.dense")
    imported = import_checkpoint(write(tmp_path / "model.pth", state), str(directories / "vqa"), tmp_path / "out")
    given = nlvr.inputs()
    expected = authors.blip("vqa", state, given["pixel_values"], given["input_ids"], given["attention_mask"], HEADS)
    close("vqa", outputs("vqa", upop.load(tmp_path / "out")[0]), expected)
    assert not any("scale" in note or "qkv" in note for note in imported.notes)


def test_what_training_keeps_beside_a_compressed_model_is_dropped(directories, tmp_path):
    state = compressed("retrieval")
    copies = {
        name.replace("visual_encoder.", "visual_encoder_m.").replace("text_encoder.", "text_encoder_m."): tensor
        for name, tensor in state.items()
        if name.startswith(("visual_encoder.", "text_encoder."))
    }
    more = copies | {"image_queue": torch.zeros(16, 4), "idx_queue": torch.zeros(1, 4), "temp": torch.tensor(0.05)}
    file = write(tmp_path / "model.pth", more | state)
    imported = import_checkpoint(file, str(directories / "retrieval"), tmp_path / "out")
    assert (imported.dropped, imported.tensors, imported.temperature) == (list(more), len(state), pytest.approx(0.05))


def pop_rows(name, count):
    """A change that removes the last rows of a layer with its bias."""

    def change(state):
        state[f"{name}.weight"], state[f"{name}.bias"] = (
            state[f"{name}.weight"][:-count],
            state[f"{name}.bias"][:-count],
        )

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            pop_rows(f"{ENCODER}.attention.self.key", 3),
            r"does not fit --like '.*': text_encoder\.encoder\.layer\.1\.attention\.self\.query\.weight keeps 8 of 8 "
            r"head-dim positions, text_encoder\.encoder\.layer\.1\.attention\.self\.key\.weight keeps 7; a cut leaves",
        ),
        (
            pop_rows(f"{ENCODER}.attention.self.query", 2),
            r"encoder\.layer\.1\.attention\.self\.query\.weight is \(22, 24\), and 22 is no multiple of 3, as a "
            "cut of head-dim positions leaves it; is it of another number of heads",
        ),
        (
            pop_rows("visual_encoder.blocks.0.attn.qkv", 4),
            r"visual_encoder\.blocks\.0\.attn\.qkv\.weight is \(92, 32\), and 92 is no multiple of 12, as a cut of",
        ),
        (
            pop_rows(f"{ENCODER}.intermediate.dense", 1),
            r"text_encoder\.encoder\.layer\.1\.intermediate\.dense\.weight keeps 39 of 40 neurons, "
            r"text_encoder\.encoder\.layer\.1\.output\.dense\.weight keeps 40; a cut leaves both as many, so",
        ),
        (
            lambda state: state.update({"visual_encoder.blocks.0.attn.qkv.bias": torch.zeros(84)}),
            r"qkv\.weight keeps 8 of 8 head-dim positions, visual_encoder\.blocks\.0\.attn\.qkv\.bias keeps 7; a cut",
        ),
        (
            lambda state: state.pop("visual_encoder.blocks.0.attn.qkv.bias"),
            r"the file lacks \['visual_encoder\.blocks\.0\.attn\.qkv\.bias'\]; give a --like of the same size",
        ),
        (
            pop_rows(f"{ENCODER}.output.dense", 1),
            r"encoder\.layer\.1\.output\.dense\.weight is \(23, 40\) in the file, \(24, 40\) in the model",
        ),
        (
            pop_rows(f"{ENCODER}.intermediate.dense", 40),
            r"text_encoder\.encoder\.layer\.1\.intermediate\.dense\.weight is \(0, 24\) in the file, \(40, 24\) in the",
        ),
        (
            lambda state: state.update({"text_encoder.encoder.layer.0.attention.self.alpha": torch.tensor([1.0, 0.9])}),
            r"model\.pth' is of a search: its mask text_encoder\.encoder\.layer\.0\.attention\.self\.alpha is not 1 "
            "everywhere, and its layers are not cut; give the checkpoint that the retraining wrote",
        ),
    ],
)
def test_shapes_that_no_cut_explains(change, text, directories, tmp_path):
    refused(tmp_path, text, checkpoint(tmp_path / "model.pth", model("retrieval"), change), directories / "retrieval")


def test_a_model_of_more_neurons(directories, tmp_path):
    torch.manual_seed(0)
    wide = type(model("retrieval"))(tiny.blip_config(intermediate_size=60))
    text = (
        r"visual_encoder\.blocks\.0\.mlp\.fc1\.weight is \(60, 32\) in the file, \(48, 32\) in the model; .* and "
        r"\d+ more differ; give a --like of the same size"
    )
    refused(tmp_path, text, checkpoint(tmp_path / "model.pth", wide), directories / "retrieval")


def test_masks_of_ones_are_dropped(directories, tmp_path):
    mask = "visual_encoder.blocks.0.mlp.alpha"
    file = checkpoint(tmp_path / "model.pth", model("vqa"), lambda state: state.update({mask: torch.ones(1, 1, 48)}))
    assert import_checkpoint(file, str(directories / "vqa"), tmp_path / "out").dropped == [mask]


def test_half_precision_becomes_single(directories, tmp_path):
    state = {name: tensor.half() for name, tensor in compressed("captioning").items()}
    imported = import_checkpoint(write(tmp_path / "m.pth", state), str(directories / "captioning"), tmp_path / "out")
    assert f"converted {len(state)} tensors of float16 to float32" in imported.notes
    assert {tensor.dtype for tensor in upop.load(tmp_path / "out")[0].state_dict().values()} == {torch.float32}
    single = {name: tensor.float() for name, tensor in state.items()}
    given = nlvr.inputs()
    images, ids, mask = given["pixel_values"], given["input_ids"], given["attention_mask"]
    expected = authors.blip("captioning", single, images, ids, mask, HEADS)
    close("captioning", outputs("captioning", upop.load(tmp_path / "out")[0]), expected)
