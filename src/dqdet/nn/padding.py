"""Padding masks on feature maps. True = padded, everywhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_padding(padding: Tensor, feature: Tensor) -> Tensor:
    """Image padding ``[B, H, W]`` at the size of a feature map ``[B, C, h, w]``: ``[B, h, w]``, the nearest pixel's."""
    return F.interpolate(padding[:, None].float(), size=feature.shape[2:])[:, 0].bool()


def of_frames(x: Tensor, frames: int) -> Tensor:
    """What B clips have, for each of their T frames, one after the other: ``[B, ...] -> [B * T, ...]``."""
    return x[:, None].expand(-1, frames, *x.shape[1:]).flatten(0, 1)


def valid_sizes(padding: Tensor) -> Tensor:
    """Width and height of the unpadded part of ``padding [B, H, W]``: ``[B, 2]``."""
    return torch.stack([(~padding[:, 0]).sum(1), (~padding[:, :, 0]).sum(1)], -1)


def valid_ratios(paddings: list[Tensor]) -> Tensor:
    """The part of each map that holds image.

    Args:
        paddings: one ``[B, h, w]`` a level.

    Returns:
        ``[B, levels, 2]``: valid width / w, valid height / h.
    """
    ratios = []
    for padding in paddings:
        height, width = padding.shape[1:]
        valid_width, valid_height = valid_sizes(padding).unbind(-1)  # [B]
        ratios.append(torch.stack([valid_width / width, valid_height / height], -1))  # [B, 2]
    return torch.stack(ratios, 1)
