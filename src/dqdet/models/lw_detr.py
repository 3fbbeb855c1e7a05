"""LW-DETR: Chen et al., "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection", 2024."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dqdet.config import LwDetrConfig, QueriesConfig, TransformerConfig
from dqdet.errors import UnfitImage
from dqdet.models.detector import Detector
from dqdet.nn.attention import Attention
from dqdet.nn.boxes import boxes_scaled
from dqdet.nn.deformable import DeformableAttention
from dqdet.nn.encoder import FeedForward, Memory, cell_centres, flatten_maps
from dqdet.nn.heads import box_head, class_head, in_float32
from dqdet.nn.mlp import MLP
from dqdet.nn.padding import resize_padding, valid_ratios
from dqdet.nn.position import anchor_embedding
from dqdet.nn.projector import LevelProjector, Norm
from dqdet.nn.vit import WindowedVit
from dqdet.queries import make_queries
from dqdet.types import Predictions, Queries, Sights, Target


class LwDetrDecoderLayer(nn.Module):
    """Queries see each other, then read a few points of the memory around their references."""

    def __init__(self, config: LwDetrConfig):
        super().__init__()
        hidden, levels = config.hidden, len(config.scales)
        self.self_attn = Attention(hidden, config.heads, config.dropout)
        self.norm1 = nn.LayerNorm(hidden)
        self.cross_attn = DeformableAttention(hidden, config.cross_heads, levels, config.points)
        self.norm2 = nn.LayerNorm(hidden)
        self.feedforward = FeedForward(hidden, config.feedforward, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, memory: Memory, groups: Sights) -> Tensor:
        """``x`` and ``position [B, Q, c]``, ``reference [B, Q, L, 4]`` -> ``[B, Q, c]``."""
        query = x + position
        x = self.norm1(x + self.dropout(self.self_attn(query, query, x, groups=groups)))
        read = self.cross_attn(x + position, reference, memory.tokens, memory.shapes, memory.padding)
        return self.feedforward(self.norm2(x + self.dropout(read)))


class Proposals(NamedTuple):
    """What one head proposes, the best first."""

    tokens: Tensor  # [B, m, c]
    logits: Tensor  # [B, m, C]
    boxes: Tensor  # [B, m, 4]


class ProposalHead(nn.Module):
    """Proposes the cells that look most like an object, and boxes around them."""

    def __init__(self, hidden: int, num_classes: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden))
        self.class_head = class_head(hidden, num_classes)
        self.box_head = box_head(hidden)

    def forward(self, tokens: Tensor, anchor: Tensor, usable: Tensor, count: int) -> Proposals:
        """The best ``count`` of the cells ``tokens [B, S, c]``, with ``anchor [B, S, 4]`` and ``usable [B, S]``."""
        tokens = self.proj(tokens)
        logits = self.class_head(tokens)  # [B, S, C]
        best = logits.amax(-1).masked_fill(~usable, -torch.inf).topk(count, 1).indices[..., None]  # [B, m, 1]
        tokens, logits, anchor = (x.gather(1, best.expand(-1, -1, x.shape[-1])) for x in (tokens, logits, anchor))
        return Proposals(tokens, logits, boxes_scaled(anchor, in_float32(self.box_head, tokens)))


class LwDetr(Detector):
    """LW-DETR. A query has a learned content and a place: proposal i of the encoder for query i, with a learned change.

    It trains with several groups of queries (Chen et al., "Group DETR", ICCV 2023), each with a proposal head of its
    own; inference uses the first. Queries i of all groups are alternatives for the same rank of proposals, so they are
    the basic queries of one convex hull: with modulated queries ``queries.ratio`` is the number of these groups, and
    ``queries.basic=groups``. What is learned of a query, content and change, is combined. Its place stays proposal i of
    the first head: a place in this image, where the mean of the groups' i-th proposals may show nothing. With fewer
    groups than that all share one head, and if the basic queries are one group, all r of a hull take proposal i.

    Args:
        config: sizes.
        queries: source of the queries.
        num_classes: C.
        channels: of the backbone's maps.
    """

    def __init__(self, config: LwDetrConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__()
        hidden = config.hidden
        self.strides = (config.backbone.patch,) * len(channels)
        self.divisor = config.backbone.patch * config.backbone.windows
        self.projector = nn.ModuleList(
            LevelProjector(channels, hidden, scale, self.projector_norm(config)) for scale in config.scales
        )
        self.decoder = nn.ModuleList(LwDetrDecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(hidden)
        self.position_head = MLP(2 * hidden, hidden, hidden)
        self.class_head = class_head(hidden, num_classes)
        self.box_head = box_head(hidden)

        self.count = queries.count
        apart = queries.basic == "groups" and queries.kind in ("modulated", "grouped")
        self.own_head = queries.kind == "grouped"  # of the first group; a modulated one stands for those it combines
        heads = queries.ratio + self.own_head if apart else 1
        self.proposals = nn.ModuleList(ProposalHead(hidden, num_classes) for _ in range(heads))
        self.queries = make_queries(queries, {"content": hidden, "change": 4}, backbone=channels[-1], hidden=hidden)
        for name, parameter in self.queries.named_parameters():
            if name.endswith(".change"):
                nn.init.zeros_(parameter)

    @classmethod
    def make_backbone(cls, config: TransformerConfig, weights: Mapping[str, Tensor] | None = None) -> WindowedVit:
        assert isinstance(config, LwDetrConfig)
        return WindowedVit(config.backbone, weights)

    def projector_norm(self, config: LwDetrConfig) -> Norm:
        """Makes the norms of the projector's convolutions."""
        return nn.BatchNorm2d

    @classmethod
    def reads(cls, config: TransformerConfig) -> tuple[int, ...]:
        assert isinstance(config, LwDetrConfig)
        return (config.backbone.patch,) * len(config.backbone.taps)

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        maps = [project(features) for project in self.projector]  # L of [B, c, h, w]
        paddings = [resize_padding(padding, x) for x in maps]
        memory = Memory(
            flatten_maps(maps),
            [(x.shape[2], x.shape[3]) for x in maps],
            torch.cat([cells.flatten(1) for cells in paddings], 1),
            valid_ratios(paddings),
        )
        if self.queries.context == "backbone":
            queries = self.queries(features[-1], resize_padding(padding, features[-1]))
        else:  # the projected maps are the memory, too
            queries = self.queries(maps[-1], paddings[-1])
        proposals = self.propose(queries, memory)
        outputs, reference = self.decode(queries, proposals, memory)  # [L, B, Q, c], [B, Q, 4]
        proposed = Predictions(
            logits=torch.cat([of_head.logits for of_head in proposals], 1)[None],
            boxes=torch.cat([of_head.boxes for of_head in proposals], 1)[None],
            groups={f"encoder {number}": self.count for number in range(1, len(proposals) + 1)},
        )
        predictions = Predictions(
            logits=self.class_head(outputs),
            boxes=boxes_scaled(reference, in_float32(self.box_head, outputs)),
            groups=queries.groups,
            coefficients=queries.coefficients,
            proposals=proposed,
        )
        tokens = torch.cat([of_head.tokens for of_head in proposals], 1)  # [B, Q', c]
        return self.segment(predictions, outputs, tokens, maps[0], padding)

    def segment(
        self, predictions: Predictions, outputs: Tensor, proposed: Tensor, feature: Tensor, padding: Tensor
    ) -> Predictions:
        """Add masks, in families that have them.

        Args:
            predictions: without masks.
            outputs: of the decoder's layers ``[L, B, Q, c]``; proposed: tokens of the proposals ``[B, Q', c]``.
            feature: the finest map of the memory, ``[B, c, h, w]``.
            padding: of the images, ``[B, H, W]``.
        """
        return predictions

    def propose(self, queries: Queries, memory: Memory) -> list[Proposals]:
        """The proposals of all heads that the groups of these queries need."""
        if self.count > memory.tokens.shape[1]:
            height, width = memory.shapes[0]
            raise UnfitImage(
                f"queries.count={self.count} is more than the {memory.tokens.shape[1]} proposals of an image whose "
                f"finest map has {height} x {width} cells; lower queries.count or take larger images"
            )
        anchor, usable = anchors(memory)  # [B, S, 4], [B, S]
        tokens = memory.tokens.masked_fill(~usable[..., None], 0)
        heads = self.proposals[: max(self.heads_of(queries)) + 1]
        return [head(tokens, anchor, usable, self.count) for head in heads]

    def heads_of(self, queries: Queries | Predictions) -> list[int]:
        """Which head proposes the places of each group."""
        last = len(self.proposals) - 1
        return [0, *(min(number + self.own_head, last) for number in range(len(queries.groups) - 1))]

    def decode(self, queries: Queries, proposals: list[Proposals], memory: Memory) -> tuple[Tensor, Tensor]:
        """What all layers make of the queries, ``[L, B, Q, c]``, and where these start, ``[B, Q, 4]``."""
        places = []
        for head, size in zip(self.heads_of(queries), queries.groups.values(), strict=True):
            boxes = proposals[head].boxes.detach()
            places.append(boxes.repeat_interleave(size // self.count, 1))
        reference = boxes_scaled(torch.cat(places, 1), queries["change"].float())  # [B, Q, 4]
        per_level = reference[:, :, None] * memory.ratios.repeat(1, 1, 2)[:, None]  # [B, Q, L, 4]
        x = queries["content"]  # [B, Q, c]
        position = self.position_head(anchor_embedding(per_level[:, :, 0], x.shape[-1] // 2).to(x))  # [B, Q, c]
        outputs = []
        for layer in self.decoder:
            x = layer(x, position, per_level, memory, queries.seen)
            outputs.append(self.norm(x))
        return torch.stack(outputs), reference


def anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """One box around every cell, growing with the level.

    Returns:
        Boxes ``[B, S, 4]``, zero where not usable, and which are usable, ``[B, S]``: neither padded nor within 1 % of
        the border.
    """
    centre = cell_centres(memory.shapes, memory.ratios)  # [B, S, 2]
    of_levels = [centre.new_full((h * w, 1), 0.05 * 2.0**level) for level, (h, w) in enumerate(memory.shapes)]
    box = torch.cat([centre, torch.cat(of_levels).expand_as(centre)], -1)  # [B, S, 4]
    usable = ((box > 0.01) & (box < 0.99)).all(-1) & ~memory.padding
    return box.masked_fill(~usable[..., None], 0), usable
