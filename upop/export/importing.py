"""Make a model directory of a BLIP checkpoint in the authors' format: one ``.pth`` file, named as their modules are.

Such a file holds weights and nothing else, so a model directory of the same kind lends its configuration, tokenizer
and image processor. Everything is checked before anything is written, and nothing in the file is executed.

Compressed checkpoints of UPop's authors are refused so far: the sizes of their layers differ, so they need a plan;
:func:`_refuse_compressed` stands where it would be made.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upop.export.directory import save
from upop.families import build_dense
from upop.families.salesforce import (
    Task,
    interpolate_positions,
    leftovers,
    salesforce_name,
    task_of,
    to_hugging_face,
)
from upop.messages import some

ARCHITECTURES: dict[str, Task] = {
    "BlipForImageTextRetrieval": "retrieval",
    "BlipForQuestionAnswering": "vqa",
    "BlipForConditionalGeneration": "captioning",
    "BlipForVisualReasoning": "nlvr",
}
EXAMPLES: dict[Task, str] = {
    "retrieval": "Salesforce/blip-itm-base-coco",
    "vqa": "Salesforce/blip-vqa-base",
    "captioning": "Salesforce/blip-image-captioning-base",
}
TRAINED = {
    "vision_config": {"layer_norm_eps": 1e-6},
    "text_config": {"layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}
"""What the authors trained with (models/vit.py, configs/med_config.json); Hugging Face's configurations differ."""
DECODER, ENCODER = "[DEC]", "[ENC]"
"""First token of what the decoder writes, and of texts that meet an image; the last two that BLIP's tokenizer knows."""
POSITIONS = "visual_encoder.pos_embed"


@dataclass
class Imported:
    """What an import did, for a person to read.

    Attributes:
        directory: Model directory that was written.
        task: Task of the checkpoint.
        tensors: Weights taken from the file.
        temperature: Temperature of the similarities that was trained with them, where the file holds one.
        dropped: Names of what was left behind.
        notes: What was set or changed on the way, a line each.
    """

    directory: Path
    task: Task
    tensors: int = 0
    temperature: float | None = None
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The whole as lines of text."""
        dropped = [f"dropped {some(self.dropped, 4)}"] if self.dropped else []
        learned = (
            [f"its temperature is {self.temperature:.4f}: set model.init_args.temperature to that"]
            if self.temperature is not None
            else []
        )
        took = f"took {self.tensors} tensors, of {self.task}"
        return [took, *dropped, *learned, *self.notes, f"wrote {self.directory}"]


def import_checkpoint(file: str | Path, like: str, directory: str | Path, image_size: int | None = None) -> Imported:
    """Write a model directory that :func:`upop.load` reads, of a checkpoint in the authors' format.

    Args:
        file: The ``.pth`` file: a state dict, or one under the key ``model`` or ``state_dict``.
        like: Model directory or hub name of a BLIP of the same task and size (of any task for NLVR, for which there is
            none on the hub). Only its configuration and processor are used.
        directory: Where to; it must not exist.
        image_size: Pixels along a side of the images that the model is to take. Position embeddings are interpolated
            if it is not what the file was trained with. By default that of ``like``, which must be the file's.

    Raises:
        FileExistsError: If ``directory`` exists.
        FileNotFoundError: If there is no such file, or a path was given as ``like`` and there is no model there.
        ValueError: If the file is not a state dict of a dense BLIP, ``like`` is no BLIP, the two differ in task or
            size, or the tokenizer does not fit.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{str(directory)!r} exists already; give a directory that does not")
    state = read(file)
    try:
        imported = Imported(directory, task_of(state), dropped=leftovers(state))
        weights = to_hugging_face(state)
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from error
    _refuse_compressed(file, weights)
    build, config = _architecture(file, like, imported.task)
    processor = _processor(like)
    imported.tensors = len(weights)
    temperature = state.get("temp")
    imported.temperature = temperature.item() if temperature is not None and temperature.numel() == 1 else None
    imported.notes += _configure(config, imported.task, weights)
    _check(f"{str(file)!r} does not fit --like {like!r}", _empty(build, config), weights)
    imported.notes += _fit_images(file, like, config, weights, image_size)
    imported.notes += _fit_processor(like, processor, config, imported.task)
    model = _empty(build, config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    save(model, processor, directory)
    return imported


def read(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file by name, mapped from the disk where the format allows; executes nothing.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, cannot be read, or holds anything else than a state dict.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(file)!r}; give a checkpoint, such as model_base_nlvr.pth")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(file)!r} is empty; copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on other ways to read it is for those who wrote it
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes that nobody vouches for fail in many ways
        raise ValueError(_why(str(file), error)) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        what = "an empty mapping" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(
            f"{str(file)!r} holds {what}; expected tensors by name, alone or under 'model' or 'state_dict'"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{str(file)!r} holds a {type(value).__name__} under {name!r}; expected tensors by name, alone or "
                "under 'model' or 'state_dict'"
            )
    return dict(content)


def _why(file: str, error: Exception) -> str:
    """One line on a file that cannot be read."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and found:
        return (
            f"{file!r} holds more than tensors: a {found[1]}, which was not executed; save the state dict alone "
            "(torch.save(model.state_dict(), ...)) where the file comes from"
        )
    return (
        f"{file!r} is no state dict that can be read without executing what is in it, and nothing was executed; give "
        "what torch.save(model.state_dict(), ...) wrote, and copy it again if it is that"
    )


def _refuse_compressed(file: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of which one layer is smaller than another."""
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in weights.items():
        shape = tuple(tensor.shape)
        other, expected = first.setdefault(re.sub(r"\.(layers?|blocks)\.\d+\.", r".\1.", name), (name, shape))
        if shape != expected:
            raise ValueError(
                f"{str(file)!r} is compressed, its sizes differ per layer: {salesforce_name(other)} is {expected}, "
                f"{salesforce_name(name)} is {shape}; only dense checkpoints can be imported so far"
            )


def _architecture(file: str | Path, like: str, task: Task) -> tuple[Callable[[Any], nn.Module], Any]:
    """The class of the model to write, and a copy of the configuration that ``like`` lends.

    Raises:
        ValueError: If ``like`` is no BLIP, or one of another task.
    """
    from upop.families.blip_nlvr import BlipForVisualReasoning, BlipNlvrConfig

    model = build_dense(like)
    name = type(model).__name__
    if name not in ARCHITECTURES:
        raise ValueError(
            f"--like {like!r} is a {name}, which is no BLIP; give a directory or hub name of a BLIP, such as "
            f"{EXAMPLES.get(task, EXAMPLES['vqa'])!r}"
        )
    config: Any = copy.deepcopy(model.config)
    if task == "nlvr":
        if name != BlipForVisualReasoning.__name__:
            config = BlipNlvrConfig(vision_config=config.vision_config, text_config=config.text_config)
        return BlipForVisualReasoning, config
    if ARCHITECTURES[name] != task:
        raise ValueError(
            f"{str(file)!r} is of {task}, --like {like!r} is a {name}, of {ARCHITECTURES[name]}; give one of {task}, "
            f"such as {EXAMPLES[task]!r}"
        )
    return type(model), config


def _processor(like: str) -> Any:  # noqa: ANN401 (any Hugging Face processor)
    """The processor of ``like``, with its tokenizer and image processor."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(like)
    except (OSError, ValueError) as error:
        raise ValueError(f"no processor at --like {like!r}: {str(error).strip().partition(chr(10))[0]}") from error


def _configure(config: Any, task: Task, weights: dict[str, Tensor]) -> list[str]:  # noqa: ANN401 (BLIP's)
    """Set what the weights show and what the authors trained with; say what was changed."""
    notes = []
    for part, settings in TRAINED.items():
        for key, value in settings.items():
            found = getattr(getattr(config, part), key)
            if found != value:
                notes.append(f"set {part}.{key} to {value} (was {found}), as it was trained")
                setattr(getattr(config, part), key, value)
    if task == "nlvr":
        merging = [int(found[1]) for name in weights if (found := re.search(r"\.(\d+)\..*merge_layer\.weight", name))]
        config.merge_from = min(merging, default=config.text_config.num_hidden_layers)
    notes += _untie(config, weights)
    for part in TRAINED:  # the one number that no weight shows, so the reader has to know it
        heads, width = getattr(config, part).num_attention_heads, getattr(config, part).hidden_size
        notes.append(f"{part} says {heads} heads of {width // heads}")
    return notes


def _untie(config: Any, weights: dict[str, Tensor]) -> list[str]:  # noqa: ANN401 (BLIP's)
    """Give the decoder an output layer of its own, where the file has one: usually it is the word embeddings."""
    head = "text_decoder.cls.predictions"
    words = weights.get("text_decoder.bert.embeddings.word_embeddings.weight")
    output, bias = weights.get(f"{head}.decoder.weight"), weights.get(f"{head}.bias")
    if words is None or output is None or bias is None or torch.equal(words, output):
        return []
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    weights[f"{head}.decoder.bias"] = bias.clone()  # one parameter of two names for the authors, two for Hugging Face
    return ["untied the decoder's output layer from its word embeddings, from which it differs"]


def _empty(build: Callable[[Any], nn.Module], config: Any) -> Any:  # noqa: ANN401 (a BLIP and its config)
    """The model without memory for its weights."""
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        model: Any = build(config)
    model.tie_weights()
    return model


def _check(what: str, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that do not fill ``model`` or that it has no place for; position embeddings may be of any length.

    Raises:
        ValueError: With the authors' names of the first that differ.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [
        f"{salesforce_name(name)} is {tuple(tensor.shape)} in the file, {own[name]} in the model"
        for name, tensor in weights.items()
        if name in own and tuple(tensor.shape) != own[name] and salesforce_name(name) != POSITIONS
    ]
    if wrong:
        more = f" and {len(wrong) - 2} more differ" if len(wrong) > 2 else ""
        raise ValueError(f"{what}: {'; '.join(wrong[:2])}{more}; give a --like of the same size")
    filled = {id(parameters[name]) for name in weights if name in parameters}
    missing = [salesforce_name(name) for name in own if name not in weights and id(parameters.get(name)) not in filled]
    unexpected = [salesforce_name(name) for name in weights if name not in own]
    if missing or unexpected:
        lacks = [f"the file lacks {some(missing)}"] if missing else []
        has = [f"the model has no place for {some(unexpected)}"] if unexpected else []
        raise ValueError(f"{what}: {' and '.join(lacks + has)}; give a --like of the same size, and a whole file")


def _fit_images(
    file: str | Path,
    like: str,
    config: Any,  # noqa: ANN401 (BLIP's)
    weights: dict[str, Tensor],
    image_size: int | None,
) -> list[str]:
    """Bring configuration and position embeddings to one image size; say what was changed.

    Raises:
        ValueError: If the sizes differ and none was asked for, or the one asked for is not a multiple of the patches.
    """
    vision = config.vision_config
    name = next(name for name in weights if salesforce_name(name) == POSITIONS)
    patches = weights[name].shape[1] - 1
    trained = math.isqrt(patches) * vision.patch_size
    if math.isqrt(patches) ** 2 != patches:
        raise ValueError(f"{str(file)!r}: {POSITIONS} is for {patches} patches, which are no square")
    if image_size is None and trained != vision.image_size:
        raise ValueError(
            f"{str(file)!r} is for images of {trained} pixels, --like {like!r} for {vision.image_size}; give "
            f"--image-size {trained} to take it as it is, or another to interpolate its position embeddings"
        )
    wanted = vision.image_size if image_size is None else image_size
    if wanted < vision.patch_size or wanted % vision.patch_size:
        raise ValueError(
            f"--image-size is {wanted}; give a multiple of the patches, which are {vision.patch_size} pixels"
        )
    vision.image_size = wanted
    if wanted == trained:
        return []
    weights[name] = interpolate_positions(weights[name], wanted // vision.patch_size)
    return [f"interpolated the position embeddings from {trained} to {wanted} pixels"]


def _fit_processor(like: str, processor: Any, config: Any, task: Task) -> list[str]:  # noqa: ANN401 (BLIP's)
    """Let the processor make images and texts as the checkpoint was trained with; say what was changed.

    Texts of VQA and NLVR always meet images and begin with ``[ENC]``. Those of retrieval begin with ``[CLS]`` when they
    are compared and with ``[ENC]`` when they are matched, which the task sees to. Captions stay as they are: their
    first token is the decoder's business.
    """
    side = config.vision_config.image_size
    processor.image_processor.size = {"height": side, "width": side}
    if task == "captioning":
        return []
    tokenizer = processor.tokenizer
    if not (tokenizer.cls_token and tokenizer.sep_token):
        raise ValueError(f"the tokenizer of --like {like!r} has no [CLS] and [SEP]; BLIP's is BERT's")
    tokenizer.add_tokens([DECODER, ENCODER], special_tokens=True)
    numbers = tokenizer.convert_tokens_to_ids([DECODER, ENCODER])
    words = config.text_config.vocab_size
    if numbers != [words - 2, words - 1]:
        raise ValueError(
            f"{DECODER} and {ENCODER} would be tokens {numbers[0]} and {numbers[1]} of the tokenizer of --like "
            f"{like!r}; the model expects {words - 2} and {words - 1}, so give a --like with the tokenizer of BERT"
        )
    tokenizer.bos_token = DECODER
    config.text_config.bos_token_id = numbers[0]
    if task == "retrieval":
        return [f"the tokenizer knows {DECODER} and {ENCODER}; texts begin with {tokenizer.cls_token}"]
    _begin_with(tokenizer, ENCODER)
    return [f"the tokenizer knows {DECODER} and {ENCODER}; texts begin with {ENCODER}"]


def _begin_with(tokenizer: Any, token: str) -> None:  # noqa: ANN401 (any fast tokenizer)
    """Make ``token`` the first of every text, also when the tokenizer has been saved and loaded again.

    BERT's tokenizer class makes its template of the class token when it is loaded, others load the template.
    """
    from tokenizers.processors import TemplateProcessing

    end = tokenizer.sep_token
    tokenizer.cls_token = token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token}:0 $A:0 {end}:0",
        pair=f"{token}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in (token, end)],
    )
