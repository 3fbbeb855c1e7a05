"""Feature maps of a backbone as the levels of a deformable transformer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dqdet.nn.group_norm import GroupNorm


class Levels(nn.ModuleList):
    """Projections of the backbone's maps to a common width, and strided convolutions for the levels beyond them.

    Args:
        channels: of the backbone's maps.
        hidden: the common width c, a multiple of 32.
        levels: L.
    """

    def __init__(self, channels: Sequence[int], hidden: int, levels: int):
        super().__init__(
            _projection(channels[level], hidden, kernel=1)
            if level < len(channels)
            else _projection(channels[-1] if level == len(channels) else hidden, hidden, kernel=3)
            for level in range(levels)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Backbone maps ``[B, C, h, w]`` -> L of ``[B, c, h, w]``."""
        maps = [projection(x) for projection, x in zip(self, features, strict=False)]
        coarsest = features[-1]
        for projection in list(self)[len(features) :]:
            coarsest = projection(coarsest)
            maps.append(coarsest)
        return maps


def _projection(channels: int, hidden: int, kernel: int) -> nn.Sequential:
    """To the common width; a kernel of 3 also halves the map."""
    conv = nn.Conv2d(channels, hidden, kernel, stride=2 if kernel == 3 else 1, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, GroupNorm(32, hidden))
