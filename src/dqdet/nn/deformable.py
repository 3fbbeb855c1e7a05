"""Multi-scale deformable attention (Zhu et al., 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dqdet.nn.sampling import Shapes, level_sizes, sample


class DeformableAttention(nn.Module):
    """Each query reads a few points around its reference from every level (Eq. 3 of the paper)."""

    def __init__(self, hidden: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(hidden, heads * levels * points * 2)
        self.attention_weights = nn.Linear(hidden, heads * levels * points)
        self.value_proj = nn.Linear(hidden, hidden)
        self.output_proj = nn.Linear(hidden, hidden)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        # Head h looks in direction h, its point p at distance p + 1, with equal weights.
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)  # [heads, 2]
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.points + 1.0)
        offsets = directions[:, None, None] * distances[:, None]  # [heads, 1, points, 2]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: Shapes, padding: Tensor) -> Tensor:
        """What the queries read, projected: ``[B, Q, c]``; see :meth:`read`."""
        return self.output_proj(self.read(query, reference, memory, shapes, padding))

    def read(self, query: Tensor, reference: Tensor, memory: Tensor, shapes: Shapes, padding: Tensor) -> Tensor:
        """What the queries read, before the output projection.

        Args:
            query: ``[B, Q, c]``, position included.
            reference: ``[B, Q, L, 2]`` points or ``[B, Q, L, 4]`` boxes (cx, cy, w, h), in 0..1 of each level's
                padded map.
            memory: ``[B, S, c]``, the levels one after the other.
            shapes: height and width of every level.
            padding: ``[B, S]`` bool, True = padded; such positions are read as zero.

        Returns:
            ``[B, Q, c]``, the heads one after the other.
        """
        value = self.value_proj(memory).masked_fill(padding[..., None], 0)
        value = value.unflatten(-1, (self.heads, -1))  # [B, S, heads, c / heads]
        per_head = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).to(reference.dtype)  # float32 from here on, under autocast too
        offsets = offsets.unflatten(-1, (*per_head, 2))  # [B, Q, heads, L, P, 2]
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, per_head[1:])  # [B, Q, heads, L, P]
        centre = reference[:, :, None, :, None, :2]  # [B, Q, 1, L, 1, 2]
        if reference.shape[-1] == 2:
            offsets = offsets / level_sizes(shapes, reference)[:, None]  # by [L, 1, 2]
        else:
            offsets = offsets * (reference[:, :, None, :, None, 2:] * (0.5 / self.points))
        return sample(value, shapes, centre + offsets, weights)
