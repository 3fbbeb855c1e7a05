"""Watches a training step by step."""

import os
import signal
from dataclasses import dataclass, field

import torch
from lightning.pytorch import Callback


@dataclass
class Recorder(Callback):
    """Keeps what a training did, and sends itself signals.

    Attributes:
        steps: (epoch, batch, images, loss, learning rate) of each batch.
        validations: (optimiser steps before it, sum of the validated weights).
    """

    signal_after: int | None = None  # batches
    signal: int = signal.SIGINT
    steps: list[tuple] = field(default_factory=list)
    validations: list[tuple] = field(default_factory=list)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        images = [target.image_id for target in batch.targets]
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.steps.append((trainer.current_epoch, batch_idx, images, outputs["loss"].item(), rate))
        if len(self.steps) == self.signal_after:
            os.kill(os.getpid(), self.signal)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            weights = sum(p.double().abs().sum() for p in pl_module.parameters())
            self.validations.append((trainer.global_step, torch.as_tensor(weights).item()))
