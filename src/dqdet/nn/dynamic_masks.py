"""Masks by dynamic convolutions: each query brings the parameters of a small network of its own that reads the maps.

Tian et al., "Conditional Convolutions for Instance Segmentation", ECCV 2020, as SeqFormer has it: one set of
parameters a query, used on every frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.types import Masks, rows

FEATURE_STRIDE = 8  # of the mask features, in pixels
WIDTH = 8  # channels between the three dynamic layers


def parameter_count(channels: int) -> int:
    """Parameters of the dynamic layers that read ``channels`` mask features and two relative coordinates."""
    return (channels + 2) * WIDTH + WIDTH * WIDTH + WIDTH + 2 * WIDTH + 1


@dataclass
class DynamicMasks(Masks):
    """The embedding of a query is the parameters of its convolutions, ``[L, B, Q, parameter_count(c)]``."""

    centres: Tensor  # [L, B, Q, T, 2] x, y in pixels

    def of(self, layer: int | Tensor, image: int, queries: Tensor) -> Tensor:
        place = (layer, image, queries)
        return dynamic_masks(self.embeddings[place][None], self.features[image, None], self.centres[place][None])[0]

    def chosen(self, queries: Tensor) -> Tensor:
        centres = rows(self.centres[0].flatten(2), queries).unflatten(2, (-1, 2))  # [B, K, T, 2]
        return dynamic_masks(rows(self.embeddings[0], queries), self.features, centres)

    def narrow(self, axis: int, start: int, size: int) -> Self:
        return replace(super().narrow(axis, start, size), centres=self.centres.narrow(axis, start, size))


def dynamic_masks(parameters: Tensor, features: Tensor, centres: Tensor) -> Tensor:
    """Masks of M queries of every clip, from three 1x1 convolutions with ReLU between them.

    The first layer also reads how far each cell is from the query's centre. It is linear, so its parts are added as
    maps that broadcast, and the features of a clip are never repeated for every query.

    Args:
        parameters: ``[B, M, parameter_count(c)]``: all weights, then all biases.
        features: ``[B, T, c, h, w]`` at stride 8.
        centres: ``[B, M, T, 2]``, (x, y) in pixels.

    Returns:
        Logits ``[B, M, T, 2h, 2w]``, at stride 4.
    """
    c = features.shape[2]
    with torch.autocast(features.device.type, enabled=False):  # half precision has too few digits for pixels
        parameters, features, centres = parameters.float(), features.float(), centres.float()
        sizes = [(2 + c) * WIDTH, WIDTH * WIDTH, WIDTH, WIDTH, WIDTH, 1]
        first, second, third, *biases = parameters.split(sizes, 2)
        of_place, of_features = first.unflatten(2, (WIDTH, 2 + c)).split([2, c], 3)  # [B, M, 8, 2], [B, M, 8, c]
        x, y = (_offsets(centres[..., axis], features.shape[4 - axis]) for axis in (0, 1))  # [B, M, T, w], [B, M, T, h]
        maps = torch.einsum("bmkc,btchw->bmkthw", of_features, features)
        maps = maps + (of_place[..., 0, None, None] * x[:, :, None])[..., None, :]  # [B, M, 8, T, h, w]
        maps = maps + (of_place[..., 1, None, None] * y[:, :, None] + biases[0][..., None, None])[..., None]
        cells = maps.relu().flatten(3).flatten(0, 1)  # [B*M, 8, T*h*w]
        second, third, *biases = (x.flatten(0, 1) for x in (second, third, *biases))  # [B*M, ...]
        cells = torch.baddbmm(biases[1][..., None], second.unflatten(1, (WIDTH, WIDTH)), cells).relu()
        logits = torch.baddbmm(biases[2][..., None], third[:, None], cells)  # [B*M, 1, T*h*w]
        return upsample(logits.view(*maps.shape[:2], *maps.shape[3:]))


def _offsets(centres: Tensor, cells: int) -> Tensor:
    """How far the centres of cells lie from those of queries along one axis, in pixels: ``[..., T, cells]``."""
    return centres[..., None] - FEATURE_STRIDE * (torch.arange(cells, device=centres.device) + 0.5)


def upsample(maps: Tensor) -> Tensor:
    """Twice the size, bilinear, with every second cell a copy: ``[..., h, w] -> [..., 2h, 2w]``.

    The others are the means of a copy and the copy before it, as published.
    """
    for axis in (-2, -1):
        before = torch.cat([maps.narrow(axis, 0, 1), maps.narrow(axis, 0, maps.shape[axis] - 1)], axis)
        maps = torch.stack([(before + maps) / 2, maps], axis).flatten(axis - 1, axis)
    return maps


class MaskFeatures(nn.Module):
    """What dynamic convolutions read, from the encoder's maps at strides 32, 16 and 8.

    From coarse to fine, each map is added to the upsampled one before it, and convolved.

    Args:
        hidden: channels of the maps; the features have a 32nd of them.
    """

    def __init__(self, hidden: int):
        super().__init__()
        widths = [hidden, hidden, hidden, hidden, hidden // 4, hidden // 32]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: list[Tensor], paddings: list[Tensor]) -> Tensor:
        """From maps ``[B, hidden, h, w]`` and their paddings ``[B, h, w]``, finest first: ``[B, hidden / 32, h, w]``.

        Padded cells are zero in every layer, like the cells beyond the border.
        """
        levels = list(zip(maps, paddings, strict=True))[::-1]
        x = torch.zeros_like(maps[-1])
        for conv, (feature, padding) in zip(self.convs, levels, strict=False):
            x = feature + F.interpolate(x, size=feature.shape[2:], mode="nearest")
            x = conv(x.masked_fill(padding[:, None], 0)).relu()
        for conv in self.convs[len(levels) :]:
            x = conv(x.masked_fill(paddings[0][:, None], 0)).relu()
        return x
