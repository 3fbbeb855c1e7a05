"""SMCA-DETR: Gao et al., "Fast Convergence of DETR with Spatially Modulated Co-Attention", ICCV 2021.

With one feature map, a centre of its own for every head, and a width and a height for every head that are
predicted from the query (the published dynamic scale of type 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dqdet.config import QueriesConfig, SmcaDetrConfig
from dqdet.models.detector import Detector
from dqdet.nn.attention import Attention
from dqdet.nn.boxes import boxes_around
from dqdet.nn.encoder import DenseEncoder, DenseMemory, FeedForward
from dqdet.nn.heads import class_head, in_float32
from dqdet.nn.init import xavier_
from dqdet.nn.mlp import MLP
from dqdet.nn.padding import resize_padding, valid_sizes
from dqdet.queries import make_queries
from dqdet.types import Predictions, Sights, Target

BANDWIDTH = 8.0  # beta of the paper's Eq. 3
STRIDE = 32


def log_gaussian(centre: Tensor, scale: Tensor, shape: tuple[int, int]) -> Tensor:
    """Logarithm of the Gaussian-like maps that modulate the attention (Eq. 3 of the paper).

    Args:
        centre: ``[..., 2]`` x and y, in cells; the first cell is at 0.
        scale: ``[..., 2]``, the inverse widths of the maps along x and y.
        shape: height and width of the maps.

    Returns:
        ``[..., height * width]``.
    """
    height, width = shape
    column = torch.arange(width, device=centre.device)
    row = torch.arange(height, device=centre.device)
    along_x = (scale[..., :1] * (centre[..., :1] - column)).square()  # [..., width]
    along_y = (scale[..., 1:] * (centre[..., 1:] - row)).square()  # [..., height]
    return -(along_y[..., :, None] + along_x[..., None, :]).flatten(-2) / BANDWIDTH


class SmcaDecoderLayer(nn.Module):
    """Queries see each other, then the memory around their centres."""

    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.spatial_norm = nn.LayerNorm(hidden)
        self.offset_head = xavier_(nn.Linear(hidden, heads * 2))
        self.scale_head = nn.Linear(hidden, heads * 2)
        nn.init.zeros_(self.scale_head.weight)
        nn.init.ones_(self.scale_head.bias)
        self.self_attn = Attention(hidden, heads, dropout)
        self.norm1 = nn.LayerNorm(hidden)
        self.cross_attn = Attention(hidden, heads, dropout)
        self.norm2 = nn.LayerNorm(hidden)
        self.feedforward = FeedForward(hidden, feedforward, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        centre: Tensor,
        keys: Tensor,
        memory: DenseMemory,
        groups: Sights,
    ) -> Tensor:
        """One layer: ``[B, Q, c]``.

        Args:
            x: content ``[B, Q, c]``; position: ``[B, Q, c]``.
            centre: ``[B, Q, 2]`` x and y, in cells.
            keys: the memory's tokens with their positions, ``[B, S, c]``.
            memory: what is read.
            groups: of the queries.
        """
        query = x + position
        spatial = self.spatial_norm(query)
        offset, scale = (  # [B, heads, Q, 2] each
            in_float32(head, spatial).unflatten(-1, (self.heads, 2)).transpose(1, 2)
            for head in (self.offset_head, self.scale_head)
        )
        modulation = log_gaussian(centre[:, None] + offset, scale, memory.shape)  # [B, heads, Q, S]

        x = self.norm1(x + self.dropout(self.self_attn(query, query, x, groups=groups)))
        read = self.cross_attn(x + position, keys, memory.tokens, padding=memory.padding, bias=modulation)
        return self.feedforward(self.norm2(x + self.dropout(read)))


class SmcaDetr(Detector):
    """SMCA-DETR. A query is a position, from which a centre follows; the content starts at zero.

    Args:
        config: sizes.
        queries: source of the queries.
        num_classes: C; the class head has one output more, which the published model trains to say no.
        channels: of the one feature map, at stride 32.
    """

    strides = (STRIDE,)

    def __init__(self, config: SmcaDetrConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__()
        hidden = config.hidden
        layer = (hidden, config.heads, config.feedforward, config.dropout)
        self.cell = STRIDE // 2 if config.backbone.dilation else STRIDE  # pixels along its side
        self.input_proj = nn.Conv2d(channels[-1], hidden, 1)
        self.encoder = DenseEncoder(*layer, depth=config.encoder_layers)
        self.decoder = nn.ModuleList(SmcaDecoderLayer(*layer) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(hidden)
        self.centre_head = xavier_(MLP(hidden, hidden, hidden, 2))
        self.class_head = class_head(hidden, num_classes + config.no_object)
        self.box_head = MLP(hidden, hidden, hidden, 4)
        self.queries = make_queries(queries, {"position": hidden}, backbone=channels[-1], hidden=hidden)

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        feature = features[-1]  # [B, C, h, w]
        cells = valid_sizes(padding) / self.cell  # [B, 2], width and height of the images
        padding = resize_padding(padding, feature)  # [B, h, w]
        projected = self.input_proj(feature)  # [B, c, h, w]
        memory = self.encoder(projected, padding)
        contexts = {"backbone": feature, "projected": projected, "memory": memory.map}
        queries = self.queries(contexts[self.queries.context], padding)

        position = queries["position"]  # [B, Q, c]
        # All layers and all boxes share the centres, which the first layer sees in its queries.
        first = self.decoder[0]
        assert isinstance(first, SmcaDecoderLayer)
        centre_logit = in_float32(self.centre_head, first.spatial_norm(position))  # [B, Q, 2]
        centre = centre_logit.sigmoid() * cells[:, None]  # [B, Q, 2]
        keys = memory.tokens + memory.position
        x = torch.zeros_like(position)
        outputs = []
        for layer in self.decoder:
            x = layer(x, position, centre, keys, memory, queries.seen)
            outputs.append(x)
        decoded = self.norm(torch.stack(outputs))  # [L, B, Q, c]
        return Predictions(
            logits=self.class_head(decoded),
            boxes=boxes_around(centre_logit, in_float32(self.box_head, decoded)),
            groups=queries.groups,
            coefficients=queries.coefficients,
        )
