"""BLIP for visual reasoning: is a statement about two images true? Transformers has no such model.

One vision tower sees both images. Each layer of the text encoder looks at them through two cross-attentions, one per
image, each with projections of its own; their outputs are averaged in the first layers and merged by a linear layer
in the later ones. A head on the first token answers.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, section 4.5 and figure 5. The authors' code uses
the merge layers' outputs without an activation, as here. Parameters are named as in the authors' checkpoints, so that
these load without renaming. Attention keeps the scale of the dense head size when it is cut (in the authors' code the
text encoder's changes with the size). This file needs nothing but torch and transformers.

Shapes: ``B`` statements, ``L`` tokens of a statement, ``N`` tokens of an image (its patches and one more), ``S`` pixels
along a side, ``V``/``W`` width of the vision tower and of the text encoder, ``H`` heads, ``P`` head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipTextConfig, BlipVisionConfig, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput

IMAGES = 2
"""Images that a statement is about."""


class BlipNlvrConfig(PretrainedConfig):
    """Sizes of a :class:`BlipForVisualReasoning`. The defaults are those of the authors' ViT-B model at 384 pixels.

    Args:
        vision_config: A ``BlipVisionConfig`` or its arguments. Where they do not say, ``layer_norm_eps`` is 1e-6.
        text_config: A ``BlipTextConfig`` or its arguments. Where they do not say, there are 12 heads, and both dropouts
            are 0.1.
        merge_from: Number of the first text layer that merges the two images by a linear layer, from 0; the layers
            before average them. By default the second half merges.
        drop_path: Probability at which a sample skips the last vision block in training; it grows linearly from 0 at
            the first.
        initializer_range: Standard deviation of new weights.

    Raises:
        ValueError: If ``merge_from`` counts past the layers, or a width is no multiple of its heads.
    """

    model_type = "blip_nlvr"
    sub_configs = {"text_config": BlipTextConfig, "vision_config": BlipVisionConfig}  # noqa: RUF012 (as transformers)

    vision_config: Any = None
    text_config: Any = None
    merge_from: int | None = None
    drop_path: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:  # noqa: ANN401 (as transformers)
        """Make configs of mappings, fill in what was not said, and check the whole."""
        if not isinstance(self.vision_config, PretrainedConfig):
            self.vision_config = BlipVisionConfig(**{"layer_norm_eps": 1e-6, **(self.vision_config or {})})
        if not isinstance(self.text_config, PretrainedConfig):
            usual = {"num_attention_heads": 12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
            self.text_config = BlipTextConfig(**{**usual, **(self.text_config or {})})
        self.text_config.encoder_hidden_size = self.vision_config.hidden_size
        layers = self.text_config.num_hidden_layers
        if self.merge_from is None:
            self.merge_from = layers // 2
        if not 0 <= self.merge_from <= layers:
            raise ValueError(f"merge_from is {self.merge_from!r}; the text encoder has layers 0 to {layers - 1}")
        for name, part in (("vision_config", self.vision_config), ("text_config", self.text_config)):
            if part.hidden_size % part.num_attention_heads:
                raise ValueError(
                    f"{name} has {part.num_attention_heads} heads for a width of {part.hidden_size}; the width has to "
                    "be a multiple of the heads"
                )
        super().__post_init__(**kwargs)


class DropPath(nn.Module):
    """Leave a residual branch out for whole samples at random, and scale up what stays; only in training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """Drop rows of ``branch (B, ...)``."""
        if not self.training or self.probability == 0.0:
            return branch
        kept = 1.0 - self.probability
        mask = branch.new_empty([len(branch)] + [1] * (branch.dim() - 1)).bernoulli_(kept)
        return branch * mask / kept


class VisionAttention(nn.Module):
    """Self-attention with fused projections; the scale is the dense head size's, whatever the size is now."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scale = self.head_dim**-0.5
        self.dropout = float(config.attention_dropout)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Attend: ``(B, N, V)`` to ``(B, N, V)``."""
        fused = self.qkv(states).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, P)
        queries, keys, values = fused.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, P) each
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropped, scale=self.scale)
        output: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output


class Mlp(nn.Module):
    """The two-layer MLP of a vision block."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Transform each token: ``(B, N, V)`` to ``(B, N, V)``."""
        output: Tensor = self.fc2(self.act(self.fc1(states)))
        return output


class BlipNlvrVisionBlock(GradientCheckpointingLayer):
    """One block of the vision tower: norms before the branches."""

    def __init__(self, config: BlipVisionConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VisionAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, states: Tensor) -> Tensor:
        """``(B, N, V)`` to ``(B, N, V)``."""
        states = states + self.drop_path(self.attn(self.norm1(states)))
        return states + self.drop_path(self.mlp(self.norm2(states)))


class PatchEmbed(nn.Module):
    """Patches of an image as tokens."""

    def __init__(self, config: BlipVisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``(B, 3, S, S)`` to ``(B, N - 1, V)``."""
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


class VisionTower(nn.Module):
    """ViT over one image."""

    def __init__(self, config: BlipVisionConfig, drop_path: float) -> None:
        super().__init__()
        width, layers = config.hidden_size, config.num_hidden_layers
        patches = (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.patch_embed = PatchEmbed(config)
        rates = [drop_path * layer / max(layers - 1, 1) for layer in range(layers)]
        self.blocks = nn.ModuleList([BlipNlvrVisionBlock(config, rate) for rate in rates])
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images ``(B, 3, S, S)`` to states ``(B, N, V)``."""
        patches = self.patch_embed(pixel_values)
        states = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            states = block(states)
        output: Tensor = self.norm(states)
        return output


class TextEmbeddings(nn.Module):
    """Words and their positions."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Tokens ``(B, L)`` to states ``(B, L, W)``."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        output: Tensor = self.dropout(self.LayerNorm(states))
        return output


class TextAttention(nn.Module):
    """Attention of text to itself or to an image, without its output layer; the scale is the dense head size's."""

    def __init__(self, config: BlipTextConfig, key_width: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = width // config.num_attention_heads
        self.scale = self.head_dim**-0.5
        self.dropout = float(config.attention_probs_dropout_prob)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)

    def forward(self, states: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend to other states.

        Args:
            states: What attends, ``(B, L, W)``.
            others: What it attends to, ``(B, K, key width)``.
            mask: True where it may, broadcastable to ``(B, H, L, K)``.

        Returns:
            Mixed values, ``(B, L, H * P)``.
        """
        heads = (self.num_heads, self.head_dim)
        queries = self.query(states).unflatten(-1, heads).transpose(1, 2)  # (B, H, L, P)
        keys = self.key(others).unflatten(-1, heads).transpose(1, 2)  # (B, H, K, P)
        values = self.value(others).unflatten(-1, heads).transpose(1, 2)
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, mask, dropped, scale=self.scale)
        return mixed.transpose(1, 2).flatten(2)


class TextOutput(nn.Module):
    """Output layer of a branch of the text encoder; the norm stands after the sum."""

    def __init__(self, config: BlipTextConfig, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, branch: Tensor, states: Tensor) -> Tensor:
        """Add what ``branch (B, L, inputs)`` says to ``states (B, L, W)``."""
        output: Tensor = self.LayerNorm(self.dropout(self.dense(branch)) + states)
        return output


class SelfAttention(nn.Module):
    """Attention of the text to itself."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.self = TextAttention(config, config.hidden_size)
        self.output = TextOutput(config, config.hidden_size)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """``(B, L, W)`` to ``(B, L, W)``."""
        output: Tensor = self.output(self.self(states, states, mask), states)
        return output


class TwinOutput(nn.Module):
    """Output layers of the two cross-attentions, averaged or merged by a linear layer."""

    def __init__(self, config: BlipTextConfig, merge: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.merge_layer = nn.Linear(2 * width, width) if merge else None

    def forward(self, branch0: Tensor, branch1: Tensor, states: Tensor) -> Tensor:
        """Add what ``branch0`` and ``branch1``, ``(B, L, H * P)`` each, say to ``states (B, L, W)``."""
        first, second = self.dense0(branch0), self.dense1(branch1)
        if self.merge_layer is None:
            joined = (first + second) / 2
        else:
            joined = self.merge_layer(torch.cat([first, second], dim=-1))
        output: Tensor = self.LayerNorm(self.dropout(joined) + states)
        return output


class CrossAttention(nn.Module):
    """Attention of the text to two images."""

    def __init__(self, config: BlipTextConfig, merge: bool) -> None:
        super().__init__()
        self.self0 = TextAttention(config, config.encoder_hidden_size)
        self.self1 = TextAttention(config, config.encoder_hidden_size)
        self.output = TwinOutput(config, merge)

    def forward(self, states: Tensor, image0: Tensor, image1: Tensor) -> Tensor:
        """Text ``(B, L, W)`` and images ``(B, N, V)`` to text ``(B, L, W)``."""
        output: Tensor = self.output(self.self0(states, image0), self.self1(states, image1), states)
        return output


class Intermediate(nn.Module):
    """First layer of a text layer's MLP."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        """``(B, L, W)`` to ``(B, L, neurons)``."""
        output: Tensor = self.act(self.dense(states))
        return output


class BlipNlvrTextLayer(GradientCheckpointingLayer):
    """One layer of the text encoder: itself, both images, MLP."""

    def __init__(self, config: BlipTextConfig, merge: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.crossattention = CrossAttention(config, merge)
        self.intermediate = Intermediate(config)
        self.output = TextOutput(config, config.intermediate_size)

    def forward(self, states: Tensor, image0: Tensor, image1: Tensor, mask: Tensor | None) -> Tensor:
        """Text ``(B, L, W)``, images ``(B, N, V)`` and the text's mask to text ``(B, L, W)``."""
        states = self.attention(states, mask)
        states = self.crossattention(states, image0, image1)
        output: Tensor = self.output(self.intermediate(states), states)
        return output


class TextLayers(nn.Module):
    """The stack of text layers; the authors' names ask for a module of its own."""

    def __init__(self, config: BlipNlvrConfig) -> None:
        super().__init__()
        text = config.text_config
        merges = [number >= (config.merge_from or 0) for number in range(text.num_hidden_layers)]
        self.layer = nn.ModuleList([BlipNlvrTextLayer(text, merge) for merge in merges])

    def forward(self, states: Tensor, image0: Tensor, image1: Tensor, mask: Tensor | None) -> Tensor:
        """As one layer, all of them."""
        for layer in self.layer:
            states = layer(states, image0, image1, mask)
        return states


class TextEncoder(nn.Module):
    """The statement, read while looking at both images."""

    def __init__(self, config: BlipNlvrConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config.text_config)
        self.encoder = TextLayers(config)

    def forward(self, input_ids: Tensor, image0: Tensor, image1: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Tokens ``(B, L)`` and images ``(B, N, V)`` to states ``(B, L, W)``."""
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()  # (B, 1, 1, L)
        output: Tensor = self.encoder(self.embeddings(input_ids), image0, image1, mask)
        return output


class BlipForVisualReasoning(PreTrainedModel):
    """Decides whether a statement about two images is true.

    Args:
        config: Its sizes.
    """

    config_class = BlipNlvrConfig
    base_model_prefix = "blip_nlvr"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["BlipNlvrVisionBlock", "BlipNlvrTextLayer"]  # noqa: RUF012 (as transformers)

    def __init__(self, config: BlipNlvrConfig) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.visual_encoder = VisionTower(config.vision_config, config.drop_path)
        self.text_encoder = TextEncoder(config)
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionTower):
            init.trunc_normal_(module.pos_embed, std=self.config.initializer_range)
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embeddings of the words."""
        return self.text_encoder.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put others in their place."""
        self.text_encoder.embeddings.word_embeddings = value

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Judge statements.

        Args:
            pixel_values: Two images a statement, ``(B, 2, 3, S, S)``.
            input_ids: The statements, ``(B, L)``; the authors' checkpoints expect ``[ENC]`` as the first token.
            attention_mask: 1 where a token counts, ``(B, L)``; by default all do.

        Returns:
            ``logits (B, 2)``: class 0 says false, class 1 true.

        Raises:
            ValueError: If the images are not two, or not of the size that the model is for, or a statement is too long.
        """
        self._check(pixel_values, input_ids)
        states = self.visual_encoder(pixel_values.flatten(0, 1))  # (B * 2, N, V)
        image0, image1 = states.unflatten(0, (-1, IMAGES)).unbind(1)  # (B, N, V) each
        text = self.text_encoder(input_ids, image0, image1, attention_mask)  # (B, L, W)
        return SequenceClassifierOutput(logits=self.cls_head(text[:, 0]))

    def _check(self, pixel_values: Tensor, input_ids: Tensor) -> None:
        """Refuse inputs of other sizes by name, before a layer stumbles over them."""
        side = self.config.vision_config.image_size
        if tuple(pixel_values.shape[1:]) != (IMAGES, 3, side, side):
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, {IMAGES}, 3, {side}, {side})"
            )
        length = self.config.text_config.max_position_embeddings
        if input_ids.shape[1] > length:
            raise ValueError(f"input_ids has {input_ids.shape[1]} tokens a statement; the model has {length} positions")
