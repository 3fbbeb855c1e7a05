"""Sampling on GPUs: one Triton kernel forward, one backward.

A program takes a few rows of the B * Q * H pairs of a query and a head, with all D channels of them: threads side by
side read channels side by side. It goes through the L * P points of its rows, so that nothing of a corner is ever
stored. Locations, weights and sums have the type of the locations, whatever that of the values.

Nothing that changes with the sizes of maps enters what Triton compiles: a model has one pair of kernels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dqdet.nn.sampling.levels import level_sizes

# Channels of all rows of a program. It is one warp, whose threads need not wait for others when they reduce.
TILE = 256
CHANGING = ["rows", "S", "Q", "H"]


@triton.jit
def _place(locations, point, width, height):
    """Position of points in cells of their level; of those that touch no cell, NaN among them, one far outside."""
    x = tl.load(locations + 2 * point) * width - 0.5
    y = tl.load(locations + 2 * point + 1) * height - 0.5
    touching = (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    return tl.where(touching, x, -9.0), tl.where(touching, y, -9.0)


@triton.jit
def _corner(x, y, width, height, dx: tl.constexpr, dy: tl.constexpr):
    """Cell at one corner of points, whether it exists, and the shares that it has along x and y."""
    left, top = tl.floor(x), tl.floor(y)
    cx, cy = left.to(tl.int32) + dx, top.to(tl.int32) + dy
    exists = (cx >= 0) & (cx < width) & (cy >= 0) & (cy < height)
    share_x = x - left if dx else 1 - (x - left)
    share_y = y - top if dy else 1 - (y - top)
    return cy * width + cx, exists, share_x, share_y


@triton.jit(do_not_specialize=CHANGING)
def _forward(
    value, sizes, locations, weights, result, rows, S, Q, H,
    D: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]  # [R, 1]
    channel = tl.arange(0, CHANNELS)[None, :]  # [1, D]
    is_row, is_channel = row < rows, channel < D
    row = tl.minimum(row, rows - 1)  # the last program's empty rows read what others do
    table = value + (row // (Q * H) * S.to(tl.int64) * H + row % H) * D + channel  # [R, D], the head's first cell
    point = row.to(tl.int64) * (LEVELS * POINTS)
    total = tl.zeros([ROWS, CHANNELS], locations.dtype.element_ty)
    for level in range(LEVELS):
        width, height = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        for _ in range(POINTS):
            x, y = _place(locations, point, width, height)
            weight = tl.load(weights + point)
            for corner in tl.static_range(4):
                cell, exists, share_x, share_y = _corner(x, y, width, height, corner % 2, corner // 2)
                read = tl.load(table + cell.to(tl.int64) * H * D, mask=exists & is_channel, other=0)
                total += weight * share_x * share_y * read.to(total.dtype)
            point += 1
        table += width.to(tl.int64) * height * H * D
    at = row.to(tl.int64) * D + channel
    tl.store(result + at, total.to(result.dtype.element_ty), mask=is_row & is_channel)


@triton.jit(do_not_specialize=CHANGING)
def _backward(
    grad, value, sizes, locations, weights, grad_value, grad_locations, grad_weights, rows, S, Q, H,
    D: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]  # [R, 1]
    channel = tl.arange(0, CHANNELS)[None, :]  # [1, D]
    is_row, is_channel = row < rows, channel < D
    row = tl.minimum(row, rows - 1)
    first = (row // (Q * H) * S.to(tl.int64) * H + row % H) * D + channel  # [R, D], of the head's first cell
    point = row.to(tl.int64) * (LEVELS * POINTS)
    incoming = tl.load(grad + row.to(tl.int64) * D + channel, mask=is_row & is_channel, other=0)
    incoming = incoming.to(locations.dtype.element_ty)
    for level in range(LEVELS):
        width, height = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        for _ in range(POINTS):
            x, y = _place(locations, point, width, height)
            weight = tl.load(weights + point)
            slope, slope_x, slope_y = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
            for corner in tl.static_range(4):
                cell, exists, share_x, share_y = _corner(x, y, width, height, corner % 2, corner // 2)
                at = first + cell.to(tl.int64) * H * D
                read = tl.load(value + at, mask=exists & is_channel, other=0).to(incoming.dtype)
                product = tl.sum(incoming * read, 1, keep_dims=True)  # [R, 1]
                slope += product * share_x * share_y
                slope_x += product * share_y * (2 * (corner % 2) - 1)
                slope_y += product * share_x * (2 * (corner // 2) - 1)
                # Order does not matter to the sum but for its rounding: no fences.
                share = weight * share_x * share_y * incoming
                tl.atomic_add(grad_value + at, share, mask=exists & is_row & is_channel, sem="relaxed")
            tl.store(grad_weights + point, slope, mask=is_row)
            tl.store(grad_locations + 2 * point, slope_x * weight * width, mask=is_row)
            tl.store(grad_locations + 2 * point + 1, slope_y * weight * height, mask=is_row)
            point += 1
        first += width.to(tl.int64) * height * H * D


def _launch(kernel, tensors: tuple[Tensor, ...], value: Tensor, weights: Tensor) -> None:
    """Run a kernel over all rows of ``value [B, S, H, D]`` and ``weights [B, Q, H, L, P]``."""
    _, S, H, D = value.shape
    B, Q, _, levels, points = weights.shape
    channels = triton.next_power_of_2(D)
    per_program = max(1, TILE // channels)
    rows = B * Q * H
    with torch.cuda.device_of(value):  # Triton launches on the current device
        kernel[(triton.cdiv(rows, per_program),)](
            *tensors, rows, S, Q, H, D, levels, points, per_program, channels, num_warps=1
        )


def forward(value: Tensor, sides: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The operator ``sample`` on a GPU."""
    B, _, H, D = value.shape
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    sizes = level_sizes(list(zip(sides[::2], sides[1::2], strict=True)), value)
    result = value.new_empty(B, locations.shape[1], H * D)
    _launch(_forward, (value, sizes, locations, weights, result), value, weights)
    return result


def backward(
    grad: Tensor, value: Tensor, sides: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``sample_backward`` on a GPU: the gradient of ``value`` by atomic sums, rounded once at the end."""
    grad, value, locations, weights = (x.contiguous() for x in (grad, value, locations, weights))
    sizes = level_sizes(list(zip(sides[::2], sides[1::2], strict=True)), value)
    grad_value = torch.zeros_like(value, dtype=locations.dtype)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    tensors = (grad, value, sizes, locations, weights, grad_value, grad_locations, grad_weights)
    _launch(_backward, tensors, value, weights)
    return grad_value.to(value.dtype), grad_locations, grad_weights
