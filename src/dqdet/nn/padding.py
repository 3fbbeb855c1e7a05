"""Padding masks on feature maps. True = padded, everywhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_padding(padding: Tensor, feature: Tensor) -> Tensor:
    """Image padding ``[B, H, W]`` at the size of a feature map ``[B, C, h, w]``: ``[B, h, w]`` (nearest, as published)."""
    return F.interpolate(padding[:, None].float(), size=feature.shape[2:])[:, 0].bool()


def valid_ratios(paddings: list[Tensor]) -> Tensor:
    """The part of each map that holds image.

    Args:
        paddings: one ``[B, h, w]`` a level.

    Returns:
        ``[B, levels, 2]``: valid width / w, valid height / h.
    """
    ratios = []
    for padding in paddings:
        valid = ~padding
        ratios.append(torch.stack([valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)], -1))  # [B, 2]
    return torch.stack(ratios, 1)
