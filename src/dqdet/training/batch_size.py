"""How many images of a step fit into the memory at once: ``train.batch=auto``.

The batch of the recipe stays. It is taken in equal parts, of the largest power of two that fits, and
``train.accumulate`` says how many these are. On a GPU steps are tried, largest parts first. On a CPU, where what does
not fit would end other programs, the peaks of two small steps tell what larger ones need.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dqdet.config import Config, DataConfig, Overrides, parse_overrides
from dqdet.data import open_dataset
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.runs.folder import without_pretraining
from dqdet.runs.processes import this_process
from dqdet.training.data_module import DataModule
from dqdet.training.module import DetectionModule
from dqdet.training.monitoring import Timing
from dqdet.training.trainer import make_trainer, products_rounded, quietly, weight_averaging

STEPS = 2  # of a trial: the optimiser has its state from the first one on
GPU_SHARE, CPU_SHARE = 0.9, 0.8  # of the memory: other images, the average of weights and workers need some, too
STATUS, RESET, MEMORY = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")

Trial = Callable[[int], int | None]  # images at a time -> peak of the memory in bytes, None: it was not enough


def without_auto(overrides: Overrides) -> tuple[dict[str, Any], bool]:
    """Overrides without ``train.batch=auto``, and whether it was there."""
    given = parse_overrides(overrides)
    auto = given.get("train.batch") == "auto"
    if auto and "train.accumulate" in given:
        raise DqdetError("train.batch=auto chooses train.accumulate; leave out one of them")
    return {path: value for path, value in given.items() if not (auto and path == "train.batch")}, auto


def fitted(config: Config, data: DataModule) -> tuple[DataModule, Config, str]:
    """The data and the configuration with a batch in parts that fit, and a line that says why these.

    Raises:
        DqdetError: several processes train together, not even one image fits, or the memory cannot be measured.
    """
    if this_process().world > 1:
        raise DqdetError("train.batch=auto is for one process; give train.batch and train.accumulate to several")
    largest = open_dataset(as_large_as_can_be(config.data), "train", config.train.seed)

    def trial(images: int) -> int | None:
        train = config.train.model_copy(update={"batch": images, "accumulate": 1})
        reading = config.data.model_copy(update={"workers": 0})
        changed = config.model_copy(update={"train": train, "data": reading})
        return peak_of_steps(changed, DataModule(changed, largest, data.val_set))

    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        images, reason = by_trying(parts_of(config.train.batch), trial, int(GPU_SHARE * there))
    else:
        images, reason = by_growth(parts_of(config.train.batch), trial, int(CPU_SHARE * available_memory()))
    accumulate = config.train.batch // images
    config = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": accumulate})})
    line = (
        f"train.batch=auto: {images} images at a time, train.accumulate={accumulate} keeps the recipe's batch of "
        f"{config.train.batch}; {reason}"
    )
    return DataModule(config, data.train_set, data.val_set), config, line


def parts_of(batch: int) -> list[int]:
    """The powers of two that divide a batch, ascending."""
    return [2**power for power in range(batch.bit_length()) if batch % 2**power == 0]


def by_trying(parts: Sequence[int], trial: Trial, limit: int) -> tuple[int, str]:
    """The largest part whose steps stay below ``limit`` (bytes), and why.

    Raises:
        DqdetError: there is none.
    """
    peaks: dict[int, int | None] = {}
    for images in reversed(parts):
        peak = peaks[images] = trial(images)
        if peak is not None and peak <= limit:
            return images, _reason(peaks, limit)
    raise DqdetError(f"train.batch=auto: not even one image at a time fits; {_reason(peaks, limit)}; take smaller ones")


def by_growth(parts: Sequence[int], trial: Trial, limit: int) -> tuple[int, str]:
    """The same from the peaks of two small parts, between and beyond which the memory grows evenly."""
    if len(parts) == 1:
        return parts[0], "an odd batch has no other parts of a power of two"
    small = parts[1:3] if len(parts) > 2 else parts
    first, second = (trial(images) for images in small)
    if first is None or second is None:
        raise DqdetError(f"train.batch=auto: steps of {small[0]} and {small[1]} images cannot be taken")
    growth = max(0.0, (second - first) / (small[1] - small[0]))  # of an image

    def expected(images: int) -> int:
        return round(second + (images - small[1]) * growth)

    fitting = [images for images in parts if expected(images) <= limit]
    if not fitting:
        raise DqdetError(
            f"train.batch=auto: not even one image at a time fits; {_reason({parts[0]: expected(parts[0])}, limit)}; "
            "take smaller ones"
        )
    return fitting[-1], _reason({images: expected(images) for images in parts if images >= fitting[-1]}, limit)


def _reason(peaks: Mapping[int, int | None], limit: int) -> str:
    """What the smallest part among these needs, and the next larger one."""
    needs = [
        f"{images} need {'too much' if peak is None else f'{peak / 2**30:.2f} GiB'}"
        for images, peak in sorted(peaks.items())[:2]
    ]
    return f"{', '.join(needs)} of {limit / 2**30:.2f} GiB"


def as_large_as_can_be(data: DataConfig) -> DataConfig:
    """The same data, where every training image has the largest size."""
    return data.model_copy(update={"resize": [max(data.resize)], "crop": False})


def peak_of_steps(config: Config, data: DataModule) -> int | None:
    """The peak of the memory (bytes) of some steps of a training; None: there was not enough."""
    on_gpu = torch.cuda.is_available()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # then it is the peak of all so far
            RESET.write_text("5")
    try:
        module = DetectionModule(create_model(without_pretraining(config)), config)
        trainer = make_trainer(config, [*weight_averaging(config.train.ema), Timing()], epochs=1)
        trainer.limit_train_batches = STEPS
        trainer.limit_val_batches = 0
        with products_rounded(config.train.tf32):
            quietly(trainer.fit, module, datamodule=data)
    except torch.OutOfMemoryError:
        return None
    if on_gpu:
        return torch.cuda.max_memory_reserved()
    return 1024 * _number(STATUS, r"VmHWM:\s+(\d+) kB")


def available_memory() -> int:
    """Bytes that this process may have in all: what it has, and what is left of the machine and its control group."""
    left = [1024 * _number(MEMORY, r"MemAvailable:\s+(\d+) kB")]
    with suppress(OSError, ValueError):
        most, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        left.append(most - used)
    return min(left) + 1024 * _number(STATUS, r"VmRSS:\s+(\d+) kB")


def _number(file: Path, pattern: str) -> int:
    try:
        found = re.search(pattern, file.read_text())
    except OSError:
        found = None
    if found is None:
        raise DqdetError("train.batch=auto cannot measure the memory of this system; give numbers")
    return int(found[1])
