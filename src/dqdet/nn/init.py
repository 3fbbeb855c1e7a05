"""How weights start."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def xavier_(module: M, parts: int = 1) -> M:
    """Glorot-uniform weights in place of PyTorch's, as all published transformers of the family start.

    Args:
        module: its matrices are drawn anew; biases and norms stay.
        parts: independent layers that each matrix stacks; each is drawn as a layer of its own.

    Returns:
        The module.
    """
    for parameter in module.parameters():
        if parameter.dim() > 1:
            for part in parameter.detach().chunk(parts):
                nn.init.xavier_uniform_(part)
    return module
