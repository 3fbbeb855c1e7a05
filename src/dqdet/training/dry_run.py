"""A rehearsal: some steps of a training, to say what all of them will need."""

from __future__ import annotations

import resource
import statistics
from datetime import timedelta

import torch

from dqdet.config import Config, total_steps
from dqdet.models import create_model
from dqdet.runs.folder import without_pretraining
from dqdet.training.batch_size import fitted
from dqdet.training.distributed import everywhere, meet
from dqdet.training.module import DetectionModule
from dqdet.training.monitoring import Timing
from dqdet.training.readiness import described, ready
from dqdet.training.trainer import make_trainer, products_rounded, quietly, weight_averaging

REHEARSED = 4  # steps


def rehearse(config: Config, fit_memory: bool = False) -> list[str]:
    """Take some steps of a training and validate some images, without a run: what it will need, in lines.

    Args:
        config: as of `train`.
        fit_memory: as of `train`.

    Returns:
        data, model, memory, time of a step, and the time that the whole training is expected to take.

    Raises:
        DqdetError: data or options are at fault.
    """
    meet(config.train.timeout)
    data, config = everywhere(lambda: ready(config))
    chosen: list[str] = []
    if fit_memory:
        data, config, line = fitted(config, data)
        chosen.append(line)
    module = DetectionModule(create_model(without_pretraining(config)), config)
    timing = Timing()
    trainer = make_trainer(config, [*weight_averaging(config.train.ema), timing], epochs=config.train.validate_every)
    trainer.limit_train_batches = min(REHEARSED, data.steps_per_epoch) * config.train.accumulate
    trainer.limit_val_batches = 1
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with products_rounded(config.train.tf32):
        quietly(trainer.fit, module, datamodule=data)
    if torch.cuda.is_available():
        memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of {torch.cuda.get_device_name()}"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB of this process"
    steps = total_steps(config.train, data.steps_per_epoch)
    validations = max(1, steps // (data.steps_per_epoch * config.train.validate_every))
    lines = [*chosen, described(config, module, data), f"memory: at most {memory}"]
    if not timing.steps:
        return [*lines, "time: an epoch has a single step, too few to be measured"]
    step, image = statistics.median(timing.steps), statistics.median(timing.images)
    seconds = steps * step + validations * len(data.val_set) * image
    return [
        *lines,
        f"time: {step:.3g} s a step of {config.train.batch}, {image:.3g} s an image in validation",
        f"in all: {steps} steps and {validations} validations, about {timedelta(seconds=round(seconds))}",
    ]
