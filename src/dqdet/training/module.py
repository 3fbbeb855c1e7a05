"""What Lightning runs: one training step, one validation step, the optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from dqdet.config import Config
from dqdet.errors import DqdetError
from dqdet.inference import infer
from dqdet.inference.windows import best_tracks, track
from dqdet.losses import make_loss
from dqdet.runs.folder import differences
from dqdet.training.data_module import DataModule
from dqdet.training.optimiser import make_optimiser, make_schedule
from dqdet.types import Batch, Outcome, Track

LOG_EVERY = 10  # steps


class DetectionModule(LightningModule):
    """A detector in training.

    Args:
        model: made by ``create_model(config)``.
        config: of the run.
    """

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__()
        self.model = model
        self.criterion = make_loss(config.loss)
        self.config = config

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on the position in the training only, so a resumed run needs no state of generators.
        position = [self.config.train.seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.criterion(self.model(batch.images, batch.padding), batch.targets, batch.counts)
        if not losses.total.isfinite():
            images = ", ".join(str(target.image_id) for target in batch.targets)
            raise DqdetError(
                f"the loss is {losses.total.item()} in step {self.global_step + 1} (epoch {self.current_epoch + 1}, "
                f"images {images}); the last checkpoint is kept; lower train.lr, warm up longer (train.warmup) or set "
                "train.precision=32"
            )
        if (self.global_step + 1) % LOG_EVERY == 0:
            scalars = {"loss": losses.total.detach(), **losses.terms}
            self.log_dict(
                {f"train/{name}": value for name, value in scalars.items()},
                batch_size=len(batch),
                sync_dist=True,
            )
        return losses.total

    def on_train_epoch_end(self) -> None:
        # Not at the start of the next epoch: that hook is not called for the first epoch of a resumed training.
        assert isinstance(self.trainer.datamodule, DataModule)  # type: ignore[attr-defined]
        self.trainer.datamodule.start_epoch(self.current_epoch + 1)  # type: ignore[attr-defined]

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Outcome] | list[list[Track]]:  # type: ignore[override]
        if self.config.data.task == "video":
            (target,) = batch.targets  # whole videos come one at a time, without padding
            parts = track(self.model, batch.images[0], target.original_size, self.config)
            return [best_tracks(parts, self.config.inference.limit)]
        predictions = self.model(batch.images, batch.padding)
        sizes, original_sizes = zip(*((target.size, target.original_size) for target in batch.targets), strict=True)
        return infer(predictions, sizes, original_sizes, self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if other := differences(self.state_dict(), checkpoint["state_dict"]):
            raise DqdetError(f"the checkpoint to go on from is of another model than configured: {other}")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        config = self.config.train
        optimiser = make_optimiser(self.model, config)
        steps_per_epoch = int(self.trainer.estimated_stepping_batches) // config.epochs
        schedule = make_schedule(optimiser, config, steps_per_epoch)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
