"""The sampling operator: its fast forms equal the reference in value and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqdet.nn.sampling import sample, sample_gather, sample_reference

SHAPES = [(7, 5), (3, 4), (1, 2)]


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64, shapes=SHAPES, batch=2, queries=6, spread=1.4):
    """Value, locations (some outside the maps) and weights."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(h * w for h, w in shapes)
    value = torch.randn(batch, size, 3, 4, generator=generator, dtype=dtype)
    locations = torch.rand(batch, queries, 3, len(shapes), 2, 2, generator=generator, dtype=dtype)
    weights = torch.randn(batch, queries, 3, len(shapes), 2, generator=generator, dtype=dtype)
    return value, (locations - 0.5) * spread + 0.5, weights


def results(function, value, locations, weights, shapes=SHAPES):
    """Output and the three gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in (value, locations, weights)]
    output = function(leaves[0], shapes, *leaves[1:])
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("function", [sample, sample_gather])
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    batch=st.integers(1, 3),
    queries=st.integers(1, 9),
)
def test_equals_the_reference(function, seed, shapes, batch, queries):
    arguments = inputs(seed, shapes=shapes, batch=batch, queries=queries)
    for fast, plain in zip(
        results(function, *arguments, shapes), results(sample_reference, *arguments, shapes), strict=True
    ):
        torch.testing.assert_close(fast, plain)


def test_gradients_by_finite_differences():
    value, locations, weights = (x.requires_grad_() for x in inputs(3, queries=2, batch=1))
    assert torch.autograd.gradcheck(lambda v, x, w: sample(v, SHAPES, x, w), (value, locations, weights))


def test_single_precision():
    arguments = inputs(dtype=torch.float32)
    for fast, plain in zip(results(sample, *arguments), results(sample_reference, *arguments), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_half_precision_keeps_its_type():
    value, locations, weights = inputs(dtype=torch.float32)
    half = sample(value.bfloat16(), SHAPES, locations, weights)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), sample(value, SHAPES, locations, weights), rtol=0.05, atol=0.1)


def test_far_and_undefined_locations_read_nothing():
    """A diverging model must not read outside its memory."""
    value, locations, weights = inputs(dtype=torch.float32)
    for bad in (torch.nan, torch.inf, -torch.inf, 1e30, -5.0):
        assert (sample(value, SHAPES, torch.full_like(locations, bad), weights) == 0).all()


def test_threads_do_not_change_results():
    arguments = inputs(queries=40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = results(sample, *arguments)
        torch.set_num_threads(3)
        several = results(sample, *arguments)
    finally:
        torch.set_num_threads(threads)
    for one, many in zip(single, several, strict=True):
        assert torch.equal(one, many)


def test_traces_through_compile():
    """The compiler sees one operator with the right shapes, and no graph break."""
    value, locations, weights = inputs(dtype=torch.float32)
    compiled = torch.compile(lambda v, x, w: sample(v, SHAPES, x, w) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(value, locations, weights), sample(value, SHAPES, locations, weights) * 2)
