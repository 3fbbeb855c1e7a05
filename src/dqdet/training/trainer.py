"""Lightning's Trainer, as everything here uses it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO, LayerSync, Precision
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from dqdet.config import Config, TrainConfig
from dqdet.runs.processes import this_process
from dqdet.training.callbacks import CheckpointFiles
from dqdet.training.distributed import Environment, meet
from dqdet.training.module import LOG_EVERY
from dqdet.training.sharding import ShardedStrategy


def make_trainer(
    config: Config,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] | Literal[False] = False,
    epochs: int | None = None,
) -> Trainer:
    """A trainer for one device, or for all processes that torchrun or srun started."""
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)  # no remarks on the machine
    options, process = config.train, this_process()
    meet(options.timeout)
    return Trainer(
        accelerator="auto",
        devices=process.local_world,
        num_nodes=-(-process.world // process.local_world),
        strategy=_strategy(options, process.together),
        plugins=_plugins(process.together),
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
        warnings.filterwarnings("ignore", message="MLFlow only allows")  # in the names of classes
        run(*args, **options)


def weight_averaging(ema: float | None) -> list[Callback]:
    """What keeps the moving average of the weights, which validations measure, if there is one (``train.ema``)."""
    return [AveragedWeights(ema)] if ema else []


class AveragedWeights(WeightAveraging):
    """The moving average of weights and buffers; of buffers that count or index, the newest."""

    def __init__(self, decay: float) -> None:
        def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
            """All of one type. What is frozen stays as it is, to the bit."""
            if averaged[0].is_floating_point():
                torch._foreach_lerp_(averaged, current, 1 - decay)
            else:
                torch._foreach_copy_(averaged, current)

        super().__init__(multi_avg_fn=update)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # where the model is going to be
        super().setup(trainer, pl_module, stage)


class SynchronisedNorms(LayerSync):
    """Batch norms that see the batches of all processes, with the activations that timm's have within."""

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # after the training they are as any other


@contextmanager
def products_rounded(tf32: bool) -> Iterator[None]:
    """On NVIDIA GPUs products and convolutions in TF32, or exactly in float32; afterwards as before."""
    if not torch.cuda.is_available():
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _plugins(together: bool) -> list[Precision | ClusterEnvironment | CheckpointIO | LayerSync]:
    if not together:
        return [LightningEnvironment(), CheckpointFiles()]
    norms = [SynchronisedNorms()] if torch.cuda.is_available() else []
    return [Environment(), CheckpointFiles(), *norms]


def _strategy(options: TrainConfig, together: bool) -> DDPStrategy | Literal["auto"]:
    if not together:
        if options.strategy == "fsdp":
            print("train.strategy=fsdp has no effect: torchrun or srun has not started this process", file=sys.stderr)
        return "auto"
    if options.strategy == "fsdp":
        return ShardedStrategy()
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def _precision(options: TrainConfig) -> Literal["32", "16-mixed", "bf16-mixed"]:
    """The configured precision where it can be had: half precision with scaled losses is for CUDA alone."""
    if options.precision == "16-mixed" and not torch.cuda.is_available():
        rank_zero_only(print)("train.precision=16-mixed needs a CUDA device; going on with 32", file=sys.stderr)
        return "32"
    return options.precision
