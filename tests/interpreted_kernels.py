"""The Triton kernels in Triton's interpreter, against the reference.

``test_triton.py`` runs this file in a process of its own: ``TRITON_INTERPRET`` holds from the import of Triton on.
The operator runs its GPU code on CPU tensors here, from ``sample`` through autograd to the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dqdet.nn.sampling import operator, sample, sample_reference
from sampling_results import results

SHAPES = [(7, 5), (3, 4), (1, 2), (1, 1), (2, 9)]
QUERIES, HEADS = 3, 3  # rows that fill no program

operator.sample_operator.register_kernel("cpu")(operator.sample_on_gpu)
operator.sample_backward.register_kernel("cpu")(operator.sample_backward_on_gpu)


def make_inputs(width=8, levels=3, points=2, batch=2, queries=QUERIES, dtype=torch.float64) -> list[Tensor]:
    """Value, locations (some outside) and weights."""
    torch.manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in SHAPES[:levels]), HEADS, width, dtype=dtype)
    locations = (torch.rand(batch, queries, HEADS, levels, points, 2, dtype=dtype) - 0.5) * 1.6 + 0.5
    return [value, locations, torch.randn(batch, queries, HEADS, levels, points, dtype=dtype)]


def assert_equals_the_reference(inputs: list[Tensor], **tolerances: Any) -> None:
    shapes = SHAPES[: inputs[1].shape[3]]
    found, expected = results(sample, *inputs, shapes), results(sample_reference, *inputs, shapes)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerances)


@pytest.mark.parametrize(
    ("width", "levels", "points"), [(8, 1, 1), (12, 3, 2), (24, 5, 1), (32, 1, 4), (64, 3, 1), (8, 5, 4)]
)
def test_equal_the_reference(width, levels, points):
    inputs = make_inputs(width, levels, points)
    outside = ((inputs[1] < 0) | (inputs[1] > 1)).any(-1)
    assert outside.any()
    assert not outside.all()
    assert_equals_the_reference(inputs)


def test_equal_the_reference_in_single_precision():
    assert_equals_the_reference(make_inputs(24, dtype=torch.float32), rtol=1e-4, atol=1e-4)


def test_tensors_that_are_not_contiguous():
    """Value, locations and weights as slices and transposed views, and the gradient of an expanded sum."""
    inputs = make_inputs()
    value = torch.cat([inputs[0]] * 2, -1)[..., 8:].requires_grad_()
    locations = inputs[1].transpose(0, 1).contiguous().transpose(0, 1)
    expected = results(sample_reference, *inputs, SHAPES[:3])[0]
    output = sample(value, SHAPES[:3], locations, inputs[2])
    torch.testing.assert_close(output.detach(), expected)
    gradient = torch.autograd.grad(output.sum(), value)[0]
    expected_value = inputs[0].clone().requires_grad_()
    reference = sample_reference(expected_value, SHAPES[:3], *inputs[1:])
    torch.testing.assert_close(gradient, torch.autograd.grad(reference.sum(), expected_value)[0])


def test_one_query():
    assert_equals_the_reference(make_inputs(queries=1))


def test_empty_batch():
    inputs = make_inputs(batch=0)
    found = results(sample, *inputs, SHAPES[:3])
    assert [x.shape for x in found] == [(0, QUERIES, HEADS * 8), *(x.shape for x in inputs)]


def test_undefined_and_far_points_are_as_if_they_did_not_exist():
    value, locations, weights = make_inputs(points=4)
    bad = torch.zeros(weights.shape, dtype=torch.bool)
    for point, place in enumerate((torch.nan, torch.inf, -1e30)):
        locations[..., point, point % 2] = place
        bad[..., point] = True
    found = results(sample, *[value, locations, weights], SHAPES[:3])
    alone = results(sample_reference, *[value, locations[..., 3:, :], weights[..., 3:]], SHAPES[:3])
    torch.testing.assert_close(found[:2], alone[:2])
    torch.testing.assert_close([found[2][..., 3:, :], found[3][..., 3:]], alone[2:])
    assert (found[2][bad] == 0).all()
    assert (found[3][bad] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_only_the_rounding_of_its_ends(dtype):
    value, locations, weights = make_inputs(12, dtype=torch.float32)
    found = results(sample, *[value.to(dtype), locations, weights], SHAPES[:3])
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32, torch.float32]
    value = value.to(dtype).double()
    output = sample_reference(value, SHAPES[:3], locations.double(), weights.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found[0].double(), output, rtol=eps, atol=1e-5)

    leaves = [x.double().requires_grad_() for x in (value, locations, weights)]
    gradient = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(dtype).double()
    sample_reference(leaves[0], SHAPES[:3], *leaves[1:]).backward(gradient)
    torch.testing.assert_close(found[1].double(), leaves[0].grad, rtol=eps, atol=1e-5)
    for one, leaf in zip(found[2:], leaves[1:], strict=True):
        torch.testing.assert_close(one.double(), leaf.grad, rtol=1e-4, atol=1e-4)


def test_many_queries_of_a_coarse_level_sum_in_single_precision():
    """Where 64 queries share two cells, sums in bfloat16 would lose what one of them adds."""
    torch.manual_seed(0)
    shapes, queries, dtype = [(1, 2)], 64, torch.bfloat16
    value = torch.randn(1, 2, 1, 8, dtype=dtype)
    locations, weights = torch.rand(1, queries, 1, 1, 1, 2), torch.rand(1, queries, 1, 1, 1)
    gradient = torch.rand(1, queries, 8, dtype=dtype)

    def gradient_of_value(function: Callable[..., Tensor], value: Tensor, part: slice) -> Tensor:
        leaf = value.clone().requires_grad_()
        output = function(leaf, shapes, locations[:, part], weights[:, part])
        return torch.autograd.grad(output, leaf, gradient[:, part].to(output.dtype))[0].double()

    exact = gradient_of_value(sample_reference, value.double(), slice(None))
    found = gradient_of_value(sample, value, slice(None))
    scattered = torch.zeros(value.shape, dtype=dtype)
    for q in range(queries):
        scattered += gradient_of_value(sample_reference, value.double(), slice(q, q + 1)).to(dtype)
    error, usual_error = ((x.double() - exact).norm() / exact.norm() for x in (found, scattered))
    assert error < 1e-2
    assert error < usual_error / 3
