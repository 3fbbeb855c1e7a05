"""What sampling computes, in PyTorch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dqdet.nn.sampling.levels import Shapes


def exact_type(value: Tensor) -> torch.dtype:
    """The type of locations, weights and sums."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def sample_reference(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """:func:`dqdet.nn.sampling.sample` by ``grid_sample``, level by level."""
    B, _, H, D = value.shape
    Q = locations.shape[1]
    exact = exact_type(value)
    known = torch.where((locations > -1) & (locations < 2), locations, -1)  # neither NaN nor infinite
    grids = (2 * known.to(exact) - 1).transpose(1, 2).flatten(0, 1)  # [B*H, Q, L, P, 2]
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], 1)):
        image = part.permute(0, 2, 3, 1).reshape(B * H, D, *shapes[level]).to(exact)  # [B*H, D, h, w]
        sampled.append(F.grid_sample(image, grids[:, :, level], padding_mode="zeros", align_corners=False))
    points = torch.stack(sampled, 3)  # [B*H, D, Q, L, P]
    per_head = weights.to(exact).transpose(1, 2).flatten(0, 1)[:, None]  # [B*H, 1, Q, L, P]
    summed = (points * per_head).sum((-2, -1))  # [B*H, D, Q]
    return summed.view(B, H * D, Q).transpose(1, 2).to(value.dtype)
