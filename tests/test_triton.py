"""The Triton kernels without a GPU: what they compute, and what they compile to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton does not exist on this system")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from dqdet.nn.sampling import triton_kernels  # noqa: E402

KERNELS = {"_forward", "_backward"}
CARDS = [80, 90]  # compute capability
DTYPES = {torch.float32: (8, 12, 24, 32, 64), torch.bfloat16: (8, 24, 64), torch.float16: (32,)}


def test_kernels_in_the_interpreter():
    """All tests of ``interpreted_kernels.py`` pass."""
    file = Path(__file__).with_name("interpreted_kernels.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


class Card:
    """Stands where Triton looks for a GPU."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


class Launches:
    """What launches on a card would have compiled: by kernel, each by Triton's key."""

    def __init__(self, card: Card):
        self.card = card
        self.sources: dict[str, dict[str, tuple[ASTSource, dict[str, Any]]]] = defaultdict(dict)

    def record(self, *, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        self.sources[fn.name][key] = (source, {"num_warps": compile["num_warps"]})
        return True  # neither compiled nor launched

    def of(self, dtype: torch.dtype, width: int, shapes: list[tuple[int, int]], batch=2, queries=3, points=4) -> None:
        """Forward and backward with such inputs."""
        size = sum(h * w for h, w in shapes)
        value = torch.zeros(batch, size, 8, width, dtype=dtype)
        locations = torch.zeros(batch, queries, 8, len(shapes), points, 2)
        sides = [side for shape in shapes for side in shape]
        output = triton_kernels.forward(value, sides, locations, locations[..., 0])
        triton_kernels.backward(output, value, sides, locations, locations[..., 0])


@pytest.fixture(params=CARDS)
def launches(request, monkeypatch) -> Iterator[Launches]:
    recorded = Launches(Card(request.param))
    monkeypatch.setattr(triton.runtime.driver, "_active", recorded.card)
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", recorded.record)
    for kernel in (triton_kernels._forward, triton_kernels._backward):
        kernel.device_caches.clear()
    yield recorded
    for kernel in (triton_kernels._forward, triton_kernels._backward):
        kernel.device_caches.clear()


SIZES = [[(100, 167), (50, 84)], [(1, 1), (1, 1)], [(16, 16), (8, 8)], [(1, 16), (7, 5)], [(64, 64), (32, 32)]]


def test_no_size_is_compiled_in(launches):
    """Maps, batches and queries of one, of multiples of 16 and of others: one kernel forward, one backward."""
    for shapes in SIZES:
        for batch, queries in [(1, 1), (2, 300), (16, 16), (3, 33)]:
            launches.of(torch.float32, 32, shapes, batch, queries)
    assert {name: len(found) for name, found in launches.sources.items()} == dict.fromkeys(KERNELS, 1)
    launches.of(torch.float32, 24, SIZES[0])  # while another width is another kernel
    assert {name: len(found) for name, found in launches.sources.items()} == dict.fromkeys(KERNELS, 2)


def spilled(launches: Launches, source: ASTSource, **options: Any) -> int:
    """Bytes of the stack frame and of spilled registers, as NVIDIA's assembler reports them."""
    ptx = triton.compile(source, target=launches.card.target, options=options).asm["ptx"]
    card = re.search(r"\.target (sm_\w+)", ptx)
    assert card is not None
    command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={card[1]}", "-o", os.devnull, "/dev/stdin"]
    report = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True).stderr
    counts = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)
    assert len(counts) == 3, report
    return sum(map(int, counts))


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory) -> Iterator[None]:
    """Triton's cache of this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize(
    "launches", [pytest.param(capability, marks=pytest.mark.slow) for capability in (80, 90)], indirect=True
)
def test_compile_without_spills(launches):
    for dtype, widths in DTYPES.items():
        for width in widths:
            launches.of(dtype, width, SIZES[0])
    assert launches.sources.keys() == KERNELS
    for found in launches.sources.values():
        assert len(found) == sum(map(len, DTYPES.values()))
        for source, options in found.values():
            assert spilled(launches, source, **options) == 0
    assert spilled(launches, source, **options, maxnreg=24) > 0  # the report does see spills
