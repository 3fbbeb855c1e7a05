"""Boxes as the decoders handle them: before and after the sigmoid, and relative to other boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of ``x`` in 0..1, with ``x`` and ``1 - x`` kept above ``eps``."""
    return (x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0)).log()


def boxes_around(origin: Tensor, offsets: Tensor) -> Tensor:
    """Boxes in 0..1 from offsets to an origin, both before the sigmoid.

    Args:
        origin: points ``[..., 2]`` or boxes ``[..., 4]``.
        offsets: ``[..., 4]``; beside a point, the last two are the size itself.
    """
    if origin.shape[-1] == 2:
        origin = F.pad(origin, (0, 2))
    return (origin + offsets).sigmoid()


def boxes_scaled(origin: Tensor, change: Tensor) -> Tensor:
    """Boxes relative to others, in units of their sizes (Girshick et al., "R-CNN", 2014); not kept within the image.

    Args:
        origin: ``[..., 4]``.
        change: ``[..., 4]``: how far the centre moves, and the logarithms of the factors on width and height.
    """
    centre, size = origin[..., :2], origin[..., 2:]
    return torch.cat([centre + change[..., :2] * size, change[..., 2:].exp() * size], -1)
