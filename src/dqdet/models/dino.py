"""DINO: Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection", ICLR 2023."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dqdet.config import DinoConfig, QueriesConfig, TransformerConfig
from dqdet.denoising import DenoisingQueries
from dqdet.errors import UnfitImage
from dqdet.models.deformable_detr import DeformableDecoderLayer, anchors
from dqdet.models.detector import Detector
from dqdet.nn.boxes import boxes_around, inverse_sigmoid
from dqdet.nn.encoder import DeformableEncoder, Memory
from dqdet.nn.heads import box_head, class_head, in_float32
from dqdet.nn.init import xavier_
from dqdet.nn.levels import Levels
from dqdet.nn.mlp import MLP
from dqdet.nn.padding import resize_padding
from dqdet.nn.position import anchor_embedding
from dqdet.queries import make_queries
from dqdet.types import Predictions, Queries, Target

EPSILON = 1e-3  # anchors are kept so far from 0 and 1


class Dino(Detector):
    """DINO. A query has a learned content, and as its anchor one of the encoder's best proposals.

    Of dynamic queries the content alone is combined. Places are not learned here, they are found in each image: query i
    keeps the i-th best proposal, so that its hull holds contents for rank i. Its r basic queries in training have the
    same anchor, that of query i: a modulated query then is the combination of its basic ones in content and anchor.
    Anchors of their own, such as the next proposals, would lie at unrelated places, between which there is nothing.

    Args:
        config: sizes.
        queries: source of the contents.
        num_classes: C.
        channels: of the feature maps at the strides that it reads.
    """

    def __init__(self, config: DinoConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__()
        hidden = config.hidden
        layer = (hidden, config.heads, config.feedforward, config.dropout, config.levels, config.points)
        self.strides = self.reads(config)
        self.input_proj = Levels(channels, hidden, config.levels)
        self.encoder = DeformableEncoder(*layer, depth=config.encoder_layers, shift=0.0, temperature=20)
        self.decoder = nn.ModuleList(DeformableDecoderLayer(*layer) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(hidden)
        self.position_head = xavier_(MLP(2 * hidden, hidden, hidden))
        self.class_head = class_head(hidden, num_classes)  # of all layers
        self.box_head = box_head(hidden)

        self.proposal_proj = nn.Sequential(xavier_(nn.Linear(hidden, hidden)), nn.LayerNorm(hidden))
        self.proposal_class_head = class_head(hidden, num_classes)
        self.proposal_box_head = box_head(hidden)
        self.proposal_class_head.load_state_dict(self.class_head.state_dict())  # apart from here on
        self.proposal_box_head.load_state_dict(self.box_head.state_dict())

        self.count = queries.count
        self.queries = make_queries(queries, {"content": hidden}, backbone=channels[-1], hidden=hidden)
        bound = (6 / (queries.count + hidden)) ** 0.5  # Xavier's of the published table, whatever the ratio
        for tables in self.queries.modules():
            if isinstance(tables, nn.ParameterDict):
                for table in tables.values():
                    nn.init.uniform_(table, -bound, bound)
        self.denoising = DenoisingQueries(hidden, num_classes, queries, EPSILON) if queries.denoising else None

    @classmethod
    def reads(cls, config: TransformerConfig) -> tuple[int, ...]:
        assert isinstance(config, DinoConfig)
        return tuple(stride for stride in (4, 8, 16, 32) if stride >= config.finest)[-config.levels :]

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        maps = self.input_proj(features)  # L of [B, c, h, w]
        paddings = [resize_padding(padding, x) for x in maps]
        memory = self.encoder(maps, paddings)
        contexts = {
            "backbone": (features[-1], paddings[len(features) - 1]),
            "projected": (maps[-1], paddings[-1]),
            "memory": (memory.coarsest, paddings[-1]),
        }
        anchor, proposals = self.propose(memory)  # [B, m, 4]
        queries = with_anchors(self.queries(*contexts[self.queries.context]), anchor)
        if self.denoising is not None:
            queries = self.denoising(queries, targets)
        return replace(self.decode(queries, memory), proposals=proposals)

    def propose(self, memory: Memory) -> tuple[Tensor, Predictions]:
        """The m best cells of the encoder's output, best first (mixed query selection, section 3.4).

        Returns:
            Their anchors before the sigmoid, without gradient, ``[B, m, 4]``, and what the encoder predicts there.

        Raises:
            UnfitImage: there are fewer cells.
        """
        anchor, usable = anchors(memory)  # [B, S, 4] logits, [B, S]
        if (cells := anchor.shape[1]) < self.count:
            raise UnfitImage(
                f"queries.count={self.count}: images of this size have {cells} cells to propose; take larger images or "
                "fewer queries"
            )
        tokens = self.proposal_proj(memory.tokens.masked_fill(~usable[..., None], 0))  # [B, S, c]
        logits = self.proposal_class_head(tokens)  # [B, S, C]
        best = logits.amax(-1).topk(self.count, 1).indices[..., None]  # [B, m, 1]
        logits, tokens, anchor = (x.gather(1, best.expand(-1, -1, x.shape[-1])) for x in (logits, tokens, anchor))
        boxes = in_float32(self.proposal_box_head, tokens) + anchor  # [B, m, 4]
        return boxes.detach(), Predictions(logits[None], boxes.sigmoid()[None], {"encoder": self.count})

    def decode(self, queries: Queries, memory: Memory) -> Predictions:
        """Run the decoder. A layer's references are what the one before makes of its own references.

        Its predictions look forward twice (section 3.5): they are offsets from references through which gradient
        reaches the layer before, while attention sees these without gradient.
        """
        x, reference = queries["content"], queries["anchor"].float().sigmoid()  # [B, Q, c], [B, Q, 4]
        origin = reference
        outputs, boxes = [], []
        for layer in self.decoder:
            per_level = reference[:, :, None] * memory.ratios.repeat(1, 1, 2)[:, None]  # [B, Q, L, 4]
            # In 0..1 of the padded finest map, as published.
            position = self.position_head(anchor_embedding(per_level[:, :, 0], x.shape[-1] // 2).to(x))  # [B, Q, c]
            x = layer(x, position, per_level, memory, queries.seen)
            outputs.append(self.norm(x))
            boxes.append(boxes_around(inverse_sigmoid(origin, EPSILON), in_float32(self.box_head, outputs[-1])))
            origin = boxes_around(inverse_sigmoid(reference, EPSILON), in_float32(self.box_head, x))
            reference = origin.detach()
        return Predictions(
            logits=self.class_head(torch.stack(outputs)),
            boxes=torch.stack(boxes),
            groups=queries.groups,
            coefficients=queries.coefficients,
            denoised=queries.denoised,
        )


def with_anchors(queries: Queries, proposals: Tensor) -> Queries:
    """Contents with anchors ``[B, m, 4]``: those of a group of k * m queries are k times each proposal, in a row."""
    repeated = [proposals.repeat_interleave(size // proposals.shape[1], 1) for size in queries.groups.values()]
    return replace(queries, parts=queries.parts | {"anchor": torch.cat(repeated, 1)})  # [B, Q, 4]
