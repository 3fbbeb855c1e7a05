"""Sine position encodings of feature maps and of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _interleaved(angles: Tensor) -> Tensor:
    """Sine at even and cosine at odd channels: ``[..., c] -> [..., c]``."""
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)


def _periods(channels: int, temperature: float, device: torch.device) -> Tensor:
    exponent = torch.arange(channels, device=device) // 2 * 2 / channels
    return temperature**exponent  # [channels]


def sine_position(padding: Tensor, channels: int, temperature: float = 10000, shift: float = 0.0) -> Tensor:
    """Position encoding of a feature map, counted over its valid cells (Carion et al., 2020, appendix A.4).

    Args:
        padding: ``[B, h, w]`` bool.
        channels: even; the first half encodes y, the second x.
        temperature: of the geometric series of periods.
        shift: added to the cell number, which starts at 1; -0.5 puts positions at cell centres.

    Returns:
        ``[B, h, w, channels]``.
    """
    valid = (~padding).float()
    periods = _periods(channels // 2, temperature, padding.device)
    encoded = []
    for axis in (1, 2):
        position = valid.cumsum(axis)  # [B, h, w]
        last = position.narrow(axis, position.shape[axis] - 1, 1)
        scaled = (position + shift) / (last + 1e-6) * (2 * math.pi)
        encoded.append(_interleaved(scaled[..., None] / periods))  # [B, h, w, channels / 2]
    return torch.cat(encoded, -1)


def frame_position(frames: int, channels: int, device: torch.device) -> Tensor:
    """Position encoding of the frames of a clip, on all channels, as Mask2Former for video adds it: ``[T, channels]``.

    As in :func:`sine_position`, numbers start at 1 and are relative to the last.
    """
    scaled = torch.arange(1, frames + 1, device=device) / (frames + 1e-6) * (2 * math.pi)
    return _interleaved(scaled[:, None] / _periods(channels, 10000, device))


def sine_embedding(coordinates: Tensor, channels: int, temperature: float = 10000) -> Tensor:
    """Encoding of coordinates in 0..1: ``[..., k] -> [..., k * channels]``, in the order of the coordinates."""
    angles = coordinates[..., None] * (2 * math.pi) / _periods(channels, temperature, coordinates.device)
    return _interleaved(angles).flatten(-2)


def anchor_embedding(anchors: Tensor, channels: int) -> Tensor:
    """Encoding of boxes (cx, cy, w, h) in 0..1: ``[..., 4] -> [..., 4 * channels]``, y before x as in feature maps."""
    return sine_embedding(torch.cat([anchors[..., :2].flip(-1), anchors[..., 2:]], -1), channels)
