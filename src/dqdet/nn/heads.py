"""What turns a decoder's output into classes and boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dqdet.nn.mlp import MLP


def class_head(hidden: int, outputs: int) -> nn.Linear:
    """With a bias that makes objects rare at first: probability 0.01 (Lin et al., 2017, focal loss)."""
    head = nn.Linear(hidden, outputs)
    nn.init.constant_(head.bias, -math.log(99))
    return head


def box_head(hidden: int, size: float = 0.0) -> MLP:
    """Starts at the same output for all queries: no offset of the centre, and ``size`` before the sigmoid."""
    head = MLP(hidden, hidden, hidden, 4)
    nn.init.zeros_(head.last.weight)
    with torch.no_grad():
        head.last.bias.copy_(torch.tensor([0.0, 0.0, size, size]))
    return head


def in_float32(head: nn.Module, x: Tensor) -> Tensor:
    """The output of a small head that tells places, sizes or coefficients, in float32.

    bfloat16 has 8 bits for a place in an image of 1,333 pixels, so autocast is left out here. A head whose parameters
    are in half precision runs in that; with ``train.tf32`` GPUs round its products to TF32, as in the layers before it.
    """
    with torch.autocast(x.device.type, enabled=False):
        return head(x.to(next(head.parameters()).dtype)).float()
