"""SeqFormer: Wu et al., "SeqFormer: Sequential Transformer for Video Instance Segmentation", ECCV 2022."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dqdet.config import QueriesConfig, SeqFormerConfig
from dqdet.models.deformable_detr import DecoderInput, DeformableDetr
from dqdet.nn.attention import Attention
from dqdet.nn.deformable import DeformableAttention
from dqdet.nn.dynamic_masks import DynamicMasks, MaskFeatures, parameter_count
from dqdet.nn.encoder import FeedForward, Memory
from dqdet.nn.heads import in_float32
from dqdet.nn.init import xavier_
from dqdet.nn.mlp import MLP
from dqdet.nn.padding import of_frames, resize_padding, valid_sizes
from dqdet.types import Predictions, Sights, Target


class SeqFormerDecoderLayer(nn.Module):
    """An instance query has a box query in every frame, which reads that frame around its box.

    What the box queries have read goes back to the instance query, weighted by learned weights of the frames (section
    3.2 of the paper).
    """

    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float, levels: int, points: int):
        super().__init__()
        self.cross_attn = DeformableAttention(hidden, heads, levels, points)
        self.self_attn = Attention(hidden, heads, dropout)
        self.norm2 = nn.LayerNorm(hidden)  # numbered as published
        self.norm1 = nn.LayerNorm(hidden)
        self.feedforward = FeedForward(hidden, feedforward, dropout)
        self.box_self_attn = Attention(hidden, heads, dropout)
        self.box_norm2 = nn.LayerNorm(hidden)
        self.box_output_proj = xavier_(nn.Linear(hidden, hidden))
        self.box_norm1 = nn.LayerNorm(hidden)
        self.box_feedforward = FeedForward(hidden, feedforward, dropout)
        self.frame_weights = xavier_(nn.Linear(hidden, 1))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        box_x: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Memory,
        groups: Sights,
    ) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            x: contents of the instance queries ``[B, Q, c]``.
            box_x: contents of the box queries ``[B*T, Q, c]``, the frames of a clip one after the other.
            position: of the instance queries, and of their box queries in every frame, ``[B, Q, c]``.
            reference: boxes ``[B*T, Q, L, 4]`` or points ``[B*T, Q, L, 2]``, around which is read.
            memory: of all frames.
            groups: of the queries.

        Returns:
            Both contents after the layer.
        """
        box_position = of_frames(position, box_x.shape[0] // x.shape[0])  # [B*T, Q, c]
        query = x + position
        x = self.norm2(x + self.dropout(self.self_attn(query, query, x, groups=groups)))
        query = box_x + box_position
        box_x = self.box_norm2(box_x + self.dropout(self.box_self_attn(query, query, box_x, groups=groups)))

        read = self.cross_attn.read(box_x + box_position, reference, memory.tokens, memory.shapes, memory.padding)
        box_x = self.box_feedforward(self.box_norm1(box_x + self.dropout(self.box_output_proj(read))))  # [B*T, Q, c]

        weights = self.frame_weights(box_x).unflatten(0, (x.shape[0], -1)).softmax(1)  # [B, T, Q, 1]
        # The weights of the frames sum to 1, so their mean is projected instead of every frame.
        over_time = (weights * read.unflatten(0, (x.shape[0], -1))).sum(1)  # [B, Q, c]
        x = self.norm1(x + self.dropout(self.cross_attn.output_proj(over_time)))
        return self.feedforward(x), box_x


class SeqFormer(DeformableDetr):
    """SeqFormer: Deformable-DETR with box refinement, whose queries are instances of a clip.

    The encoder sees every frame alone. Classes and masks come from the instance queries, boxes from the box queries. A
    mask's parameters are the same in all frames; its centre is the reference that the layer was given.

    Args:
        config: sizes.
        queries: source of the queries; their context is the coarsest map of all frames.
        num_classes: C.
        channels: of the feature maps at strides 8, 16 and 32.
    """

    decoder_layer = SeqFormerDecoderLayer

    def __init__(self, config: SeqFormerConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__(config, queries, num_classes, channels)
        hidden = config.hidden
        self.see_padding = config.see_padding
        self.mask_features = MaskFeatures(hidden)
        self.mask_parameters = xavier_(MLP(hidden, hidden, hidden, parameter_count(hidden // 32)))
        for layer in self.mask_parameters.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        clips = features[0].shape[:2]  # B, T
        maps = self.input_proj([x.flatten(0, 1) for x in features])  # L of [B*T, c, h, w]
        paddings = [of_frames(resize_padding(padding, x), clips[1]) for x in maps]  # L of [B*T, h, w]
        memory = self.encoder(maps, paddings)
        contexts = {
            "backbone": (features[-1], paddings[len(features) - 1]),
            "projected": (maps[-1].unflatten(0, clips), paddings[-1]),
            "memory": (memory.coarsest.unflatten(0, clips), paddings[-1]),
        }
        feature, cells = contexts[self.queries.context]  # [B, T, C, h, w], [B*T, h, w]
        start = self.start_from_queries(feature.transpose(1, 2), cells.unflatten(0, clips))
        outputs, boxes, references = self.decode_clips(start, memory)
        centres = references.unflatten(1, clips).transpose(2, 3)  # [L, B, Q, T, 2]
        return Predictions(
            logits=self.predict_logits(outputs),
            boxes=boxes.unflatten(1, clips).transpose(2, 3),  # [L, B, Q, T, 4]
            groups=start.queries.groups,
            masks=DynamicMasks(
                in_float32(self.mask_parameters, torch.stack(outputs)),  # they are multiplied by distances in pixels
                self.read_masks(memory, paddings).unflatten(0, clips),
                centres * valid_sizes(padding)[:, None, None],
            ),
            coefficients=start.queries.coefficients,
        )

    def decode_clips(self, start: DecoderInput, memory: Memory) -> tuple[list[Tensor], Tensor, Tensor]:
        """Run the decoder; each layer's boxes are offsets from the references that it was given.

        Returns:
            The contents of the instance queries after each of the L layers ``[B, Q, c]``; boxes ``[L, B*T, Q, 4]``; and
            the references' centres ``[L, B*T, Q, 2]``.
        """
        assert start.position is not None
        frames = memory.tokens.shape[0] // start.content.shape[0]
        x = start.content  # [B, Q, c]
        box_x = of_frames(x, frames)  # [B*T, Q, c]
        reference = of_frames(start.reference, frames)  # [B*T, Q, 2], then [B*T, Q, 4]
        outputs, boxes, centres = [], [], []
        for i, layer in enumerate(self.decoder):
            scale = memory.ratios.repeat(1, 1, reference.shape[-1] // 2)  # [B*T, L, 2 or 4]
            per_level = reference[:, :, None] * scale[:, None]  # [B*T, Q, L, 2 or 4]
            x, box_x = layer(x, box_x, start.position, per_level, memory, start.queries.seen)
            outputs.append(x)
            boxes.append(self.predict_boxes(i, box_x, reference))
            centres.append(reference[..., :2])
            reference = boxes[-1].detach()
        return outputs, torch.stack(boxes), torch.stack(centres)

    def read_masks(self, memory: Memory, paddings: list[Tensor]) -> Tensor:
        """Mask features ``[B*T, hidden / 32, h, w]`` at stride 8, from the levels of the backbone."""
        sizes = [height * width for height, width in memory.shapes]
        levels = zip(memory.tokens.split(sizes, 1), memory.shapes, strict=True)
        maps = [tokens.transpose(1, 2).unflatten(2, shape) for tokens, shape in levels]  # L of [B*T, c, h, w]
        if self.see_padding:
            paddings = [torch.zeros_like(padding) for padding in paddings]
        count = len(self.strides)
        return self.mask_features(maps[:count], paddings[:count])
