"""The sampling operator alone, forward and backward, against ``grid_sample``, and its bandwidth against a copy's."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch

from dqdet.nn.sampling import sample, sample_reference
from gpu.clocks import copy_bandwidth, kernel_times, peak_memory
from gpu.measurements import Measurement, Result, Setting

LEVELS = [(100, 134), (50, 67), (25, 34), (13, 17)]  # maps of an image of 800x1066
TINY_LEVELS = [(8, 12), (4, 6), (2, 3), (1, 2)]
HEADS, WIDTH, POINTS = 8, 32, 4
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
BATCHES = (1, 8)
WHO = {"encoder": None, "decoder": 300}  # that samples: number of queries, None: every cell is one
WAYS = {"kernel": sample, "grid_sample": sample_reference}


def measure_copy(setting: Setting) -> Result:
    return {"bytes_per_s": copy_bandwidth(setting.device, setting.tiny)}


def measure(setting: Setting, who: str, precision: str, batch: int) -> Result:
    """Seconds and peak memory of both ways, and the bytes that must at least be moved: each tensor once."""
    torch.manual_seed(0)
    shapes = TINY_LEVELS if setting.tiny else LEVELS
    cells = sum(height * width for height, width in shapes)
    count = WHO[who] or cells
    on = {"device": setting.device}
    value = torch.randn(batch, cells, HEADS, WIDTH, dtype=DTYPES[precision], **on).requires_grad_()
    locations = torch.rand(batch, count, HEADS, len(shapes), POINTS, 2, **on).requires_grad_()
    weights = torch.rand(batch, count, HEADS, len(shapes), POINTS, **on).requires_grad_()
    inputs = (value, locations, weights)

    def forward(way: str) -> torch.Tensor:
        return WAYS[way](value, shapes, locations, weights)

    runs, peak = {}, {}
    for way in WAYS:
        output = forward(way)
        gradient = torch.ones_like(output)
        runs[f"forward, {way}"] = partial(torch.no_grad()(forward), way)
        runs[f"backward, {way}"] = partial(torch.autograd.grad, output, inputs, gradient, retain_graph=True)
        runs[f"backward, {way}"]()
        peak[way] = peak_memory(lambda way=way: torch.autograd.grad(forward(way).sum(), inputs), setting.device)
    moved = sum(x.numel() * x.element_size() for x in (*inputs, output))
    return {
        "who": who,
        "precision": precision,
        "batch": batch,
        "seconds": kernel_times(runs, setting.device, setting.tiny),
        "peak_mib": peak,
        # Backward reads what forward moves, with the output's gradient for the output, and writes three gradients.
        "bytes": {"forward": moved, "backward": 2 * moved - output.numel() * output.element_size()},
    }


def measurements(setting: Setting) -> list[Measurement]:
    found = [Measurement("copy", partial(measure_copy, setting))]
    for precision, who, batch in product(DTYPES, WHO, BATCHES[:1] if setting.tiny else BATCHES):
        found.append(Measurement(name(who, precision, batch), partial(measure, setting, who, precision, batch)))
    return found


def name(who: str, precision: str, batch: int) -> str:
    return f"{who}-{precision}-{batch}"
