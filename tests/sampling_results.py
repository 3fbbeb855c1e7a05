"""What a form of sampling computes, for comparison with another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dqdet.nn.sampling import Shapes


def results(
    function: Callable[..., Tensor], value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
) -> list[Tensor]:
    """Output and the three gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in (value, locations, weights)]
    output = function(leaves[0], shapes, *leaves[1:])
    gradient = torch.linspace(-1, 1, output.numel(), dtype=torch.float64, device=output.device)
    output.backward(gradient.view_as(output).to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
