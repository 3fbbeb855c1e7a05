"""Box geometry of matching and losses, batched and differentiable. Boxes are (cx, cy, w, h)."""

from __future__ import annotations

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """``(cx, cy, w, h) -> (x1, y1, x2, y2)``, ``[..., 4]``."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast: ``[..., 4], [..., 4] -> [...]``."""
    overlap, union = _overlap_and_union(corners(a), corners(b))
    return overlap / union


def generalized_iou(a: Tensor, b: Tensor, epsilon: float = 0.0) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of boxes that broadcast: ``[..., 4], [..., 4] -> [...]``.

    Args:
        epsilon: added to both denominators, as the DAB models do.
    """
    a, b = corners(a), corners(b)
    overlap, union = _overlap_and_union(a, b)
    hull = _area(torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2]))
    return overlap / (union + epsilon) - (hull - union) / (hull + epsilon)


def _overlap_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas ``[...]``, from corners ``[..., 4]``."""
    area_a = _area(a[..., 2:] - a[..., :2])
    area_b = _area(b[..., 2:] - b[..., :2])
    overlap = _area((torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0))
    return overlap, area_a + area_b - overlap


def _area(sides: Tensor) -> Tensor:
    """``[..., 2] -> [...]``; the backward pass of ``prod`` would ask the device whether there are zeros, and wait."""
    width, height = sides.unbind(-1)
    return width * height
