"""The sampling operator of multi-scale deformable attention (Zhu et al., 2021, Eq. 3).

One function, :func:`sample`, with one reference and two faster forms of it:

- :func:`sample_reference` says what is computed; it runs on any device, exports, and the tests compare the
  others with it in value and gradient.
- ``loops`` are the same sums as plain loops, compiled by numba: one pass forward, one backward, without atomics,
  because no two threads share a head. They run on CPUs.
- ``triton_kernels`` run on GPUs where Triton can compile: one kernel forward, one backward.

The fast forms are one operator, ``torch.ops.dqdet.sample``, which compilers take as it is, whatever the sizes of the
maps. It keeps its inputs for the backward pass and nothing else.

Letters: B images, S memory positions over all levels, H heads, D channels of a head, Q queries, L levels,
P points a level. ``locations`` are (x, y) in 0..1 of the padded map; what lies outside counts as zero.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from dqdet.nn.sampling.levels import Shapes, level_sizes
from dqdet.nn.sampling.operator import sample_operator
from dqdet.nn.sampling.reference import exact_type, sample_reference

__all__ = ["Shapes", "level_sizes", "sample", "sample_reference"]


def sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples.

    Locations, weights and sums are float32 whatever the type of ``value``: a place in a map needs more than the 8
    bits of bfloat16. Only double precision stays double.

    Args:
        value: ``[B, S, H, D]``, the levels one after the other, each row by row.
        shapes: height and width of the L levels; their areas sum to S.
        locations: ``[B, Q, H, L, P, 2]``; points at NaN read nothing.
        weights: ``[B, Q, H, L, P]``.

    Returns:
        ``[B, Q, H * D]`` in the type of ``value``.
    """
    if not _runs_kernels(value.device.type):
        return sample_reference(value, shapes, locations, weights)
    exact = exact_type(value)
    sides = [side for shape in shapes for side in shape]
    return sample_operator(value, sides, locations.to(exact), weights.to(exact))


@torch.compiler.assume_constant_result  # torch.compile on its own takes everything for an export
def _runs_kernels(device: str) -> bool:
    return not torch.compiler.is_exporting() and (device == "cpu" or (device == "cuda" and _triton_compiles()))


@cache
def _triton_compiles() -> bool:
    """Triton builds its launchers with a C compiler and Python's headers, which images for deployment often lack."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return compiler is not None and headers.exists() and find_spec("triton") is not None
