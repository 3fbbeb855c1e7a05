"""What the benchmarks share: their input, timing in turns, ratios of times, peak memory."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from dqdet.types import Target

CLASSES = 91
OBJECTS = 7  # an image, the average of COCO

Seconds = dict[str, list[float]]  # what was timed -> its time in every repeat


def make_input(size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor, list[Target]]:
    """Images ``[batch, 3, *size]``, their padding (none) and targets."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, *size, generator=generator)
    padding = torch.zeros(batch, *size, dtype=torch.bool)
    targets = [
        Target(
            labels=torch.randint(CLASSES, (OBJECTS,), generator=generator),
            boxes=torch.rand(OBJECTS, 4, generator=generator) * 0.4 + 0.2,
            size=size,
            original_size=size,
        )
        for _ in range(batch)
    ]
    return images, padding, targets


def their_labels(targets: list[Target]) -> list[dict[str, Tensor]]:
    """Targets in the form of ``transformers``."""
    return [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]


def train_same_stages(theirs: nn.Module) -> None:
    """Train what we train of the backbone: all but the stem and the first stage.

    That is what ``transformers`` means to do as well, but it goes by timm's names of the stages. Its own ResNet has
    others and would be frozen whole, or, in DAB-DETR, not at all.
    """
    for name, parameter in theirs.named_parameters():
        if ".backbone." in name:
            parameter.requires_grad = ".embedder." not in name and ".stages.0." not in name


def make_task(
    task: str,
    model: nn.Module,
    predict: Callable[[], object],
    loss: Callable[[], Tensor],
    autocast: torch.autocast | None = None,
) -> Callable[[], object]:
    """What is timed of a model: ``predict`` without gradients, or a step of ``loss`` and its backward pass.

    Args:
        task: ``"inference"`` or ``"step"``.
        model: whose gradients a step begins without.
        predict: the predictions of a batch.
        loss: of a batch.
        autocast: that the forward pass and the loss run under.
    """
    context = autocast or nullcontext()

    def inference():
        with torch.inference_mode(), context:
            return predict()

    def step():
        model.zero_grad()
        with context:
            total = loss()
        total.backward()

    return inference if task == "inference" else step


def by_wall_clock(run: Callable[[], object]) -> float:
    """Seconds that a run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def by_events(run: Callable[[], object]) -> float:
    """Seconds from a run's first work on the current CUDA device to its last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def take_turns(
    runs: dict[str, Callable[[], object]], repeats: int, clock: Callable[[Callable[[], object]], float] = by_wall_clock
) -> Seconds:
    """Seconds of every run by a clock, ``repeats`` of each after one that is not counted.

    Runs take turns within every repeat, so that a machine whose speed drifts does not favour one of them.
    """
    seconds: Seconds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            taken = clock(run)
            if repeat:
                seconds[name].append(taken)
    return seconds


def ratio(first: list[float], second: list[float]) -> float:
    """How much longer the first takes: pair by pair within a repeat, so that slow moments of the machine cancel."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def machine() -> dict[str, str | int]:
    return {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def peak_memory(name: str, size: int, batch: int) -> float:
    """Peak resident memory of a process of this script while it runs one of its things twice, MiB."""
    command = [sys.executable, sys.argv[0], "--size", str(size), "--batch", str(batch), "--only", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def compare(
    title: str,
    size: int,
    make_run: Callable[[str, int, int], Callable[[], object]],
    check_equal: Callable[[int, int], None],
    names: Sequence[str],
    ratios: Sequence[tuple[str, str, str]],
) -> None:
    """A script that times some things in turns and prints medians, peak memory and ratios.

    Args:
        title: of what is timed.
        size: of the images, unless the command line says another.
        make_run: makes what is timed from its name, the images' size and the batch.
        check_equal: of size and batch; raises unless the models compute the same.
        names: of what is timed.
        ratios: label, and the names of what is divided by what.
    """
    parser = argparse.ArgumentParser(description=f"{title}, timed.")
    parser.add_argument("--size", type=int, default=size)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run = make_run(options.only, options.size, options.batch)
        gc.collect()  # models that others were made from
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here; Linux
        run(), run()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 1024)
        return

    # Before this process grows: a new process inherits the peak of the one that started it.
    memory = {name: peak_memory(name, options.size, options.batch) for name in names}
    check_equal(options.size, options.batch)
    seconds = take_turns({name: make_run(name, options.size, options.batch) for name in names}, options.repeats)
    print(f"{title}, {options.batch} x {options.size}x{options.size}, {torch.get_num_threads()} threads\n")
    print(f"{'':36}{'median s':>10}{'min':>8}{'max':>8}{'peak MiB':>10}")
    for name, times in seconds.items():
        print(f"{name:36}{statistics.median(times):10.3f}{min(times):8.3f}{max(times):8.3f}{memory[name]:10.0f}")
    found = {label: ratio(seconds[first], seconds[second]) for label, first, second in ratios}
    print()
    for label, value in found.items():
        print(f"{label:36}{value:10.3f}")
    if options.json:
        sizes = {"size": options.size, "batch": options.batch}
        result = {**machine(), **sizes, "seconds": seconds, "peak_mib": memory, "ratios": found}
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)
