"""RF-DETR: Robinson et al., "RF-DETR: Neural Architecture Search for Real-Time Detection Transformers", 2025.

For detection and, with a head for masks, for instance segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import LwDetrConfig, QueriesConfig, RfDetrConfig, RfDetrSegConfig
from dqdet.models.lw_detr import LwDetr
from dqdet.nn.product_masks import LayerMasks
from dqdet.nn.projector import ChannelNorm, Norm
from dqdet.types import Predictions


class MaskBlock(nn.Module):
    """A convolution of every channel on its own and a linear layer of every cell, with a residual (ConvNeXt's)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.linear = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, c, h, w] -> [B, c, h, w]``."""
        cells = self.norm(self.conv(x).permute(0, 2, 3, 1))  # [B, h, w, c]
        return x + F.gelu(self.linear(cells)).permute(0, 3, 1, 2)


class MaskHead(nn.Module):
    """Masks as products of queries and cells, with other features of the cells for every layer of the decoder.

    Args:
        hidden: channels.
        layers: of the decoder.
    """

    def __init__(self, hidden: int, layers: int):
        super().__init__()
        self.blocks = nn.ModuleList(MaskBlock(hidden) for _ in range(layers))
        self.feature_proj = nn.Conv2d(hidden, hidden, 1)
        self.query_norm = nn.LayerNorm(hidden)
        self.query_mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
        self.query_proj = nn.Linear(hidden, hidden)
        self.bias = nn.Parameter(torch.zeros(1))

    def embed(self, queries: Tensor) -> Tensor:
        """``[..., c] -> [..., c]``."""
        return self.query_proj(queries + self.query_mlp(self.query_norm(queries)))

    def forward(self, feature: Tensor, outputs: Tensor, proposals: Tensor) -> tuple[LayerMasks, LayerMasks]:
        """Masks of all layers and of the proposals.

        Args:
            feature: the memory's map, at the size of the masks, ``[B, c, h, w]``.
            outputs: of the decoder's layers, ``[L, B, Q, c]``.
            proposals: ``[B, Q', c]``, whose masks are read from the feature as it is.
        """
        before, features = feature, []
        for block in self.blocks:
            feature = block(feature)
            features.append(self.feature_proj(feature))
        of_layers = LayerMasks(self.embed(outputs), torch.stack(features), self.bias)
        return of_layers, LayerMasks(self.embed(proposals)[None], self.feature_proj(before)[None], self.bias)


class RfDetr(LwDetr):
    """RF-DETR: LW-DETR on DINOv2, with layer norms in place of batch norms; queries as there.

    With the configuration of ``rf_detr_seg`` it predicts masks, too.

    Args:
        config: sizes.
        queries: source of the queries.
        num_classes: C.
        channels: of the backbone's maps.
    """

    def __init__(self, config: RfDetrConfig, queries: QueriesConfig, num_classes: int, channels: Sequence[int]):
        super().__init__(config, queries, num_classes, channels)
        segments = isinstance(config, RfDetrSegConfig)
        self.mask_head = MaskHead(config.hidden, config.decoder_layers) if segments else None

    def projector_norm(self, config: LwDetrConfig) -> Norm:
        assert isinstance(config, RfDetrConfig)
        return partial(ChannelNorm, eps=config.norm_epsilon)

    def segment(
        self, predictions: Predictions, outputs: Tensor, proposed: Tensor, feature: Tensor, padding: Tensor
    ) -> Predictions:
        if self.mask_head is None:
            return predictions
        size = [side // LayerMasks.stride for side in padding.shape[1:]]
        feature = F.interpolate(feature, size, mode="bilinear")  # [B, c, h, w]
        masks, of_proposals = self.mask_head(feature, outputs, proposed)
        assert predictions.proposals is not None
        return replace(predictions, masks=masks, proposals=replace(predictions.proposals, masks=of_proposals))
