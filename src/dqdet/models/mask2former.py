"""Mask2Former: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import Mask2FormerConfig, QueriesConfig
from dqdet.models.detector import Detector
from dqdet.nn.attention import Attention
from dqdet.nn.encoder import FeedForward, flatten_maps
from dqdet.nn.mlp import MLP
from dqdet.nn.padding import resize_padding
from dqdet.nn.pixel_decoder import PixelDecoder, PixelFeatures
from dqdet.nn.position import sine_position
from dqdet.nn.product_masks import ProductMasks
from dqdet.queries import make_queries
from dqdet.types import Predictions, Queries, Sights, Target


@dataclass
class Level:
    """One level of the pixel decoder, as the transformer decoder reads it: S cells (video: of all frames)."""

    keys: Tensor  # [B, S, c], with positions
    values: Tensor  # [B, S, c]
    padding: Tensor  # [B, S] bool
    mask_features: Tensor  # [B, d, S], without gradient

    def attention_bias(self, mask_embeddings: Tensor) -> Tensor:
        """Keeps each query to the foreground of the mask that it predicts (Eq. 2 and 3 of the paper).

        A query whose mask is empty here sees the whole image.

        Args:
            mask_embeddings: ``[B, Q, d]``.

        Returns:
            ``[B, 1, Q, S]``, added to the attention's logits: 0, or minus infinity in the background.
        """
        logits = mask_embeddings.detach() @ self.mask_features  # [B, Q, S]
        background = (logits < 0) | self.padding[:, None]
        seen = ~background | (background.all(-1, keepdim=True) & ~self.padding[:, None])
        return torch.zeros_like(logits).masked_fill(~seen, -torch.inf)[:, None]


class Mask2FormerDecoderLayer(nn.Module):
    """Queries read the foreground of their masks, then see each other."""

    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.cross_attn = Attention(hidden, heads, dropout)
        self.norm1 = nn.LayerNorm(hidden)
        self.self_attn = Attention(hidden, heads, dropout)
        self.norm2 = nn.LayerNorm(hidden)
        self.feedforward = FeedForward(hidden, feedforward, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, level: Level, bias: Tensor, groups: Sights) -> Tensor:
        """One layer: ``[B, Q, c]``.

        Args:
            x: content ``[B, Q, c]``; position: ``[B, Q, c]``.
            level: what is read.
            bias: of the attention to it, ``[B, 1, Q, S]``.
            groups: of the queries.
        """
        read = self.cross_attn(x + position, level.keys, level.values, bias=bias)
        x = self.norm1(x + self.dropout(read))
        query = x + position
        x = self.norm2(x + self.dropout(self.self_attn(query, query, x, groups=groups)))
        return self.feedforward(x)


class Mask2Former(Detector):
    """Mask2Former. A query has a content, which predicts classes and masks before the first layer too, and a position.

    A mask's logits are the product of an embedding of the query and the mask features of the image. Resizing is
    linear, so the masks that steer the attention are made from resized mask features, never resized themselves.

    Args:
        config: sizes.
        queries: source of the queries.
        num_classes: C; the class head has one output more, for "no object".
        channels: of the feature maps at strides 4, 8, 16 and 32.
    """

    strides = (4, 8, 16, 32)
    divisor = 32  # SIZE_DIVISIBILITY of the published models

    def __init__(self, config: Mask2FormerConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__()
        hidden, heads, dropout = config.hidden, config.heads, config.dropout
        mask_channels = config.mask_channels or hidden
        self.see_padding = config.see_padding
        self.pixel_decoder = PixelDecoder(
            hidden,
            heads,
            config.encoder_feedforward,
            dropout,
            config.points,
            config.encoder_layers,
            channels,
            mask_channels,
        )
        self.level_embed = nn.Parameter(torch.randn(len(channels) - 1, hidden))
        self.decoder = nn.ModuleList(
            Mask2FormerDecoderLayer(hidden, heads, config.feedforward, dropout) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.class_head = nn.Linear(hidden, num_classes + config.no_object)
        self.mask_head = MLP(hidden, hidden, hidden, mask_channels)
        self.queries = make_queries(
            queries, {"content": hidden, "position": hidden}, backbone=channels[-1], hidden=hidden
        )

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        pixels = self.pixels(features, padding)
        contexts = {"backbone": features[-1], "projected": pixels.projected, "memory": pixels.maps[0]}
        # Whatever the pixel decoder sees: what is padding is no part of the image.
        queries = self.queries(contexts[self.queries.context], resize_padding(padding, features[-1]))
        return self.decode(queries, self.levels(pixels), pixels.mask_features)

    def pixels(self, features: list[Tensor], padding: Tensor) -> PixelFeatures:
        """What the pixel decoder makes of ``features``, ``[B, C, h, w]``, with ``padding [B, H, W]``."""
        return self.pixel_decoder(features, torch.zeros_like(padding) if self.see_padding else padding)

    def levels(self, pixels: PixelFeatures) -> list[Level]:
        """The maps of the pixel decoder in the order in which the layers cycle over them, coarsest first."""
        mask_features = pixels.mask_features.detach()
        levels = []
        for feature, padding, embed in zip(pixels.maps, pixels.paddings, self.level_embed, strict=True):
            values = flatten_maps([feature]) + embed  # [B, S, c]
            position = sine_position(padding, values.shape[-1]).flatten(1, 2)  # [B, S, c]
            masks = F.interpolate(mask_features, size=feature.shape[2:], mode="bilinear")  # [B, d, h, w]
            levels.append(Level(values + position.to(values), values, padding.flatten(1), masks.flatten(2)))
        return levels

    def decode(self, queries: Queries, levels: list[Level], mask_features: Tensor) -> Predictions:
        """The predictions of the queries themselves, and of what each layer makes of them.

        Args:
            queries: content and position, ``[B, Q, c]``.
            levels: read by the layers in turn.
            mask_features: of the predictions, ``[B, d, h, w]`` (video: ``[B, T, d, h, w]``).
        """
        x = queries["content"]  # [B, Q, c]
        outputs = [self.norm(x)]
        embeddings = [self.mask_head(outputs[0])]
        for i, layer in enumerate(self.decoder):
            level = levels[i % len(levels)]
            bias = level.attention_bias(embeddings[-1])
            x = layer(x, queries["position"], level, bias, queries.seen)
            outputs.append(self.norm(x))
            embeddings.append(self.mask_head(outputs[-1]))
        return Predictions(
            logits=self.class_head(torch.stack(outputs)),
            boxes=None,
            groups=queries.groups,
            masks=ProductMasks(torch.stack(embeddings), mask_features),
            coefficients=queries.coefficients,
        )
