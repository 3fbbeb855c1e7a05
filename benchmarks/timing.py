"""What the benchmarks share: their input, timing in turns, and ratios of times."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dqdet.types import Target

CLASSES = 91
OBJECTS = 7  # an image, the average of COCO

Seconds = dict[str, list[float]]  # what was timed -> its time in every repeat


def make_input(size: int, batch: int) -> tuple[Tensor, Tensor, list[Target]]:
    """Images ``[batch, 3, size, size]``, their padding (none) and targets."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, size, size, generator=generator)
    padding = torch.zeros(batch, size, size, dtype=torch.bool)
    targets = [
        Target(
            labels=torch.randint(CLASSES, (OBJECTS,), generator=generator),
            boxes=torch.rand(OBJECTS, 4, generator=generator) * 0.4 + 0.2,
            crowd=torch.zeros(OBJECTS, dtype=torch.bool),
            size=(size, size),
            original_size=(size, size),
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


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> Seconds:
    """Seconds of every run, ``repeats`` of each after one that is not counted.

    Runs take turns within every repeat, so that a machine whose speed drifts does not favour one of them.
    """
    seconds: Seconds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
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
