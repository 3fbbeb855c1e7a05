"""Deformable-DETR: Zhu et al., "Deformable DETR", ICLR 2021. Plain, with box refinement, and two-stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dqdet.config import DeformableDetrConfig, QueriesConfig, TransformerConfig
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.nn.attention import Attention
from dqdet.nn.boxes import boxes_around, inverse_sigmoid
from dqdet.nn.deformable import DeformableAttention
from dqdet.nn.encoder import DeformableEncoder, FeedForward, Memory, cell_centres
from dqdet.nn.heads import box_head, class_head, in_float32
from dqdet.nn.init import xavier_
from dqdet.nn.levels import Levels
from dqdet.nn.padding import resize_padding
from dqdet.nn.position import sine_embedding
from dqdet.queries import make_queries
from dqdet.types import Predictions, Queries, Sights, Target


class DeformableDecoderLayer(nn.Module):
    """Queries see each other, then read a few points of the memory around their references."""

    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float, levels: int, points: int):
        super().__init__()
        self.self_attn = Attention(hidden, heads, dropout)
        self.norm2 = nn.LayerNorm(hidden)  # numbered as published
        self.cross_attn = DeformableAttention(hidden, heads, levels, points)
        self.norm1 = nn.LayerNorm(hidden)
        self.feedforward = FeedForward(hidden, feedforward, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, memory: Memory, groups: Sights) -> Tensor:
        """``x`` and ``position [B, Q, c]``, ``reference [B, Q, L, 2 or 4]`` -> ``[B, Q, c]``."""
        query = x + position
        x = self.norm2(x + self.dropout(self.self_attn(query, query, x, groups=groups)))
        read = self.cross_attn(x + position, reference, memory.tokens, memory.shapes, memory.padding)
        return self.feedforward(self.norm1(x + self.dropout(read)))


class DecoderInput(NamedTuple):
    """Where the decoder starts."""

    content: Tensor  # [B, Q, c]
    position: Tensor | None  # [B, Q, c]; None where every layer makes it from its references
    reference: Tensor  # [B, Q, 2] points or [B, Q, 4] boxes, in 0..1 of the valid image
    queries: Queries
    proposals: Predictions | None = None


class DeformableDetr(Detector):
    """Deformable-DETR. A query has a position, from which its first reference point follows, and a content.

    Args:
        config: sizes and variant.
        queries: source of the queries.
        num_classes: C.
        channels: of the feature maps at strides 8, 16 and 32.

    Raises:
        DqdetError: for dynamic queries in a two-stage model, which has no learned queries to combine.
    """

    strides: tuple[int, ...] = (8, 16, 32)
    decoder_layer: ClassVar[type[nn.Module]] = DeformableDecoderLayer
    epsilon: ClassVar[float] = 1e-5  # references are kept so far from 0 and 1

    def __init__(self, config: DeformableDetrConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__()
        self.strides = self.reads(config)
        if config.two_stage and queries.kind != "static":
            raise DqdetError(
                f"queries.kind={queries.kind}: a two-stage model takes its queries from encoder proposals and has none "
                "to combine; set queries.kind=static or model.two_stage=false"
            )
        hidden, layers = config.hidden, config.decoder_layers
        attention = (hidden, config.heads, config.feedforward, config.dropout, config.levels, config.points)
        self.input_proj = Levels(channels, hidden, config.levels)
        self.encoder = DeformableEncoder(*attention, depth=config.encoder_layers)
        self.decoder = nn.ModuleList(self.decoder_layer(*attention) for _ in range(layers))

        # With refinement every layer has heads of its own, and two-stage adds one pair for the proposals.
        heads = layers + config.two_stage if config.refine or config.two_stage else 1
        self.class_head = nn.ModuleList(class_head(hidden, num_classes) for _ in range(heads))
        # The first boxes around a learned point start small; all others start at their reference.
        self.box_head = nn.ModuleList(
            box_head(hidden, size=-2.0 if i == 0 and not config.two_stage else 0.0) for i in range(heads)
        )

        self.refine = config.refine
        self.proposal_count = queries.count if config.two_stage else None
        if config.two_stage:
            self.proposal_proj = nn.Sequential(xavier_(nn.Linear(hidden, hidden)), nn.LayerNorm(hidden))
            self.proposal_query = nn.Sequential(xavier_(nn.Linear(2 * hidden, 2 * hidden)), nn.LayerNorm(2 * hidden))
        else:
            self.queries = make_queries(queries, self.query_parts(hidden), backbone=channels[-1], hidden=hidden)
            self.add_query_layers(hidden)

    @classmethod
    def reads(cls, config: TransformerConfig) -> tuple[int, ...]:
        """The coarsest maps, where there are fewer levels than maps."""
        assert isinstance(config, DeformableDetrConfig)
        return cls.strides[-config.levels :]

    def query_parts(self, hidden: int) -> dict[str, int]:
        """What a query consists of: names and widths."""
        return {"position": hidden, "content": hidden}

    def add_query_layers(self, hidden: int) -> None:
        """The layers that read a query's position and reference from it."""
        self.reference_points = xavier_(nn.Linear(hidden, 2))
        nn.init.zeros_(self.reference_points.bias)

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        maps = self.input_proj(features)  # L of [B, c, h, w]
        paddings = [resize_padding(padding, x) for x in maps]
        memory = self.encoder(maps, paddings)
        if self.proposal_count is not None:
            return self.decode(self.start_from_proposals(memory, self.proposal_count), memory)
        contexts = {
            "backbone": (features[-1], paddings[len(features) - 1]),
            "projected": (maps[-1], paddings[-1]),
            "memory": (memory.coarsest, paddings[-1]),
        }
        return self.decode(self.start_from_queries(*contexts[self.queries.context], targets), memory)

    def start_from_queries(self, feature: Tensor, padding: Tensor, targets: Sequence[Target] = ()) -> DecoderInput:
        """Learned queries; ``feature`` is their context, with its padding.

        The published code pools the projected map, after its group norm. The mean of a normed group of channels says
        nothing about the image, so that mean pooling leaves 7 of 8 directions there at the published width of 256.
        """
        queries = self.queries(feature, padding)
        reference = in_float32(self.reference_points, queries["position"]).sigmoid()  # [B, Q, 2]
        return DecoderInput(queries["content"], queries["position"], reference, queries)

    def start_from_proposals(self, memory: Memory, count: int) -> DecoderInput:
        """The best ``count`` encoder proposals, or all of a small image, become queries (section 4.2, two-stage)."""
        anchor, usable = anchors(memory)  # [B, S, 4] logits, [B, S]
        tokens = self.proposal_proj(memory.tokens.masked_fill(~usable[..., None], 0))  # [B, S, c]
        logits = self.class_head[-1](tokens)  # [B, S, C]
        boxes = in_float32(self.box_head[-1], tokens) + anchor  # [B, S, 4]
        count = min(count, logits.shape[1])
        best = logits[..., 0].topk(count, 1).indices  # [B, Q]; class 0 stands for any object here
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach().sigmoid()  # [B, Q, 4]
        embedded = sine_embedding(chosen, tokens.shape[-1] // 2).to(tokens)  # [B, Q, 2c]
        position, content = self.proposal_query(embedded).chunk(2, -1)
        proposals = Predictions(logits[None], boxes.sigmoid()[None], {"encoder": logits.shape[1]}, class_agnostic=True)
        return DecoderInput(content, position, chosen, Queries({}, {"proposals": count}), proposals)

    def decode(self, start: DecoderInput, memory: Memory) -> Predictions:
        """Run the decoder; each layer's boxes are offsets from the references that it was given."""
        x, reference = start.content, start.reference
        outputs, boxes = [], []
        for i, layer in enumerate(self.decoder):
            scale = memory.ratios.repeat(1, 1, reference.shape[-1] // 2)  # [B, L, 2 or 4]
            per_level = reference[:, :, None] * scale[:, None]  # [B, Q, L, 2 or 4]
            position = self.query_position(i, x, per_level, start)
            x = layer(x, position, per_level, memory, start.queries.seen)
            outputs.append(x)
            boxes.append(self.predict_boxes(i, x, reference))
            if self.refine:
                reference = boxes[-1].detach()
        return Predictions(
            logits=self.predict_logits(outputs),
            boxes=torch.stack(boxes),
            groups=start.queries.groups,
            coefficients=start.queries.coefficients,
            proposals=start.proposals,
            denoised=start.queries.denoised,
        )

    def query_position(self, layer: int, x: Tensor, reference: Tensor, start: DecoderInput) -> Tensor:
        """Positions ``[B, Q, c]`` of a layer's input ``[B, Q, c]`` with references ``[B, Q, L, 2 or 4]``."""
        assert start.position is not None
        return start.position

    def predict_boxes(self, layer: int, x: Tensor, reference: Tensor) -> Tensor:
        """Boxes ``[B, Q, 4]`` of a layer's output ``[B, Q, c]`` around its references ``[B, Q, 2 or 4]``."""
        offsets = in_float32(self.box_head[layer if len(self.box_head) > 1 else 0], x)
        return boxes_around(inverse_sigmoid(reference, self.epsilon), offsets)

    def predict_logits(self, outputs: list[Tensor]) -> Tensor:
        """Class logits ``[L, B, Q, C]`` of all layers' outputs ``[B, Q, c]``."""
        if len(self.class_head) == 1:
            return self.class_head[0](torch.stack(outputs))
        return torch.stack([head(x) for head, x in zip(self.class_head, outputs, strict=False)])


def anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """One box around every cell, growing with the level.

    Returns:
        Boxes before the sigmoid, ``[B, S, 4]``, infinite where not usable, and which are usable, ``[B, S]``:
        neither padded nor within 1 % of the border.
    """
    centre = cell_centres(memory.shapes, memory.ratios)  # [B, S, 2]
    of_levels = [centre.new_full((h * w, 1), 0.05 * 2.0**level) for level, (h, w) in enumerate(memory.shapes)]
    size = torch.cat(of_levels).expand_as(centre)  # [B, S, 2]
    box = torch.cat([centre, size], -1)
    usable = ((box > 0.01) & (box < 0.99)).all(-1) & ~memory.padding
    return (box / (1 - box)).log().masked_fill(~usable[..., None], torch.inf), usable
