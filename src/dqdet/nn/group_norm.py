"""Group norms of maps that may be as small as one cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """PyTorch's, of a single map of one cell, too.

    With one channel a group, a group is then one value, whose deviation from its mean is 0: the norm is the bias.
    PyTorch computes that for two such maps, and refuses to for one.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
