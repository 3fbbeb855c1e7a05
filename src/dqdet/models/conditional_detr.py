"""Conditional-DETR: Meng et al., "Conditional DETR for Fast Training Convergence", ICCV 2021."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dqdet.config import ConditionalDetrConfig, QueriesConfig
from dqdet.models.detector import Detector
from dqdet.nn.attention import attend
from dqdet.nn.boxes import boxes_around, inverse_sigmoid
from dqdet.nn.encoder import Activation, DenseEncoder, DenseMemory, FeedForward
from dqdet.nn.heads import box_head, class_head, in_float32
from dqdet.nn.init import xavier_
from dqdet.nn.mlp import MLP
from dqdet.nn.padding import resize_padding
from dqdet.nn.position import sine_embedding
from dqdet.queries import make_queries
from dqdet.types import Predictions, Sights, Target


class ConditionalSelfAttention(nn.Module):
    """Queries see each other; content and position have projections of their own, which are added."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.content_proj = xavier_(nn.Linear(hidden, 3 * hidden), parts=3)  # to queries, keys and values
        self.position_proj = xavier_(nn.Linear(hidden, 2 * hidden), parts=2)  # to queries and keys
        self.out_proj = xavier_(nn.Linear(hidden, hidden))
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, groups: Sights) -> Tensor:
        """``x`` and ``position [B, Q, c]`` -> ``[B, Q, c]``."""
        query, key, value = self.content_proj(x).chunk(3, -1)
        query_position, key_position = self.position_proj(position).chunk(2, -1)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query + query_position, key + key_position, value, self.heads, groups=groups, dropout=dropout)
        return self.out_proj(mixed)


class ConditionalCrossAttention(nn.Module):
    """Queries read the memory (section 3.3 of the paper).

    In every head a query is the concatenation of its content and a spatial part, and so is a key: the attention is
    the sum of a match by content and a match by place. The first layer, which knows no content yet, also adds the
    positions to the content of both.
    """

    def __init__(self, hidden: int, heads: int, dropout: float, first: bool):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_proj = xavier_(nn.Linear(hidden, hidden))
        self.query_position_proj = xavier_(nn.Linear(hidden, hidden)) if first else None
        self.spatial_query_proj = xavier_(nn.Linear(hidden, hidden))
        self.memory_proj = xavier_(nn.Linear(hidden, 2 * hidden), parts=2)  # to keys and values
        self.spatial_key_proj = xavier_(nn.Linear(hidden, hidden))
        self.out_proj = xavier_(nn.Linear(hidden, hidden))
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, spatial: Tensor, memory: DenseMemory) -> Tensor:
        """``x``, ``position`` and the spatial query, ``[B, Q, c]`` each -> ``[B, Q, c]``."""
        query, spatial_query = self.query_proj(x), self.spatial_query_proj(spatial)  # [B, Q, c]
        key, value = self.memory_proj(memory.tokens).chunk(2, -1)  # [B, S, c]
        spatial_key = self.spatial_key_proj(memory.position)  # [B, S, c]
        if self.query_position_proj is not None:
            query = query + self.query_position_proj(position)
            key = key + spatial_key
        query = join_heads(query, spatial_query, self.heads)  # [B, Q, 2c]
        key = join_heads(key, spatial_key, self.heads)  # [B, S, 2c]
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(query, key, value, self.heads, padding=memory.padding, dropout=dropout))


def join_heads(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """Concatenate the channels of each head: ``[B, N, c], [B, N, d] -> [B, N, c + d]``."""
    return torch.cat([a.unflatten(-1, (heads, -1)), b.unflatten(-1, (heads, -1))], -1).flatten(-2)


class ConditionalDecoderLayer(nn.Module):
    """Queries see each other, then read the memory by content and by place. DAB-DETR has the same layer."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        feedforward: int,
        dropout: float,
        first: bool,
        activation: Activation = nn.ReLU,
    ):
        super().__init__()
        self.self_attn = ConditionalSelfAttention(hidden, heads, dropout)
        self.norm1 = nn.LayerNorm(hidden)
        self.cross_attn = ConditionalCrossAttention(hidden, heads, dropout, first)
        self.norm2 = nn.LayerNorm(hidden)
        self.feedforward = FeedForward(hidden, feedforward, dropout, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, spatial: Tensor, memory: DenseMemory, groups: Sights) -> Tensor:
        """``x``, ``position`` and the spatial query, ``[B, Q, c]`` each -> ``[B, Q, c]``."""
        x = self.norm1(x + self.dropout(self.self_attn(x, position, groups)))
        x = self.norm2(x + self.dropout(self.cross_attn(x, position, spatial, memory)))
        return self.feedforward(x)


class ConditionalDetr(Detector):
    """Conditional-DETR. A query is a position, from which a reference point follows; the content starts at zero.

    Args:
        config: sizes.
        queries: source of the queries.
        num_classes: C.
        channels: of the one feature map, at stride 32.
    """

    strides = (32,)

    def __init__(
        self, config: ConditionalDetrConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]
    ):
        super().__init__()
        hidden = config.hidden
        layer = (hidden, config.heads, config.feedforward, config.dropout)
        self.input_proj = nn.Conv2d(channels[-1], hidden, 1)
        self.encoder = DenseEncoder(*layer, depth=config.encoder_layers)
        self.decoder = nn.ModuleList(
            ConditionalDecoderLayer(*layer, first=i == 0) for i in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.reference_head = xavier_(MLP(hidden, hidden, 2))
        self.spatial_scale = xavier_(MLP(hidden, hidden, hidden))
        self.spatial_scale.requires_grad_(config.decoder_layers > 1)  # the first layer does not read it
        self.class_head = class_head(hidden, num_classes)
        self.box_head = box_head(hidden)
        self.queries = make_queries(queries, {"position": hidden}, backbone=channels[-1], hidden=hidden)

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        feature = features[-1]  # [B, C, h, w]
        padding = resize_padding(padding, feature)  # [B, h, w]
        projected = self.input_proj(feature)  # [B, c, h, w]
        memory = self.encoder(projected, padding)
        contexts = {"backbone": feature, "projected": projected, "memory": memory.map}
        queries = self.queries(contexts[self.queries.context], padding)

        position = queries["position"]  # [B, Q, c]
        reference = in_float32(self.reference_head, position).sigmoid()  # [B, Q, 2]
        sine = sine_embedding(reference.flip(-1), position.shape[-1] // 2)  # [B, Q, c], y before x as in the keys
        sine = sine.to(position)
        x = torch.zeros_like(position)
        outputs = []
        for i, layer in enumerate(self.decoder):
            # Eq. 4: where to look from the reference point, how far and in which direction from the content.
            spatial = sine if i == 0 else sine * self.spatial_scale(x)  # [B, Q, c]
            x = layer(x, position, spatial, memory, queries.seen)
            outputs.append(x)
        decoded = self.norm(torch.stack(outputs))  # [L, B, Q, c]
        return Predictions(
            logits=self.class_head(decoded),
            boxes=boxes_around(inverse_sigmoid(reference), in_float32(self.box_head, decoded)),
            groups=queries.groups,
            coefficients=queries.coefficients,
        )
