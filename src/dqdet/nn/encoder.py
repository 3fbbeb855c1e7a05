"""Transformer encoders over feature maps: dense (DETR) and deformable (Deformable-DETR)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqdet.nn.attention import Attention
from dqdet.nn.deformable import DeformableAttention
from dqdet.nn.init import xavier_
from dqdet.nn.padding import valid_ratios
from dqdet.nn.position import sine_position
from dqdet.nn.sampling import Shapes

Activation = Callable[[], nn.Module]  # makes the activation of one layer


@dataclass
class DenseMemory:
    """What :class:`DenseEncoder` leaves for decoders."""

    tokens: Tensor  # [B, S, c], the cells row by row
    position: Tensor  # [B, S, c]
    padding: Tensor  # [B, S] bool
    shape: tuple[int, int]  # height and width of the map

    @property
    def map(self) -> Tensor:
        """The cells as a feature map, ``[B, c, h, w]``."""
        return self.tokens.transpose(1, 2).unflatten(2, self.shape)


@dataclass
class Memory:
    """What :class:`DeformableEncoder` leaves for decoders."""

    tokens: Tensor  # [B, S, c], the levels one after the other
    shapes: Shapes  # height and width of the L levels
    padding: Tensor  # [B, S] bool
    ratios: Tensor  # [B, L, 2], the valid part of each level's width and height

    @property
    def coarsest(self) -> Tensor:
        """The last level as a feature map, ``[B, c, h, w]``."""
        height, width = self.shapes[-1]
        return self.tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


class FeedForward(nn.Module):
    """The two linear layers at the end of every transformer layer, with the residual and the norm after it."""

    def __init__(self, hidden: int, feedforward: int, dropout: float, activation: Activation = nn.ReLU):
        super().__init__()
        self.linear1 = xavier_(nn.Linear(hidden, feedforward))
        self.activation = activation()
        self.linear2 = xavier_(nn.Linear(feedforward, hidden))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(x)))
        return self.norm(x + self.dropout(self.linear2(hidden)))


class EncoderLayer(nn.Module):
    """Self-attention over all cells of a feature map; positions enter queries and keys, not values."""

    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float, activation: Activation = nn.ReLU):
        super().__init__()
        self.self_attn = Attention(hidden, heads, dropout)
        self.norm1 = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.feedforward = FeedForward(hidden, feedforward, dropout, activation)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        """``x`` and ``position [B, S, c]``, ``padding [B, S]`` -> ``[B, S, c]``."""
        query = x + position
        x = self.norm1(x + self.dropout(self.self_attn(query, query, x, padding=padding)))
        return self.feedforward(x)


class DenseEncoder(nn.Module):
    """DETR's encoder: all cells of one feature map see each other.

    Args:
        hidden, heads, feedforward, dropout: as in ``TransformerConfig``.
        depth: number of layers.
        temperature: of the position encoding.
        activation: of the feed-forward layers.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        feedforward: int,
        dropout: float,
        depth: int,
        temperature: float = 10000,
        activation: Activation = nn.ReLU,
    ):
        super().__init__()
        self.temperature = temperature
        self.layers = nn.ModuleList(EncoderLayer(hidden, heads, feedforward, dropout, activation) for _ in range(depth))

    def forward(self, feature: Tensor, padding: Tensor) -> DenseMemory:
        """Encode ``feature [B, c, h, w]`` with its ``padding [B, h, w]``."""
        dtype = next(self.parameters()).dtype  # float32 under autocast, too
        position = sine_position(padding, feature.shape[1], self.temperature).flatten(1, 2).to(dtype)  # [B, S, c]
        tokens, cells = flatten_maps([feature]), padding.flatten(1)  # [B, S, c], [B, S]
        for layer in self.layers:
            tokens = layer(tokens, self.scale(position, tokens), cells)
        return DenseMemory(tokens, position, cells, (feature.shape[2], feature.shape[3]))

    def scale(self, position: Tensor, tokens: Tensor) -> Tensor:
        """The positions that a layer adds to its input: ``[B, S, c], [B, S, c] -> [B, S, c]``."""
        return position


class DeformableEncoderLayer(nn.Module):
    """Every cell of every level reads a few points around itself from all levels."""

    def __init__(self, hidden: int, heads: int, feedforward: int, dropout: float, levels: int, points: int):
        super().__init__()
        self.self_attn = DeformableAttention(hidden, heads, levels, points)
        self.norm1 = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.feedforward = FeedForward(hidden, feedforward, dropout)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, shapes: Shapes, padding: Tensor) -> Tensor:
        """``x`` and ``position [B, S, c]``, ``reference [B, S, L, 2]``, ``padding [B, S]`` -> ``[B, S, c]``."""
        attended = self.self_attn(x + position, reference, x, shapes, padding)
        return self.feedforward(self.norm1(x + self.dropout(attended)))


class DeformableEncoder(nn.Module):
    """Deformable layers over several feature maps at once.

    Args:
        hidden, heads, feedforward, dropout, levels, points: as in ``DeformableDetrConfig``.
        depth: number of layers.
        shift: of the position encoding, in cells.
        temperature: of the position encoding.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        feedforward: int,
        dropout: float,
        levels: int,
        points: int,
        depth: int,
        shift: float = -0.5,
        temperature: float = 10000,
    ):
        super().__init__()
        self.shift, self.temperature = shift, temperature
        self.level_embed = nn.Parameter(torch.randn(levels, hidden))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(hidden, heads, feedforward, dropout, levels, points) for _ in range(depth)
        )

    def forward(self, maps: list[Tensor], paddings: list[Tensor]) -> Memory:
        """Encode ``maps``, L of ``[B, c, h, w]``, with their ``paddings``, L of ``[B, h, w]``."""
        memory = flatten_maps(maps)  # [B, S, c]
        positions = [
            sine_position(padding, memory.shape[-1], self.temperature, self.shift).flatten(1, 2).to(embed) + embed
            for padding, embed in zip(paddings, self.level_embed, strict=True)
        ]
        position = torch.cat(positions, 1)  # [B, S, c]
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        ratios = valid_ratios(paddings)  # [B, L, 2]
        padding = torch.cat([p.flatten(1) for p in paddings], 1)  # [B, S]
        # A cell's own place, as a fraction of the valid part, then as a fraction of each padded level.
        reference = cell_centres(shapes, ratios)[:, :, None] * ratios[:, None]  # [B, S, L, 2]
        for layer in self.layers:
            memory = layer(memory, position, reference, shapes, padding)
        return Memory(memory, shapes, padding, ratios)


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """Feature maps, L of ``[B, c, h, w]``, as one sequence of cells ``[B, S, c]``."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)


def cell_centres(shapes: Shapes, ratios: Tensor) -> Tensor:
    """Centres (x, y) of all cells, in 0..1 of the valid part of their level: ``[B, S, 2]``."""
    centres = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, device=ratios.device) + 0.5) / height
        x = (torch.arange(width, device=ratios.device) + 0.5) / width
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1)
        centres.append(grid / ratios[:, level, None])  # [B, h*w, 2]
    return torch.cat(centres, 1)
