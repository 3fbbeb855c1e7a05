"""DAB-Deformable-DETR: the anchors of Liu et al., "DAB-DETR", ICLR 2022 (appendix C), in Deformable-DETR."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dqdet.config import DeformableDetrConfig, QueriesConfig
from dqdet.denoising import DenoisingQueries
from dqdet.models.deformable_detr import DecoderInput, DeformableDetr
from dqdet.nn.init import xavier_
from dqdet.nn.mlp import MLP
from dqdet.nn.position import anchor_embedding
from dqdet.types import Target


class DabDeformableDetr(DeformableDetr):
    """DAB-Deformable-DETR. A query has a content and an anchor box, from which every layer makes its position."""

    epsilon = 1e-3

    def __init__(self, config: DeformableDetrConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__(config, queries, num_classes, channels)
        noise = (config.hidden, num_classes, queries, self.epsilon)
        self.denoising = DenoisingQueries(*noise) if queries.denoising else None

    def query_parts(self, hidden: int) -> dict[str, int]:
        return {"content": hidden, "anchor": 4}

    def add_query_layers(self, hidden: int) -> None:
        self.position_head = xavier_(MLP(2 * hidden, hidden, hidden))
        self.position_scale = xavier_(MLP(hidden, hidden, hidden))
        self.position_scale.requires_grad_(len(self.decoder) > 1)  # the first layer does not read it

    def start_from_queries(self, feature: Tensor, padding: Tensor, targets: Sequence[Target] = ()) -> DecoderInput:
        queries = self.queries(feature, padding)
        if self.denoising is not None:
            queries = self.denoising(queries, targets)
        anchor = queries["anchor"].float().sigmoid()  # [B, Q, 4]
        return DecoderInput(queries["content"], None, anchor, queries)

    def query_position(self, layer: int, x: Tensor, reference: Tensor, start: DecoderInput) -> Tensor:
        anchor = reference[:, :, 0]  # [B, Q, 4], in 0..1 of the padded finest map, as published
        position = self.position_head(anchor_embedding(anchor, x.shape[-1] // 2).to(x))  # [B, Q, c]
        return position if layer == 0 else position * self.position_scale(x)
