"""Boxes as the decoders handle them: before and after the sigmoid."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of ``x`` in 0..1, with ``x`` and ``1 - x`` kept above ``eps``."""
    return (x.clamp(eps, 1) / (1 - x).clamp(eps, 1)).log()


def boxes_around(origin: Tensor, offsets: Tensor) -> Tensor:
    """Boxes in 0..1 from offsets to an origin, both before the sigmoid.

    Args:
        origin: points ``[..., 2]`` or boxes ``[..., 4]``.
        offsets: ``[..., 4]``; beside a point, the last two are the size itself.
    """
    if origin.shape[-1] == 2:
        origin = F.pad(origin, (0, 2))
    return (origin + offsets).sigmoid()
