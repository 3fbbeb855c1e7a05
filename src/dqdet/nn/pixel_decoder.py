"""The multi-scale deformable pixel decoder of Mask2Former (Cheng et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.nn.encoder import DeformableEncoder
from dqdet.nn.group_norm import GroupNorm
from dqdet.nn.padding import resize_padding

GROUPS = 32  # of the group norms


class PixelFeatures(NamedTuple):
    """What :class:`PixelDecoder` leaves for the transformer decoder and for the masks."""

    maps: list[Tensor]  # [B, c, h, w] at strides 32, 16 and 8
    paddings: list[Tensor]  # [B, h, w] bool, of the same
    mask_features: Tensor  # [B, d, h, w] at stride 4
    projected: Tensor  # [B, c, h, w] at stride 32, before the encoder


class PixelDecoder(nn.Module):
    """Deformable attention over three levels, and one step of a feature pyramid down to stride 4.

    Args:
        hidden, heads, feedforward, dropout, points: as in ``Mask2FormerConfig``.
        depth: layers of the deformable encoder.
        channels: of the backbone's maps at strides 4, 8, 16 and 32.
        mask_channels: width d of the mask features.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        feedforward: int,
        dropout: float,
        points: int,
        depth: int,
        channels: Sequence[int],
        mask_channels: int,
    ):
        super().__init__()
        stride4, *coarser = channels
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, hidden, 1), GroupNorm(GROUPS, hidden)) for c in reversed(coarser)
        )
        self.encoder = DeformableEncoder(
            hidden, heads, feedforward, dropout, levels=len(coarser), points=points, depth=depth, shift=0.0
        )
        self.lateral = nn.Sequential(nn.Conv2d(stride4, hidden, 1, bias=False), GroupNorm(GROUPS, hidden))
        self.output = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False), GroupNorm(GROUPS, hidden), nn.ReLU()
        )
        self.mask_proj = nn.Conv2d(hidden, mask_channels, 1)
        self._reset_parameters()
        # The layout of the backbone's maps, and of tokens. PyTorch's type stubs do not know this argument.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _reset_parameters(self) -> None:
        for projection in self.input_proj.modules():
            if isinstance(projection, nn.Conv2d):
                nn.init.xavier_uniform_(projection.weight)
                assert projection.bias is not None
                nn.init.zeros_(projection.bias)
        for conv in (self.lateral[0], self.output[0], self.mask_proj):
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_uniform_(conv.weight, a=1)
        assert self.mask_proj.bias is not None
        nn.init.zeros_(self.mask_proj.bias)

    def forward(self, features: list[Tensor], padding: Tensor) -> PixelFeatures:
        """Decode ``features``, ``[B, C, h, w]`` at strides 4, 8, 16, 32, with image padding ``[B, H, W]``."""
        stride4, *coarser = features
        projected = [projection(x) for projection, x in zip(self.input_proj, reversed(coarser), strict=True)]
        paddings = [resize_padding(padding, x) for x in projected]
        memory = self.encoder(projected, paddings)
        levels = memory.tokens.split([h * w for h, w in memory.shapes], 1)  # of [B, h*w, c]
        maps = [x.transpose(1, 2).unflatten(2, shape) for x, shape in zip(levels, memory.shapes, strict=True)]
        upsampled = F.interpolate(maps[-1], size=stride4.shape[2:], mode="bilinear")  # [B, c, h, w] at stride 4
        mask_features = self.mask_proj(self.output(self.lateral(stride4) + upsampled))
        return PixelFeatures(maps, paddings, mask_features, projected[0])
