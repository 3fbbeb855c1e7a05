"""The sizes of feature maps, as numbers and on the device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Shapes = list[tuple[int, int]]  # height, width of every level


def level_sizes(shapes: Shapes, like: Tensor) -> Tensor:
    """Width and height of every level on the device of ``like``: ``[L, 2]`` int32.

    Made once for all maps of the same sizes, and without a copy from the host, which would wait for the device.
    Compilers and tensors without data get a new one, in which the sizes stay symbols.
    """
    sides = tuple(side for height, width in shapes for side in (width, height))
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or type(like) not in (Tensor, torch.nn.Parameter):
        return _filled(sides, like).view(-1, 2)
    return _kept(sides, like.device).view(-1, 2)


def _filled(sides: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.stack([like.new_full((), side, dtype=torch.int32) for side in sides])  # [2 L]


@lru_cache(maxsize=1024)  # of half a kilobyte each
def _kept(sides: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or no later training could keep it for its backward pass
        return _filled(sides, torch.empty((), device=device))
