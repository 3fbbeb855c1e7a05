"""DAB-DETR: Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", ICLR 2022."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dqdet.config import DabDetrConfig, QueriesConfig
from dqdet.denoising import DenoisingQueries
from dqdet.models.conditional_detr import ConditionalDecoderLayer
from dqdet.models.detector import Detector
from dqdet.nn.boxes import boxes_around, inverse_sigmoid
from dqdet.nn.encoder import Activation, DenseEncoder
from dqdet.nn.heads import box_head, class_head, in_float32
from dqdet.nn.init import xavier_
from dqdet.nn.mlp import MLP
from dqdet.nn.padding import resize_padding
from dqdet.nn.position import anchor_embedding
from dqdet.queries import make_queries
from dqdet.types import Predictions, Queries, Target

EPSILON = 1e-3  # anchors are kept so far from 0 and 1
ACTIVATIONS: dict[str, Activation] = {"prelu": nn.PReLU, "relu": nn.ReLU}


class DabEncoder(DenseEncoder):
    """DETR's encoder, in which the content decides how much each frequency of the positions counts."""

    def __init__(self, config: DabDetrConfig):
        hidden = config.hidden
        super().__init__(
            hidden,
            config.heads,
            config.feedforward,
            config.dropout,
            config.encoder_layers,
            config.temperature,
            ACTIVATIONS[config.activation],
        )
        self.position_scale = xavier_(MLP(hidden, hidden, hidden))

    def scale(self, position: Tensor, tokens: Tensor) -> Tensor:
        return position * self.position_scale(tokens)


class DabDetr(Detector):
    """DAB-DETR. A query is an anchor box, which every layer moves; the content starts at zero, or at a pattern.

    Args:
        config: sizes and variant.
        queries: source of the queries.
        num_classes: C.
        channels: of the one feature map, at stride 32.
    """

    strides = (32,)
    patterns: Tensor  # [P, c], the contents that anchors start with

    def __init__(self, config: DabDetrConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__()
        hidden = config.hidden
        layer = (hidden, config.heads, config.feedforward, config.dropout)
        activation = ACTIVATIONS[config.activation]
        self.input_proj = nn.Conv2d(channels[-1], hidden, 1)
        self.encoder = DabEncoder(config)
        self.decoder = nn.ModuleList(
            ConditionalDecoderLayer(*layer, first=i == 0, activation=activation) for i in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.position_head = xavier_(MLP(2 * hidden, hidden, hidden))
        self.spatial_scale = xavier_(MLP(hidden, hidden, hidden))
        self.spatial_scale.requires_grad_(config.decoder_layers > 1)  # the first layer does not read it
        self.size_head = xavier_(MLP(hidden, hidden, 2))
        self.class_head = class_head(hidden, num_classes)
        self.box_head = box_head(hidden)
        self.queries = make_queries(queries, {"anchor": 4}, backbone=channels[-1], hidden=hidden)
        self.denoising = DenoisingQueries(hidden, num_classes, queries, EPSILON) if queries.denoising else None
        if config.patterns:
            self.patterns = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.patterns, hidden)))
        else:
            self.register_buffer("patterns", torch.zeros(1, hidden), persistent=False)

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        feature = features[-1]  # [B, C, h, w]
        padding = resize_padding(padding, feature)  # [B, h, w]
        projected = self.input_proj(feature)  # [B, c, h, w]
        memory = self.encoder(projected, padding)
        contexts = {"backbone": feature, "projected": projected, "memory": memory.map}
        queries = self.with_content(self.queries(contexts[self.queries.context], padding))
        if self.denoising is not None:
            queries = self.denoising(queries, targets)

        x, anchor = queries["content"], queries["anchor"].float().sigmoid()  # [B, Q, c], [B, Q, 4]
        outputs, anchors = [], [anchor]
        for i, layer in enumerate(self.decoder):
            embedded = anchor_embedding(anchor, x.shape[-1] // 2).to(x)  # [B, Q, 2c]
            position = self.position_head(embedded)  # [B, Q, c]
            spatial = self.modulate(embedded[..., : x.shape[-1]], anchor, x)  # [B, Q, c]
            if i > 0:
                spatial = spatial * self.spatial_scale(x)
            x = layer(x, position, spatial, memory, queries.seen)
            outputs.append(x)
            if i + 1 < len(self.decoder):
                # A box loss reaches the layer that moved the anchor last, and none before it.
                anchors.append(boxes_around(inverse_sigmoid(anchor, EPSILON), in_float32(self.box_head, x)))
                anchor = anchors[-1].detach()
        decoded = self.norm(torch.stack(outputs))  # [L, B, Q, c]
        return Predictions(
            logits=self.class_head(decoded),
            boxes=boxes_around(inverse_sigmoid(torch.stack(anchors), EPSILON), in_float32(self.box_head, decoded)),
            groups=queries.groups,
            coefficients=queries.coefficients,
            denoised=queries.denoised,
        )

    def modulate(self, centre: Tensor, anchor: Tensor, content: Tensor) -> Tensor:
        """Attention as wide and as high as the anchors (section 4.4 of the paper): ``[B, Q, c]``.

        Args:
            centre: embedded y and x of the anchors, ``[B, Q, c]``.
            anchor: ``[B, Q, 4]`` in 0..1.
            content: ``[B, Q, c]``, from which the reference width and height follow.
        """
        width, height = (in_float32(self.size_head, content).sigmoid() / anchor[..., 2:]).chunk(2, -1)  # [B, Q, 1]
        y, x = centre.chunk(2, -1)  # [B, Q, c / 2]
        return torch.cat([y * height, x * width], -1).to(content)

    def with_content(self, queries: Queries) -> Queries:
        """A query for every pattern and anchor, pattern by pattern inside each group: Q becomes P * Q."""
        count, sizes, anchor = len(self.patterns), list(queries.groups.values()), queries["anchor"]
        content = torch.cat([self.patterns.repeat_interleave(size, 0) for size in sizes])  # [P * Q, c]
        anchor = torch.cat([part.repeat(1, count, 1) for part in anchor.split(sizes, 1)], 1)  # [B, P * Q, 4]
        return Queries(
            {"content": content.expand(anchor.shape[0], -1, -1), "anchor": anchor},
            {name: count * size for name, size in queries.groups.items()},
            queries.coefficients,
        )
