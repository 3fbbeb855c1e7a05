"""Lightning's Trainer, as everything here uses it."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import distributed as dist

from dqdet.config import Config, TrainConfig
from dqdet.training.callbacks import CheckpointFiles
from dqdet.training.module import LOG_EVERY


def make_trainer(
    config: Config,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] | Literal[False] = False,
    epochs: int | None = None,
) -> Trainer:
    """A trainer for one device, or for all processes that torchrun started."""
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)  # no remarks on the machine
    torchrun = TorchElasticEnvironment.detect()
    if torchrun:
        _leave_group_at_exit()
    environment: ClusterEnvironment = TorchElasticEnvironment() if torchrun else LightningEnvironment()
    devices = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else 1
    options = config.train
    return Trainer(
        accelerator="auto",
        devices=devices,
        num_nodes=environment.world_size() // devices,
        strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if torchrun else "auto",
        sync_batchnorm=torchrun and torch.cuda.is_available(),
        plugins=[environment, CheckpointFiles()],
        precision=_precision(options),
        max_epochs=epochs,
        check_val_every_n_epoch=options.validate_every,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip or None,
        callbacks=list(callbacks),
        logger=loggers,
        log_every_n_steps=LOG_EVERY,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def quietly(run: Callable[..., object], *args: object, **options: object) -> None:
    """Without the warnings that do not help whoever trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # advice: more workers, log more often
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and PyTorch
        run(*args, **options)


def _precision(options: TrainConfig) -> Literal["32", "16-mixed", "bf16-mixed"]:
    """The configured precision where it can be had: half precision with scaled losses is for CUDA alone."""
    if options.precision == "16-mixed" and not torch.cuda.is_available():
        rank_zero_only(print)("train.precision=16-mixed needs a CUDA device; going on with 32", file=sys.stderr)
        return "32"
    return options.precision


@cache
def _leave_group_at_exit() -> None:
    """A process that ends inside its group may abort, because threads of the group are still running."""
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
