"""The sampling operator of multi-scale deformable attention (Zhu et al., 2021, Eq. 3).

One function, :func:`sample`, with one reference and two faster forms of it:

- :func:`sample_reference` says what is computed; it runs on any device, exports, and the tests compare the
  others with it in value and gradient.
- :func:`sample_gather` reads the four corners of every point from one flat table. ``torch.compile`` fuses it into
  a kernel that never stores the corners; it runs on GPUs where Triton can compile.
- ``sample_loops`` are the same sums as plain loops, compiled by numba: one pass forward, one backward, without
  atomics, because no two threads share a head. They run on CPUs.

Letters: B images, S memory positions over all levels, H heads, D channels of a head, Q queries, L levels,
P points a level. ``locations`` are (x, y) in 0..1 of the padded map; what lies outside counts as zero.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = list[tuple[int, int]]  # height, width of every level


def sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples.

    Args:
        value: ``[B, S, H, D]``, the levels one after the other, each row by row.
        shapes: height and width of the L levels; their areas sum to S.
        locations: ``[B, Q, H, L, P, 2]``.
        weights: ``[B, Q, H, L, P]``.

    Returns:
        ``[B, Q, H * D]`` in the type of ``value``.
    """
    if torch.compiler.is_exporting():
        return sample_reference(value, shapes, locations, weights)
    if value.device.type == "cpu":
        exact = torch.float64 if value.dtype == torch.float64 else torch.float32
        flat_shapes = [size for shape in shapes for size in shape]
        sampled = _sample_loops(value.to(exact), flat_shapes, locations.to(exact), weights.to(exact))
        return sampled.to(value.dtype)
    if value.device.type == "cuda" and _can_compile():
        return _compiled_gather()(value, shapes, locations, weights)
    return sample_reference(value, shapes, locations, weights)


def sample_reference(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """:func:`sample` by ``grid_sample``, level by level."""
    B, _, H, D = value.shape
    Q = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1).to(value.dtype)  # [B*H, Q, L, P, 2]
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], 1)):
        image = part.permute(0, 2, 3, 1).reshape(B * H, D, *shapes[level])  # [B*H, D, h, w]
        sampled.append(F.grid_sample(image, grids[:, :, level], padding_mode="zeros", align_corners=False))
    points = torch.stack(sampled, 3)  # [B*H, D, Q, L, P]
    per_head = weights.transpose(1, 2).flatten(0, 1)[:, None].to(value.dtype)  # [B*H, 1, Q, L, P]
    return (points * per_head).sum((-2, -1)).view(B, H * D, Q).transpose(1, 2)


def sample_gather(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """:func:`sample` by gathers from the flat table of all levels."""
    B, _, H, _ = value.shape
    sizes = locations.new_tensor([[w, h] for h, w in shapes])[:, None]  # [L, 1, 2]
    areas = torch.tensor([0] + [h * w for h, w in shapes[:-1]], device=value.device)
    first_row = areas.cumsum(0)[:, None]  # [L, 1]
    corner = (locations * sizes - 0.5).floor()
    fraction = locations * sizes - 0.5 - corner  # [B, Q, H, L, P, 2]
    batch = torch.arange(B, device=value.device)[:, None, None, None]
    head = torch.arange(H, device=value.device)[:, None]
    result = value.new_zeros(())
    for dx in (0, 1):
        for dy in (0, 1):
            at = corner + corner.new_tensor([dx, dy])
            inside = ((at >= 0) & (at < sizes)).all(-1)
            cell = at.clamp(min=0).minimum(sizes - 1).long()
            row = first_row + cell[..., 1] * sizes[..., 0].long() + cell[..., 0]  # [B, Q, H, L, P]
            share = (fraction[..., 0] if dx else 1 - fraction[..., 0]) * (
                fraction[..., 1] if dy else 1 - fraction[..., 1]
            )
            factor = (share * weights * inside).flatten(3).to(value.dtype)  # [B, Q, H, L*P]
            result = result + (value[batch, row.flatten(3), head] * factor[..., None]).sum(3)  # [B, Q, H, D]
    return result.flatten(2)


@cache
def _can_compile() -> bool:
    """Triton builds its launchers with a C compiler, which images for deployment often lack."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and find_spec("triton") is not None


@cache
def _compiled_gather() -> Callable[..., Tensor]:
    return torch.compile(sample_gather, dynamic=True)


# Comparisons with NaN must stay false in the kernels, or a NaN location would read outside the table: hence not
# the whole of fastmath.
_FAST = {"contract", "reassoc", "arcp", "nsz"}


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _forward_rows(value, shapes, locations, weights, result, first, last):
    """Fill ``result [B, Q, H, D]`` for the rows ``first .. last - 1`` of the B * Q queries."""
    Q, H, L, P = locations.shape[1:5]
    D = value.shape[3]
    for row in range(first, last):
        b, q = row // Q, row % Q
        for h in range(H):
            result[b, q, h, :] = 0
            start = 0
            for level in range(L):
                height, width = shapes[level, 0], shapes[level, 1]
                for p in range(P):
                    x = locations[b, q, h, level, p, 0] * width - 0.5
                    y = locations[b, q, h, level, p, 1] * height - 0.5
                    if not (x > -1 and x < width and y > -1 and y < height):
                        continue
                    x0, y0 = int(np.floor(x)), int(np.floor(y))
                    for corner in range(4):
                        dx, dy = corner & 1, corner >> 1
                        cx, cy = x0 + dx, y0 + dy
                        if cx < 0 or cx >= width or cy < 0 or cy >= height:
                            continue
                        factor = weights[b, q, h, level, p] * (1 - abs(x - cx)) * (1 - abs(y - cy))
                        factor = value.dtype.type(factor)
                        s = start + cy * width + cx
                        for d in range(D):
                            result[b, q, h, d] += factor * value[b, s, h, d]
                start += height * width


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _backward_heads(grad, value, shapes, locations, weights, grad_value, grad_locations, grad_weights, first, last):
    """Add the gradients of the heads ``first .. last - 1`` of the B * H heads to arrays of zeros."""
    Q, H, L, P = locations.shape[1:5]
    D = value.shape[3]
    for head in range(first, last):
        b, h = head // H, head % H
        for q in range(Q):
            start = 0
            for level in range(L):
                height, width = shapes[level, 0], shapes[level, 1]
                for p in range(P):
                    x = locations[b, q, h, level, p, 0] * width - 0.5
                    y = locations[b, q, h, level, p, 1] * height - 0.5
                    if not (x > -1 and x < width and y > -1 and y < height):
                        continue
                    weight = weights[b, q, h, level, p]
                    x0, y0 = int(np.floor(x)), int(np.floor(y))
                    for corner in range(4):
                        dx, dy = corner & 1, corner >> 1
                        cx, cy = x0 + dx, y0 + dy
                        if cx < 0 or cx >= width or cy < 0 or cy >= height:
                            continue
                        share_x, share_y = 1 - abs(x - cx), 1 - abs(y - cy)
                        factor = value.dtype.type(weight * share_x * share_y)
                        s = start + cy * width + cx
                        product = value.dtype.type(0)  # of the output's gradient and the corner's value
                        for d in range(D):
                            product += grad[b, q, h, d] * value[b, s, h, d]
                            grad_value[b, s, h, d] += factor * grad[b, q, h, d]
                        grad_weights[b, q, h, level, p] += product * share_x * share_y
                        grad_locations[b, q, h, level, p, 0] += product * weight * share_y * (2 * dx - 1) * width
                        grad_locations[b, q, h, level, p, 1] += product * weight * share_x * (2 * dy - 1) * height
                start += height * width


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "dqdet-sample")


def _in_parallel(kernel: Callable[..., None], arguments: tuple[np.ndarray, ...], total: int) -> None:
    """Run ``kernel(*arguments, first, last)`` over ``total`` items in as many threads as PyTorch uses."""
    count = min(torch.get_num_threads(), total)
    if count <= 1:
        kernel(*arguments, 0, total)
        return
    bounds = [total * i // count for i in range(count + 1)]
    jobs = [_threads(count).submit(kernel, *arguments, *bounds[i : i + 2]) for i in range(count)]
    for job in jobs:
        job.result()


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


@torch.library.custom_op("dqdet::sample_loops", mutates_args=())
def _sample_loops(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    B, _, H, D = value.shape
    Q = locations.shape[1]
    result = value.new_empty(B, Q, H, D)
    v, at, w, out = _arrays(value, locations, weights, result)
    _in_parallel(_forward_rows, (v, np.array(shapes).reshape(-1, 2), at, w, out), B * Q)
    return result.flatten(2)


@_sample_loops.register_fake
def _(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("dqdet::sample_loops_backward", mutates_args=())
def _sample_loops_backward(
    grad: Tensor, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, H, D = value.shape
    grads = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in (value, locations, weights))
    inputs = _arrays(grad.unflatten(-1, (H, D)), value)
    at_and_weights = _arrays(locations, weights)
    arguments = (*inputs, np.array(shapes).reshape(-1, 2), *at_and_weights, *(g.numpy() for g in grads))
    _in_parallel(_backward_heads, arguments, B * H)
    return grads[0], grads[1], grads[2]


@_sample_loops_backward.register_fake
def _(grad: Tensor, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor):
    return torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)


def _keep(ctx, inputs, output) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad: Tensor):
    value, locations, weights = ctx.saved_tensors
    grads = torch.ops.dqdet.sample_loops_backward(grad, value, ctx.shapes, locations, weights)
    return grads[0], None, grads[1], grads[2]


_sample_loops.register_autograd(_backward, setup_context=_keep)
