"""``torch.ops.dqdet.sample``: the fast forms of sampling as one operator with its gradient.

Letters and arguments as in :func:`dqdet.nn.sampling.sample`; ``sides`` are the heights and widths of the levels in
one list, locations and weights are float32, or float64 where values are. The kernels are imported when they first
run: numba takes a third of a second, and Triton does not exist everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("dqdet::sample", mutates_args=(), device_types="cpu")
def sample_operator(value: Tensor, sides: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    from dqdet.nn.sampling import loops

    return loops.forward(value, sides, locations, weights)


@sample_operator.register_kernel("cuda")
def sample_on_gpu(value: Tensor, sides: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    from dqdet.nn.sampling import triton_kernels

    return triton_kernels.forward(value, sides, locations, weights)


@sample_operator.register_fake
def _(value: Tensor, sides: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("dqdet::sample_backward", mutates_args=(), device_types="cpu")
def sample_backward(
    grad: Tensor, value: Tensor, sides: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights from that of the result, ``[B, Q, H * D]``."""
    from dqdet.nn.sampling import loops

    return loops.backward(grad, value, sides, locations, weights)


@sample_backward.register_kernel("cuda")
def sample_backward_on_gpu(
    grad: Tensor, value: Tensor, sides: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from dqdet.nn.sampling import triton_kernels

    return triton_kernels.backward(grad, value, sides, locations, weights)


@sample_backward.register_fake
def _(grad: Tensor, value: Tensor, sides: list[int], locations: Tensor, weights: Tensor):
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))


def _keep(ctx, inputs, output) -> None:
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad: Tensor):
    value, locations, weights = ctx.saved_tensors
    grads = sample_backward(grad, value, ctx.sides, locations, weights)
    return grads[0], None, grads[1], grads[2]


sample_operator.register_autograd(_backward, setup_context=_keep)
