"""The kernels of sampling on the device against the reference in double precision, in value and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dqdet.nn import sampling
from dqdet.nn.sampling import Shapes, sample, sample_reference
from sampling_results import results

ODD = [(7, 5), (3, 4), (1, 2), (1, 1)]
PHOTOGRAPH = [(100, 134), (50, 67), (25, 34), (13, 17)]  # of 800x1066
# Of values: the rounding of what goes in and out. Locations and weights are float32.
EPS = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}

every_type = pytest.mark.parametrize("dtype", EPS, ids=str)


def make_inputs(device, dtype, shapes: Shapes, heads: int, width: int, queries: int, points=4) -> list[Tensor]:
    """Value, locations (some outside the maps) and weights."""
    generator = torch.Generator().manual_seed(0)
    cells = sum(height * width for height, width in shapes)
    value = torch.randn(2, cells, heads, width, generator=generator).to(device, dtype)
    locations = torch.rand(2, queries, heads, len(shapes), points, 2, generator=generator) * 1.4 - 0.2
    locations = off_the_lines(locations, shapes)
    weights = torch.rand(2, queries, heads, len(shapes), points, generator=generator)
    return [value, locations.to(device), weights.to(device)]


def off_the_lines(locations: Tensor, shapes: Shapes) -> Tensor:
    """Points a hundredth of a cell away from the lines through cells' centres, where the gradient by places jumps."""
    sizes = torch.tensor([(width, height) for height, width in shapes])[:, None]  # [L, 1, 2]
    cells = locations * sizes - 0.5
    return (cells.floor() + (cells - cells.floor()).clamp(0.01, 0.99) + 0.5) / sizes


def assert_equals_the_reference(inputs: list[Tensor], shapes: Shapes) -> None:
    """To what rounding leaves of the largest entry."""
    eps = EPS[inputs[0].dtype]
    found = results(sample, *inputs, shapes)
    expected = results(sample_reference, *(x.double() for x in inputs), shapes)
    for name, one, exact, allowed in zip(
        ("output", "value", "locations", "weights"), found, expected, (eps, 2 * eps, 4 * eps, 4 * eps), strict=True
    ):
        error = (one.double() - exact).abs().max() / exact.abs().max()
        assert error < allowed, (name, error.item())


def test_the_kernels_run_here(device):
    """Not ``grid_sample``, which stands in where Triton cannot compile."""
    assert sampling._runs_kernels(device.type)


@every_type
@pytest.mark.parametrize("width", [8, 24, 32, 64])
def test_odd_maps(device, dtype, width):
    assert_equals_the_reference(make_inputs(device, dtype, ODD, 3, width, queries=5), ODD)


@every_type
@pytest.mark.parametrize("queries", [1, 300, None], ids=["one query", "decoder", "encoder"])
def test_maps_of_a_photograph(device, dtype, queries):
    """In an encoder every cell is a query; on a CPU the maps are a quarter as high and wide."""
    shapes = PHOTOGRAPH if device.type == "cuda" else [(h // 4, w // 4) for h, w in PHOTOGRAPH]
    count = queries or sum(h * w for h, w in shapes)
    assert_equals_the_reference(make_inputs(device, dtype, shapes, 8, 32, count), shapes)


def test_undefined_points_read_nothing(device):
    value, locations, weights = make_inputs(device, torch.float32, ODD, 3, 8, queries=5)
    locations[..., 0, :] = torch.nan
    found = results(sample, value, locations, weights, ODD)
    alone = results(sample_reference, value, locations[..., 1:, :], weights[..., 1:], ODD)
    torch.testing.assert_close(found[:2], alone[:2], rtol=1e-4, atol=1e-5)
    assert (found[2][..., 0, :] == 0).all()


def test_an_empty_batch(device):
    inputs = [x[:0] for x in make_inputs(device, torch.float32, ODD, 3, 8, queries=5)]
    assert results(sample, *inputs, ODD)[0].shape == (0, 5, 24)
