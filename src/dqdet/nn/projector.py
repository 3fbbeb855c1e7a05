"""The projector of LW-DETR (Chen et al., 2024, section 3.2): a pyramid of the maps of a plain transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # makes the norm of so many channels, of maps [B, c, h, w]


class ChannelNorm(nn.LayerNorm):
    """Layer norm of every cell of a map ``[B, c, h, w]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv(channels: int, out: int, kernel: int, norm: Norm, activation: type[nn.Module], stride: int = 1) -> nn.Module:
    """A convolution with its norm and its activation."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False), norm(out), activation()
    )


class C2f(nn.Module):
    """Convolutions after each other, and another one of all that they give (the block of YOLOv8).

    Args:
        channels: of the input.
        out: channels of the output.
        norm: after every convolution.
        depth: pairs of convolutions.
    """

    def __init__(self, channels: int, out: int, norm: Norm, depth: int = 3):
        super().__init__()
        half = out // 2
        self.split = conv(channels, 2 * half, 1, norm, nn.SiLU)
        self.steps = nn.ModuleList(
            nn.Sequential(conv(half, half, 3, norm, nn.SiLU), conv(half, half, 3, norm, nn.SiLU)) for _ in range(depth)
        )
        self.merge = conv((2 + depth) * half, out, 1, norm, nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, h, w] -> [B, out, h, w]``."""
        parts = list(self.split(x).chunk(2, 1))
        for step in self.steps:
            parts.append(step(parts[-1]))
        return self.merge(torch.cat(parts, 1))


def resample(channels: int, scale: float, norm: Norm) -> tuple[nn.Module, int]:
    """What brings a map to another size, and the channels that it has then."""
    match scale:
        case 2.0 if channels > 512:  # as published, to save operations
            first = conv(channels, channels // 2, 1, norm, nn.ReLU)
            return nn.Sequential(first, nn.ConvTranspose2d(channels // 2, channels // 4, 2, 2)), channels // 4
        case 2.0:
            return nn.Sequential(nn.ConvTranspose2d(channels, channels // 2, 2, 2)), channels // 2
        case 0.5:
            return nn.Sequential(conv(channels, channels, 3, norm, nn.ReLU, stride=2)), channels
    return nn.Identity(), channels


class LevelProjector(nn.Module):
    """All maps of the backbone as one level of the pyramid."""

    def __init__(self, channels: Sequence[int], hidden: int, scale: float, norm: Norm):
        super().__init__()
        resampled = [resample(c, scale, norm) for c in channels]
        self.resample = nn.ModuleList(module for module, _ in resampled)
        self.fuse = C2f(sum(c for _, c in resampled), hidden, norm)
        self.norm = ChannelNorm(hidden, eps=1e-6)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps ``[B, C, h, w]`` -> ``[B, hidden, scale * h, scale * w]``."""
        return self.norm(self.fuse(torch.cat([fit(x) for fit, x in zip(self.resample, features, strict=True)], 1)))
