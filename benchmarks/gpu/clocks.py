"""Time, memory and the limits of the device itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from timing import Seconds, by_events, by_wall_clock, take_turns

Run = Callable[[], object]

REPEATS = (5, 30)  # at least, at most
ENOUGH = 4.0  # seconds for all repeats of all runs
IN_A_ROW = 20  # runs of a kernel, which alone is shorter than its launch


def clock(device: torch.device) -> Callable[[Run], float]:
    return by_events if device.type == "cuda" else by_wall_clock


def times(runs: dict[str, Run], device: torch.device, tiny: bool) -> Seconds:
    """Seconds of runs that are warm already, in turns."""
    if tiny:
        return take_turns(runs, 2, clock(device))
    once = sum(clock(device)(run) for run in runs.values())
    repeats = min(max(round(ENOUGH / once), REPEATS[0]), REPEATS[1])
    return take_turns(runs, repeats, clock(device))


def kernel_times(runs: dict[str, Run], device: torch.device, tiny: bool) -> Seconds:
    """Seconds of short runs, each repeated without waiting for the device in between."""

    def repeated(run: Run) -> Run:
        def in_a_row() -> None:
            for _ in range(count):
                run()

        return in_a_row

    count = 1 if tiny else IN_A_ROW
    found = times({name: repeated(run) for name, run in runs.items()}, device, tiny)
    return {name: [total / count for total in seconds] for name, seconds in found.items()}


def peak_memory(run: Run, device: torch.device, model: nn.Module | None = None) -> float | None:
    """Peak of a run on a card, MiB, with the parameters of ``model`` and without all else that is there already."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    there = torch.cuda.memory_allocated(device)
    own = 0
    if model is not None:
        own = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - there + own) / 2**20


def matrix_product(device: torch.device, dtype: torch.dtype, tiny: bool) -> float:
    """Operations a second of a large product of matrices: the peak that other work can be compared with."""
    side = 256 if tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = kernel_times({"product": lambda: a @ b}, device, tiny)["product"]
    return 2 * side**3 / min(seconds)


def copy_bandwidth(device: torch.device, tiny: bool) -> float:
    """Bytes a second, read and written, of a large copy on the device."""
    source = torch.zeros(2**20 if tiny else 2**30, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    seconds = kernel_times({"copy": lambda: goal.copy_(source)}, device, tiny)["copy"]
    return 2 * source.numel() / min(seconds)
