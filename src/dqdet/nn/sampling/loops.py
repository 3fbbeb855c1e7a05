"""Sampling on CPUs: plain loops, compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import numpy as np
import torch
from torch import Tensor

from dqdet.nn.sampling.reference import exact_type

# Comparisons with NaN must stay false in the kernels, or a NaN location would read outside the table: hence not
# the whole of fastmath.
_FAST = {"contract", "reassoc", "arcp", "nsz"}


def _compile(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled when first called, and kept on disk where there is a folder that can be written."""
    try:
        return numba.njit(nogil=True, cache=True, fastmath=_FAST)(function)
    except RuntimeError:  # no such folder
        return numba.njit(nogil=True, fastmath=_FAST)(function)


@_compile
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


@_compile
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


def forward(value: Tensor, sides: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The operator ``sample`` on a CPU."""
    B, _, H, D = value.shape
    Q = locations.shape[1]
    exact = value.to(exact_type(value))
    result = exact.new_empty(B, Q, H, D)
    v, at, w, out = _arrays(exact, locations, weights, result)
    _in_parallel(_forward_rows, (v, np.array(sides).reshape(-1, 2), at, w, out), B * Q)
    return result.flatten(2).to(value.dtype)


def backward(
    grad: Tensor, value: Tensor, sides: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``sample_backward`` on a CPU."""
    B, _, H, D = value.shape
    exact = value.to(exact_type(value))
    grads = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in (exact, locations, weights))
    inputs = _arrays(grad.to(exact.dtype).unflatten(-1, (H, D)), exact)
    arguments = (*inputs, np.array(sides).reshape(-1, 2), *_arrays(locations, weights), *_arrays(*grads))
    _in_parallel(_backward_heads, arguments, B * H)
    return grads[0].to(value.dtype), grads[1], grads[2]
