"""The sampling operator: its fast forms equal the reference in value and gradient, and each runs where it should.

The Triton kernels have tests of their own in ``test_triton.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import dqdet
from dqdet.models import create_model
from dqdet.nn import sampling
from dqdet.nn.deformable import DeformableAttention
from dqdet.nn.sampling import level_sizes, sample, sample_reference
from sampling_results import results
from small_families import build
from tiny import tiny_family

SHAPES = [(7, 5), (3, 4), (1, 2)]


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64, shapes=SHAPES, batch=2, queries=6, spread=1.4):
    """Value, locations (some outside the maps) and weights."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(h * w for h, w in shapes)
    value = torch.randn(batch, size, 3, 4, generator=generator, dtype=dtype)
    locations = torch.rand(batch, queries, 3, len(shapes), 2, 2, generator=generator, dtype=dtype)
    weights = torch.randn(batch, queries, 3, len(shapes), 2, generator=generator, dtype=dtype)
    return value, (locations - 0.5) * spread + 0.5, weights


class Operations(TorchDispatchMode):
    """Names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    batch=st.integers(1, 3),
    queries=st.integers(1, 9),
)
def test_equals_the_reference(seed, shapes, batch, queries):
    arguments = inputs(seed, shapes=shapes, batch=batch, queries=queries)
    for fast, plain in zip(
        results(sample, *arguments, shapes), results(sample_reference, *arguments, shapes), strict=True
    ):
        torch.testing.assert_close(fast, plain)


def test_gradients_by_finite_differences():
    value, locations, weights = (x.requires_grad_() for x in inputs(3, queries=2, batch=1))
    assert torch.autograd.gradcheck(lambda v, x, w: sample(v, SHAPES, x, w), (value, locations, weights))


def test_single_precision():
    arguments = inputs(dtype=torch.float32)
    for fast, plain in zip(
        results(sample, *arguments, SHAPES), results(sample_reference, *arguments, SHAPES), strict=True
    ):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [sample, sample_reference])
def test_half_precision_keeps_its_type(function):
    value, locations, weights = inputs(dtype=torch.float32)
    half = function(value.bfloat16(), SHAPES, locations, weights)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), function(value, SHAPES, locations, weights), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("function", [sample, sample_reference])
def test_places_are_exact_in_half_precision(function, autocast):
    """A value that is its own place along a map of 160 cells: rounded to 8 bits, places would be a cell away."""
    value = torch.arange(160.0).bfloat16().view(1, 160, 1, 1)  # all exact
    locations = torch.stack([torch.linspace(0.1, 0.9, 50), torch.full((50,), 0.5)], -1).view(1, 50, 1, 1, 1, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = function(value, [(1, 160)], locations, torch.ones(1, 50, 1, 1, 1))
    exact = locations[..., 0].view(1, 50, 1) * 160 - 0.5
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("function", [sample, sample_reference])
def test_far_and_undefined_locations_read_nothing(function):
    """A diverging model must not read outside its memory."""
    value, locations, weights = inputs(dtype=torch.float32)
    for bad in (torch.nan, torch.inf, -torch.inf, 1e30, -5.0):
        found = results(function, value, torch.full_like(locations, bad), weights, SHAPES)
        assert all((x == 0).all() for x in found)


def test_threads_do_not_change_results():
    arguments = inputs(queries=40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = results(sample, *arguments, SHAPES)
        torch.set_num_threads(3)
        several = results(sample, *arguments, SHAPES)
    finally:
        torch.set_num_threads(threads)
    for one, many in zip(single, several, strict=True):
        assert torch.equal(one, many)


class Graphs:
    """Keeps what the graphs call that a backend gets. (In a mode that listens to operations nothing compiles.)"""

    def __init__(self, backend: str = "eager") -> None:
        torch._dynamo.reset()
        self.backend = torch._dynamo.lookup_backend(backend)
        self.calls: list[list[str]] = []

    def __call__(self, graph, example_inputs):
        self.calls.append([str(node.target) for node in graph.graph.nodes])
        return self.backend(graph, example_inputs)

    def assert_two_with(self, operator: str, times: int) -> None:
        """One for the first size and one for all others, with that operator so often in each."""
        assert [sum(operator in name for name in calls) for calls in self.calls] == [times] * 2


def test_traces_through_compile():
    """The compiler sees one operator with the right shapes, and no graph break."""
    value, locations, weights = inputs(dtype=torch.float32)
    graphs = Graphs("aot_eager")
    compiled = torch.compile(lambda v, x, w: sample(v, SHAPES, x, w) * 2, fullgraph=True, backend=graphs)
    torch.testing.assert_close(compiled(value, locations, weights), sample(value, SHAPES, locations, weights) * 2)
    assert sum("dqdet.sample" in name for name in graphs.calls[0]) == 1
    assert not any("grid_sample" in name for name in graphs.calls[0])


def operations_on(device: str) -> list[str]:
    """Of a sum, without data."""
    with FakeTensorMode():
        value, locations, weights = (x.to(device) for x in inputs(dtype=torch.float32))
        with Operations() as operations:
            output = sample(value, SHAPES, locations, weights)
    assert output.device.type == device
    return operations.names


def test_one_operator_forward_and_one_backward():
    with Operations() as operations:
        results(sample, *inputs(), SHAPES)
    names = [x for x in operations.names if "sampl" in x]
    assert names == ["dqdet.sample.default", "dqdet.sample_backward.default"]


def test_the_same_operators_on_gpus():
    """Autograd's engine does not run on tensors of a GPU that is not there, so the backward one is called here."""
    pytest.importorskip("triton", reason="Triton does not exist on this system")
    assert [x for x in operations_on("cuda") if "sampl" in x] == ["dqdet.sample.default"]
    for name in ("dqdet::sample", "dqdet::sample_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    with FakeTensorMode():
        value, locations, weights = (x.to("cuda") for x in inputs(dtype=torch.float32))
        output = sample(value.bfloat16(), SHAPES, locations, weights)
        sides = [side for shape in SHAPES for side in shape]
        grads = torch.ops.dqdet.sample_backward(output, value.bfloat16(), sides, locations, weights)
    assert [(x.shape, x.dtype, x.device.type) for x in grads] == [
        (value.shape, torch.bfloat16, "cuda"),
        (locations.shape, torch.float32, "cuda"),
        (weights.shape, torch.float32, "cuda"),
    ]


@pytest.mark.parametrize("lacking", ["compiler", "headers", "triton"])
def test_without_triton_the_reference_runs_on_gpus(lacking, monkeypatch):
    if lacking == "compiler":
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif lacking == "headers":
        monkeypatch.setattr(sampling.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    else:
        monkeypatch.setattr(sampling, "find_spec", lambda name: None)
    sampling._triton_compiles.cache_clear()
    try:
        names = operations_on("cuda")
    finally:
        sampling._triton_compiles.cache_clear()
    assert "aten.grid_sampler_2d.default" in names
    assert not any("dqdet" in name for name in names)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_keeps_its_inputs_and_nothing_else(device):
    if device == "cuda":
        pytest.importorskip("triton", reason="Triton does not exist on this system")
    with FakeTensorMode():
        arguments = [x.to(device).requires_grad_() for x in inputs(dtype=torch.float32)]
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x), lambda x: x):
            sample(arguments[0], SHAPES, *arguments[1:])
    assert {id(x) for x in kept} == {id(x) for x in arguments}


def fresh_process(code: str, **environment: str) -> str:
    """Output of a new interpreter."""
    source = str(Path(dqdet.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source} | environment
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


SUM = "sample(torch.ones(1, 4, 1, 1), [(2, 2)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1))"


def test_numba_loads_with_the_first_sum_on_a_cpu():
    code = f"""
import sys, torch, dqdet.models
from dqdet.nn.sampling import sample
before = "numba" in sys.modules
{SUM}
print(before, "numba" in sys.modules)
"""
    assert fresh_process(code) == "False True"


@pytest.mark.slow
def test_runs_where_no_folder_can_be_written(tmp_path):
    """Neither beside the module nor where numba is told to keep its cache, nor at home."""
    package = shutil.copytree(
        Path(dqdet.__file__).parent, tmp_path / "dqdet", ignore=shutil.ignore_patterns("__pycache__")
    )
    blocked = package / "nn/sampling/__pycache__"  # a file, which also stops root
    blocked.touch()
    nowhere = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), f"{blocked}/cache")
    code = f"""
import torch
from dqdet.nn.sampling import sample, loops
print({SUM}.item(), type(loops._forward_rows._cache).__name__, loops.__file__)
"""
    found = fresh_process(code, PYTHONPATH=str(tmp_path), **nowhere)
    assert found == f"1.0 NullCache {package / 'nn/sampling/loops.py'}"


def test_level_sizes_are_made_once():
    like = torch.zeros(())
    sizes = level_sizes([(7, 5), (3, 4)], like)
    assert sizes.tolist() == [[5, 7], [4, 3]]
    assert level_sizes([(7, 5), (3, 4)], like).data_ptr() == sizes.data_ptr()
    assert level_sizes([(5, 7), (3, 4)], like).tolist() == [[7, 5], [4, 3]]


def test_level_sizes_made_for_inference_serve_training():
    weight = torch.ones(1, 2, requires_grad=True)
    with torch.inference_mode():
        level_sizes([(11, 13)], weight)
    (weight / level_sizes([(11, 13)], weight)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[1 / 13, 1 / 11]]))


def test_level_sizes_without_data_are_not_kept():
    mode = FakeTensorMode()
    with mode:
        assert level_sizes([(17, 19)], torch.zeros(())).device.type == "cpu"
        like = torch.zeros((), device="cuda")
    assert level_sizes([(17, 19)], like).device.type == "cuda"  # outside the mode
    assert not isinstance(level_sizes([(17, 19)], torch.zeros(())), FakeTensor)
    like = torch.zeros(())
    with FakeTensorMode(allow_non_fake_inputs=True):
        level_sizes([(23, 29)], like)
    assert not isinstance(level_sizes([(23, 29)], like), FakeTensor)


def test_level_sizes_come_without_a_copy_from_the_host():
    with FakeTensorMode():
        like = torch.zeros((), device="cuda")
        with Operations() as operations:
            level_sizes([(17, 19)], like)
    assert not any("copy" in name or "lift" in name for name in operations.names)


class OneMap(nn.Module):
    """Attention of all cells of a map to the map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = DeformableAttention(8, 2, levels=1, points=2)

    def forward(self, feature: Tensor) -> Tensor:
        """``[B, c, h, w]`` -> ``[B, h * w, c]``."""
        tokens = feature.flatten(2).transpose(1, 2)
        reference = tokens[..., None, :2].sigmoid()
        shapes = [(feature.shape[2], feature.shape[3])]
        return self.attention(tokens, reference, tokens, shapes, torch.zeros_like(tokens[..., 0], dtype=torch.bool))


@pytest.mark.parametrize("strict", [False, True])
def test_sizes_are_not_baked_into_exports(strict):
    torch.manual_seed(0)
    model = OneMap().eval()
    sizes = {"feature": {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}}
    exported = torch.export.export(model, (torch.randn(1, 8, 6, 9),), dynamic_shapes=sizes, strict=strict)
    names = [str(node.target) for node in exported.graph.nodes]
    assert any("grid_sampler" in name for name in names)
    assert not any("dqdet" in name for name in names)
    other = torch.randn(1, 8, 11, 5)
    torch.testing.assert_close(exported.module()(other), model(other))


IMAGES = [(128, 160), (192, 256), (160, 128), (224, 160), (256, 192), (160, 288)]  # height, width


@pytest.mark.slow
def test_compiled_model_has_two_graphs_for_all_sizes():
    """And it computes what the model does."""
    graphs = Graphs()
    model = create_model(tiny_family("deformable_detr_r50", model__decoder_layers=1)).eval()
    compiled = torch.compile(model, backend=graphs)
    with torch.no_grad():
        for height, width in IMAGES:
            batch = torch.randn(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.bool)
            torch.testing.assert_close(compiled(*batch).boxes, model(*batch).boxes)
    graphs.assert_two_with("dqdet.sample", times=2)


@pytest.mark.slow
def test_compiled_model_on_a_gpu_has_two_graphs_for_all_sizes():
    """The compiler takes tensors without data as it would take those of a GPU."""
    pytest.importorskip("triton", reason="Triton does not exist on this system")
    graphs = Graphs()
    model = build("deformable_detr", {"decoder_layers": 1}).eval()
    with FakeTensorMode(), torch.no_grad():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda"))
        compiled = torch.compile(model.forward_features, backend=graphs)
        for height, width in IMAGES:
            channels = {8: 12, 16: 20, 32: 24}
            maps = [torch.empty(2, c, height // s, width // s, device="cuda") for s, c in channels.items()]
            padding = torch.empty(2, height, width, dtype=torch.bool, device="cuda")
            assert compiled(maps, padding).boxes.device.type == "cuda"
    graphs.assert_two_with("dqdet.sample", times=2)
