import json

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

import upop
from tests import tiny
from tests.export import samples as other
from tests.export.importing import authors
from tests.export.test_importing import refused
from tests.families import open_clip_samples as samples
from tests.families.test_openai_clip import MORE, resnet
from upop.export import save
from upop.export.compression import plan_of
from upop.export.importing import import_checkpoint
from upop.families import image_features, text_features

HEADS = samples.HEADS


def processor():
    """Fifty words of which the last ends a text, and images of 16 pixels."""
    words = {"<start>": 0} | {f"w{number}": number for number in range(1, samples.WORDS - 1)}
    core = Tokenizer(models.WordLevel(words | {"<end>": samples.WORDS - 1}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>", "unk_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=12, **marks)
    return CLIPProcessor(other.image_processor(), tokenizer)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Hugging Face's CLIP with either activation, of another end of text, and other models."""
    root = tmp_path_factory.mktemp("like")
    old = samples.TEXT | {"eos_token_id": 2, "hidden_act": "quick_gelu"}
    configs = {
        "quick": samples.config(),
        "gelu": samples.config(quick_gelu=False),
        "old": samples.config(text_config=old),
        "end": samples.config(text_config=old | {"eos_token_id": 7}),
    }
    for name, config in configs.items():
        save(CLIPModel(config), processor(), root / name)
    save(tiny.build("siglip"), processor(), root / "siglip")
    save(tiny.build("blip_vqa"), processor(), root / "blip")
    return root


def features(loaded):
    images, ids = samples.inputs()
    with torch.no_grad():
        return image_features(loaded, images), text_features(loaded, ids)


def close(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def write(path, state, wrap=lambda state: {"model": state}):
    torch.save(wrap(state), path)
    return str(path)


@pytest.mark.parametrize("like", ["quick", "gelu", "old"])
@pytest.mark.parametrize("build", [samples.theirs, samples.custom])
def test_an_open_clip_model_keeps_its_features(build, like, directories, tmp_path):
    theirs = build(quick_gelu=like != "gelu")
    file = write(tmp_path / "open_clip.pt", theirs.state_dict(), lambda state: state)
    imported = import_checkpoint(file, str(directories / like), tmp_path / "out")
    images, ids = samples.inputs()
    with torch.no_grad():
        close(features(upop.load(tmp_path / "out")[0]), (theirs.encode_image(images), theirs.encode_text(ids)))
    assert (imported.task, imported.tensors, imported.dropped) == ("clip", len(theirs.state_dict()), [])
    act = "gelu" if like == "gelu" else "quick_gelu"
    assert imported.lines() == [
        f"took {len(theirs.state_dict())} tensors, of clip",
        f"vision_config says 4 heads of 8, {act}, and layer_norm_eps 1e-05: the file does not show these",
        f"text_config says 3 heads of 8, {act}, and layer_norm_eps 1e-05: the file does not show these",
        "the processor is that of --like, and the state of a text is the one at "
        + ("its highest token" if like == "old" else "token 49"),
        f"wrote {tmp_path / 'out'}",
    ]
    assert plan_of(tmp_path / "out") is None


def forms(path, state):
    """The files that open_clip and OpenAI's users have, as far as they hold tensors."""
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    numbers = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(12), "vocab_size": torch.tensor(50)}
    save_file(state, path / "open_clip_model.safetensors")
    return [
        write(path / "trained.pt", wrapped, lambda state: {"epoch": 1, "name": "run", "state_dict": state}),
        write(path / "jit.pt", state | numbers, lambda state: state),
        str(path / "open_clip_model.safetensors"),
    ]


@pytest.mark.parametrize("form", range(3))
def test_every_form_of_file(form, directories, tmp_path):
    state = samples.theirs().state_dict()
    file = forms(tmp_path, state)[form]
    imported = import_checkpoint(file, str(directories / "quick"), tmp_path / "out")
    images, ids = samples.inputs()
    close(features(upop.load(tmp_path / "out")[0]), authors.clip(state, images, ids, HEADS))
    assert imported.tensors == len(state)
    assert imported.dropped == (["input_resolution", "context_length", "vocab_size"] if form == 1 else [])


def test_half_precision_becomes_single(directories, tmp_path):
    """As in OpenAI's own files, where the norms are of single precision."""
    state = samples.theirs().state_dict()
    halved = {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    imported = import_checkpoint(write(tmp_path / "m.pt", halved), str(directories / "quick"), tmp_path / "out")
    fused = 5 * 2  # weights of queries, keys and values are one tensor in the file and three here
    count = sum(tensor.dim() > 1 for tensor in state.values()) + fused
    assert f"converted {count} tensors of float16 to float32" in imported.notes
    images, ids = samples.inputs()
    expected = authors.clip({name: tensor.float() for name, tensor in halved.items()}, images, ids, HEADS)
    close(features(upop.load(tmp_path / "out")[0]), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_compressed_checkpoint_computes_what_the_authors_code_computes(seed, directories, tmp_path):
    state = authors.cut_clip(samples.theirs().state_dict(), HEADS, seed=seed)
    copies = {f"{name.replace('.', '_m.', 1)}": tensor for name, tensor in state.items() if ".resblocks." in name}
    more = copies | {"image_queue": torch.zeros(16, 4), "ptr_queue": torch.zeros(1, dtype=torch.long)}
    file = write(tmp_path / "clip_2x.pth", more | state)
    imported = import_checkpoint(file, str(directories / "quick"), tmp_path / "out")
    images, ids = samples.inputs()
    expected = authors.clip(state, images, ids, HEADS)
    loaded, _ = upop.load(tmp_path / "out")
    close(features(loaded), expected)
    assert (imported.tensors, imported.dropped) == (len(state), list(more))
    assert sum(parameter.numel() for parameter in loaded.parameters()) == sum(part.numel() for part in state.values())

    plan, kinds = plan_of(tmp_path / "out")
    kept = plan.kept()
    in_proj, c_fc = (
        state[f"visual.transformer.resblocks.1.{part}"] for part in ("attn.in_proj_weight", "mlp.c_fc.weight")
    )
    assert kinds == ["head_dim", "neuron"]
    assert kept["vision_model.encoder.layers.1.self_attn.head_dim"] == len(in_proj) // 3 // HEADS[0]
    assert kept["vision_model.encoder.layers.1.mlp.neuron"] == len(c_fc)
    positions, neurons = (sum(count for site, count in kept.items() if site.endswith(kind)) for kind in kinds)
    assert f"compressed: keeps {positions} of 40 head-dim positions and {neurons} of 272 neurons" in imported.notes
    cut = sum(count < 8 for site, count in kept.items() if site.endswith("head_dim"))
    assert f"{cut} attentions run at the scale of their cut head size, as they were retrained" in imported.notes


def test_the_scale_matters():
    """The dense scale, which queries that are not rescaled would have, gives other features."""
    state = authors.cut_clip(samples.theirs().state_dict(), HEADS)
    images, ids = samples.inputs()
    right = authors.clip(state, images, ids, HEADS)
    rows = {name: len(tensor) // 3 for name, tensor in state.items() if ".in_proj_" in name}
    dense = dict(state)
    for name, queries in rows.items():
        heads = HEADS[0] if name.startswith("visual.") else HEADS[1]
        dense[name] = state[name].clone()
        dense[name][:queries] *= (queries / heads / 8) ** 0.5
    wrong = authors.clip(dense, images, ids, HEADS)
    assert all((one - two).abs().max() > 1e-2 for one, two in zip(right, wrong, strict=True))


def test_a_compressed_directory_can_lend_its_configuration(directories, tmp_path):
    file = write(tmp_path / "m.pth", authors.cut_clip(samples.theirs().state_dict(), HEADS))
    import_checkpoint(file, str(directories / "quick"), tmp_path / "first")
    import_checkpoint(file, str(tmp_path / "first"), tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("image_size", [24, 16, 40])
def test_another_image_size(image_size, directories, tmp_path):
    state = samples.theirs(image_size=24).state_dict()
    file = write(tmp_path / "m.pt", state)
    imported = import_checkpoint(file, str(directories / "quick"), tmp_path / "out", image_size)
    loaded, fitting = upop.load(tmp_path / "out")
    found, own = loaded.vision_model.embeddings.position_embedding.weight, state["visual.positional_embedding"]
    side = image_size // 8
    if image_size == 24:
        assert torch.equal(found, own)
    else:
        grid = F.interpolate(own[1:].T.reshape(1, -1, 3, 3), (side, side), mode="bicubic")
        torch.testing.assert_close(found, torch.cat([own[:1], grid[0].flatten(1).T]))
    assert (f"interpolated the position embeddings from 24 to {image_size} pixels" in imported.notes) == (
        image_size != 24
    )
    assert (f"the processor makes images of {image_size} pixels" in imported.notes) == (image_size != 16)
    image = Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8))
    pixels = fitting(images=image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, image_size, image_size)
    assert image_features(loaded, pixels).shape == (1, 16)


def test_an_image_processor_that_does_not_crop(tmp_path):
    whole = CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    save(CLIPModel(samples.config()), CLIPProcessor(whole, processor().tokenizer), tmp_path / "like")
    file = write(tmp_path / "m.pt", samples.theirs(image_size=24).state_dict())
    import_checkpoint(file, str(tmp_path / "like"), tmp_path / "out", 24)
    image = Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8))
    fitting = upop.load(tmp_path / "out")[1]
    assert fitting(images=image, return_tensors="pt")["pixel_values"].shape == (1, 3, 24, 24)


def test_image_sizes_that_differ_are_refused_unless_one_is_given(directories, tmp_path):
    file = write(tmp_path / "m.pt", samples.theirs(image_size=24).state_dict())
    text = rf"'{file}' is for images of 24 pixels, --like '.*' for 16; give --image-size 24 to take it as it is, or"
    refused(tmp_path, text, file, directories / "quick")


def cut(name, count):
    """A change that removes the last rows of a weight."""

    def change(state):
        state[name] = state[name][:-count]
        return state

    return change


BLOCK = "visual.transformer.resblocks.1"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda state: resnet(),
            "m.pth': this is a CLIP whose images go through a ResNet; one with a vision transformer",
        ),
        (
            cut(f"{BLOCK}.attn.in_proj_weight", 1),
            rf"m.pth': {BLOCK}\.attn\.in_proj_weight is \(95, 32\): its rows are not three equal parts for q, k and v",
        ),
        (
            cut(f"{BLOCK}.attn.in_proj_weight", 3),
            rf"m.pth' does not fit --like '.*': {BLOCK}\.attn\.in_proj_weight \(queries\) is \(31, 32\), and 31 is "
            "no multiple of 4, as a cut of head-dim positions leaves it; is it of another number of heads",
        ),
        (
            cut(f"{BLOCK}.attn.in_proj_weight", 12),
            rf"{BLOCK}\.attn\.in_proj_weight \(queries\) keeps 7 of 8 head-dim positions, {BLOCK}\.attn\.in_proj_bias "
            r"\(queries\) keeps 8; a cut leaves both as many, so the file is damaged or of another code",
        ),
        (
            cut("transformer.resblocks.2.mlp.c_fc.bias", 1),
            r"transformer\.resblocks\.2\.mlp\.c_fc\.weight keeps 48 of 48 neurons, transformer\.resblocks\.2\.mlp\.c",
        ),
        (
            cut("text_projection", 1),
            r"text_projection \(transposed\) is \(16, 23\) in the file, \(16, 24\) in the model; give a --like of the",
        ),
        (
            cut("positional_embedding", 2),
            r"positional_embedding is \(10, 24\) in the file, \(12, 24\) in the model; give a --like of the same size",
        ),
        (cut("visual.positional_embedding", 1), r"visual\.positional_embedding is for 3 patches, which are no square"),
        (
            lambda state: state | {"logit_bias": torch.zeros(())},
            r"the model has no place for \['logit_bias'\]; give a --like of the same size, and a whole file",
        ),
        (
            lambda state: {name: state[name] for name in state if not name.startswith("visual.ln_pre.")},
            r"the file lacks \['visual\.ln_pre\.weight', 'visual\.ln_pre\.bias'\]",
        ),
        (
            lambda state: {name: state[name] for name in state if not name.startswith(BLOCK)},
            rf"the file lacks \['{BLOCK}\.attn\..*\] \(16\); give a --like of the same size",
        ),
        (
            lambda state: state | {f"{BLOCK}.attn.alpha": torch.tensor([0.0, 1.0])},
            rf"m.pth' is of a search: its mask {BLOCK}\.attn\.alpha is not 1 everywhere, and its layers are not cut",
        ),
    ],
)
def test_files_that_do_not_fit(change, text, directories, tmp_path):
    file = write(tmp_path / "m.pth", change(samples.theirs().state_dict()))
    refused(tmp_path, text, file, directories / "quick")


def test_a_model_of_another_width(directories, tmp_path):
    text_config = CLIPTextCfg(context_length=12, vocab_size=50, width=24, heads=3, layers=3, mlp_ratio=2.0)
    vision = CLIPVisionCfg(layers=2, width=40, head_width=8, mlp_ratio=2.0, patch_size=8, image_size=16)
    file = write(tmp_path / "m.pt", CLIP(16, vision, text_config).state_dict())
    text = (
        r"visual\.class_embedding is \(40,\) in the file, \(32,\) in the model; .* and \d+ more differ; give a --like "
        "of the same size"
    )
    refused(tmp_path, text, file, directories / "quick")


@pytest.mark.parametrize(
    ("like", "text"),
    [
        (
            "siglip",
            r"m\.pt' is a CLIP, --like '.*' is a SiglipModel; give a directory or hub name of a CLIP, such as 'openai",
        ),
        (
            "blip",
            r"m\.pt' is a CLIP, --like '.*' is a BlipForQuestionAnswering; give a directory or hub name of a CLIP",
        ),
        (
            "end",
            r"--like '.*' takes the state of a text at token 7 \(eos_token_id of its text_config\), OpenAI's CLIP at "
            "the highest one, which is 49; give a --like with the tokenizer of CLIP",
        ),
    ],
)
def test_a_like_of_another_kind(like, text, directories, tmp_path):
    refused(tmp_path, text, write(tmp_path / "m.pt", samples.theirs().state_dict()), directories / like)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_openais_own_files_are_refused_with_a_way_out(directories, tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    text = r"'.*ViT-B-32\.pt' is a TorchScript archive, which holds code, and none of it was executed; where you trust"
    refused(tmp_path, text, tmp_path / "ViT-B-32.pt", directories / "quick")


def test_everything_that_only_training_needs_is_dropped(directories, tmp_path):
    state = dict.fromkeys(MORE, torch.ones(2)) | samples.theirs().state_dict()
    imported = import_checkpoint(write(tmp_path / "m.pt", state), str(directories / "quick"), tmp_path / "out")
    assert imported.dropped == list(MORE)
    assert imported.lines()[1].startswith("dropped ['visual_m.conv1.weight', ")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "compression" not in config
