"""Boxes as the decoders handle them: before and after the sigmoid."""

from __future__ import annotations

from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of ``x`` in 0..1, with ``x`` and ``1 - x`` kept above ``eps``."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()
