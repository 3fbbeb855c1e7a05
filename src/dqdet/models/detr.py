"""DETR: Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dqdet.config import DetrConfig, QueriesConfig
from dqdet.models.detector import Detector
from dqdet.nn.attention import Attention
from dqdet.nn.encoder import DenseEncoder, DenseMemory, FeedForward
from dqdet.nn.heads import in_float32
from dqdet.nn.mlp import MLP
from dqdet.nn.padding import resize_padding
from dqdet.queries import make_queries
from dqdet.types import Predictions, Sights, Target


class DetrDecoderLayer(nn.Module):
    """Queries see each other, then the memory. Positions enter queries and keys, never values."""

    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = Attention(hidden, heads, dropout)
        self.norm1 = nn.LayerNorm(hidden)
        self.cross_attn = Attention(hidden, heads, dropout)
        self.norm2 = nn.LayerNorm(hidden)
        self.feedforward = FeedForward(hidden, feedforward, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, keys: Tensor, memory: DenseMemory, groups: Sights) -> Tensor:
        """One layer: ``[B, Q, c]``.

        Args:
            x: content ``[B, Q, c]``; position: ``[B, Q, c]``.
            keys: the memory's tokens with their positions, ``[B, S, c]``.
            memory: what is read.
            groups: of the queries.
        """
        query = x + position
        x = self.norm1(x + self.dropout(self.self_attn(query, query, x, groups=groups)))
        read = self.cross_attn(x + position, keys, memory.tokens, padding=memory.padding)
        return self.feedforward(self.norm2(x + self.dropout(read)))


class Detr(Detector):
    """DETR. Its queries are positions; the content starts at zero.

    Args:
        config: sizes.
        queries: source of the queries.
        num_classes: C; the class head has one output more, for "no object".
        channels: of the one feature map, at stride 32.
    """

    strides = (32,)

    def __init__(self, config: DetrConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__()
        hidden = config.hidden
        layer = (hidden, config.heads, config.feedforward, config.dropout)
        self.input_proj = nn.Conv2d(channels[-1], hidden, 1)
        self.encoder = DenseEncoder(*layer, depth=config.encoder_layers)
        self.decoder = nn.ModuleList(DetrDecoderLayer(*layer) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(hidden)
        self.class_head = nn.Linear(hidden, num_classes + config.no_object)
        self.box_head = MLP(hidden, hidden, hidden, 4)
        self.queries = make_queries(queries, {"position": hidden}, backbone=channels[-1], hidden=hidden)

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        feature = features[-1]  # [B, C, h, w]
        padding = resize_padding(padding, feature)  # [B, h, w]
        projected = self.input_proj(feature)  # [B, c, h, w]
        memory = self.encoder(projected, padding)
        contexts = {"backbone": feature, "projected": projected, "memory": memory.map}
        queries = self.queries(contexts[self.queries.context], padding)

        keys = memory.tokens + memory.position
        x = torch.zeros_like(queries["position"])  # [B, Q, c]
        outputs = []
        for layer in self.decoder:
            x = layer(x, queries["position"], keys, memory, queries.seen)
            outputs.append(x)
        decoded = self.norm(torch.stack(outputs))  # [L, B, Q, c]
        return Predictions(
            logits=self.class_head(decoded),
            boxes=in_float32(self.box_head, decoded).sigmoid(),
            groups=queries.groups,
            coefficients=queries.coefficients,
        )
