"""Real trainings on generated scenes of 256 pixels, and whether the loader or the card bounds them."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from dqdet.config import Config, resolve
from dqdet.data import open_dataset
from dqdet.data.loader import make_loader
from dqdet.training.engine import train
from gpu.measurements import Measurement, Result, Setting

PRESETS = ("scenes_tiny", "deformable_detr_r50")  # a small model and a full one
SIZE, BATCH, STEPS = 256, 32, 200
TINY_SIZE, TINY_BATCH, TINY_STEPS = 64, 2, 6
WAITS = 0.1  # share of the time, from which on it is the loader that bounds a training


class Waiting(Callback):
    """Seconds of all but the first steps, and those of them that were spent waiting for a batch.

    The matching of every step waits for the device, so that the times of the CPU are those of both.
    """

    def __init__(self, skipped: int) -> None:
        self.skipped = skipped  # steps, in which workers start and kernels are chosen
        self.ends: list[float] = []  # of steps
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def steps(self) -> int:
        return len(self.ends) - self.skipped

    @property
    def total(self) -> float:
        return self.ends[-1] - self.ends[self.skipped - 1]

    @property
    def waited(self) -> float:
        pairs = zip(self.ends[self.skipped - 1 :], self.starts[self.skipped :], strict=False)
        return sum(start - end for end, start in pairs)


def make_config(setting: Setting, preset: str) -> Config:
    size, batch, steps = (TINY_SIZE, TINY_BATCH, TINY_STEPS) if setting.tiny else (SIZE, BATCH, STEPS)
    cores = len(os.sched_getaffinity(0))
    overrides: dict[str, Any] = {
        "model.backbone.pretrained": False,
        "data.kind": "scenes",
        "data.workers": 0 if setting.tiny else cores,
        "data.resize": [size],
        "data.max_size": size,
        "data.val_resize": size,
        "data.crop": False,
        "data.scenes.size": size,
        "data.scenes.train_images": batch * steps,
        "data.scenes.val_images": batch,
        "train.batch": batch,
        "train.steps": steps,
        "train.drop": [],
        "train.drop_steps": [],
        "train.precision": "bf16-mixed",
    }
    return resolve(preset, overrides)


def loader_alone(config: Config) -> float:
    """Images a second that the loader gives to whoever does nothing with them."""
    loader = make_loader(
        open_dataset(config.data, "train", config.train.seed),
        batch=config.train.batch,
        train=True,
        seed=config.train.seed,
        workers=config.data.workers,
    )
    batches = iter(loader)
    next(batches)  # workers start
    start = time.perf_counter()
    count = sum(len(batch) for batch in islice(batches, len(loader) // 2))
    return count / (time.perf_counter() - start)


def measure(setting: Setting, preset: str) -> Result:
    config = make_config(setting, preset)
    alone = loader_alone(config)
    waiting = Waiting(skipped=2 if setting.tiny else 20)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        train(config, Path(folder) / "run", [waiting])
    images = waiting.steps * config.train.batch
    share = waiting.waited / waiting.total
    return {
        "preset": preset,
        "size": config.data.max_size,
        "batch": config.train.batch,
        "steps": waiting.steps,
        "workers": config.data.workers,
        "precision": config.train.precision,
        "images_per_s": images / waiting.total,
        "images_per_s_of_steps": images / (waiting.total - waiting.waited),
        "images_per_s_of_loader": alone,
        "waiting": share,
        "bound_by": "loader" if share > WAITS else "step",
    }


def measurements(setting: Setting) -> list[Measurement]:
    return [Measurement(preset, partial(measure, setting, preset)) for preset in PRESETS[: 1 if setting.tiny else None]]
