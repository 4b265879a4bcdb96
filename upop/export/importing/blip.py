"""A BLIP with its authors' names: what its file says, and what has to be set for it to be the model that was trained.

Compressed files of UPop's authors have the names of the dense ones. Their code attends, in the retraining and in the
evaluation, at the scale of the cut head size in the text towers and of the dense one in the vision tower, which stores
its scale. It gives every cut ``qkv`` layer of the vision tower a new bias (it sets ``weight.bias`` where it means
``bias``): the file holds that one, of the cut size, as the retraining has learned it, so it is taken like any other.

Source: models/vit.py, med.py, nlvr_encoder.py, blip.py, blip_vqa.py, blip_retrieval.py and blip_nlvr.py of
https://github.com/sdc17/UPop. The layout of compressed files is what this code saves; no released file was at hand.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upop.families import build_dense
from upop.families.salesforce import Task, leftovers, salesforce_name, task_of, to_hugging_face
from upop.structure import Site

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


class Blip:
    """A checkpoint of a BLIP.

    Args:
        file: Its path, for messages.
        state: What it holds.

    Attributes:
        task: Task of the checkpoint.
        weights: Weights by the names of the model to write.
        dropped: Names of what is left behind.
        temperature: Temperature of the similarities that was trained with them, where the file holds one.
        positions: Name of the position embeddings of the vision tower, which differ with the image size.

    Raises:
        ValueError: If it is of no task that is known.
    """

    def __init__(self, file: str, state: dict[str, Tensor]) -> None:
        self.file = file
        self.task: Task = task_of(state)
        self.weights = to_hugging_face(state)
        self.dropped = leftovers(state)
        temperature = state.get("temp")
        self.temperature = temperature.item() if temperature is not None and temperature.numel() == 1 else None
        self.positions = next((name for name in self.weights if self.named(name) == POSITIONS), "")

    @staticmethod
    def named(name: str) -> str:
        """The name that a weight has in the file."""
        return salesforce_name(name)

    def architecture(self, like: str) -> tuple[Callable[[Any], nn.Module], Any]:
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
                f"{EXAMPLES.get(self.task, EXAMPLES['vqa'])!r}"
            )
        config: Any = copy.deepcopy(model.config)
        if self.task == "nlvr":
            if name != BlipForVisualReasoning.__name__:
                config = BlipNlvrConfig(vision_config=config.vision_config, text_config=config.text_config)
            return BlipForVisualReasoning, config
        if ARCHITECTURES[name] != self.task:
            raise ValueError(
                f"{self.file!r} is of {self.task}, --like {like!r} is a {name}, of {ARCHITECTURES[name]}; give one of "
                f"{self.task}, such as {EXAMPLES[self.task]!r}"
            )
        return type(model), config

    def configure(self, like: str, config: Any) -> list[str]:  # noqa: ANN401 (BLIP's)
        """Set what the weights show and what the authors trained with; say what was changed."""
        notes = []
        for part, settings in TRAINED.items():
            for key, value in settings.items():
                found = getattr(getattr(config, part), key)
                if found != value:
                    notes.append(f"set {part}.{key} to {value} (was {found}), as it was trained")
                    setattr(getattr(config, part), key, value)
        if self.task == "nlvr":
            layers = [re.search(r"\.(\d+)\..*merge_layer\.weight", name) for name in self.weights]
            merging = [int(found[1]) for found in layers if found]
            config.merge_from = min(merging, default=config.text_config.num_hidden_layers)
        notes += self._untie(config)
        for part in TRAINED:  # the one number that no weight shows, so the reader has to know it
            heads, width = getattr(config, part).num_attention_heads, getattr(config, part).hidden_size
            notes.append(f"{part} says {heads} heads of {width // heads}")
        return notes

    def _untie(self, config: Any) -> list[str]:  # noqa: ANN401 (BLIP's)
        """Give the decoder an output layer of its own, where the file has one: usually it is the word embeddings."""
        head = "text_decoder.cls.predictions"
        words = self.weights.get("text_decoder.bert.embeddings.word_embeddings.weight")
        output, bias = self.weights.get(f"{head}.decoder.weight"), self.weights.get(f"{head}.bias")
        if words is None or output is None or bias is None or torch.equal(words, output):
            return []
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
        self.weights[f"{head}.decoder.bias"] = bias.clone()  # one parameter of two names for the authors, two for HF
        return ["untied the decoder's output layer from its word embeddings, from which it differs"]

    def fit_processor(self, like: str, processor: Any, config: Any) -> list[str]:  # noqa: ANN401 (BLIP's)
        """Let the processor make images and texts as the checkpoint was trained with; say what was changed.

        Texts of VQA and NLVR always meet images and begin with ``[ENC]``. Those of retrieval begin with ``[CLS]`` when
        they are compared and with ``[ENC]`` when they are matched, which the task sees to. Captions stay as they are:
        their first token is the decoder's business.

        Raises:
            ValueError: If the tokenizer is not BERT's.
        """
        side = config.vision_config.image_size
        processor.image_processor.size = {"height": side, "width": side}
        if self.task == "captioning":
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
        if self.task == "retrieval":
            return [f"the tokenizer knows {DECODER} and {ENCODER}; texts begin with {tokenizer.cls_token}"]
        _begin_with(tokenizer, ENCODER)
        return [f"the tokenizer knows {DECODER} and {ENCODER}; texts begin with {ENCODER}"]

    @staticmethod
    def at_cut_scale(sites: Sequence[Site]) -> list[Site]:
        """The sites whose attention the authors' code runs at the scale of the cut head size: those of the texts."""
        return [site for site in sites if site.modality != "vision"]

    @staticmethod
    def cut_notes(cut: Sequence[Site]) -> list[str]:
        """What a reader should know of a model in which these sites are cut."""
        if not any(site.kind == "head_dim" and site.modality == "vision" for site in cut):
            return []
        return ["the vision tower's qkv biases are the file's: the authors' cut draws new ones, which were retrained"]


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
