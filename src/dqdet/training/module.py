"""What Lightning runs: one training step, one validation step, the optimiser."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from dqdet.config import Config
from dqdet.errors import DqdetError, listed
from dqdet.inference import infer
from dqdet.inference.windows import best_tracks, track
from dqdet.losses import Losses, make_loss
from dqdet.nn.checkpointing import recompute
from dqdet.runs.folder import check_finite, differences
from dqdet.training.arriving import Arriving
from dqdet.training.data_module import DataModule
from dqdet.training.optimiser import follow, freeze, make_optimiser, make_schedule
from dqdet.types import Batch, Outcome, Track, VideoStream

LOG_EVERY = 10  # steps
# Of a checkpoint, without which a training would not go on where it was.
ENTRIES: dict[str, type] = {
    **{"epoch": int, "global_step": int, "state_dict": dict, "loops": dict},
    **{"optimizer_states": list, "lr_schedulers": list, DataModule.__qualname__: dict},
}


class DetectionModule(LightningModule):
    """A detector in training.

    Args:
        model: made by ``create_model(config)``.
        config: of the run.
    """

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__()
        self.model = model
        freeze(model, config.train)
        if config.train.recompute:
            recompute(model)
        self.criterion = make_loss(config.loss)
        self.config = config
        self.parts: list[Tensor] = []  # of a step that is logged, the losses of its batches so far
        self.unchecked: tuple[Arriving, str] | None = None  # the last loss, and what it is the loss of
        self.restored = False  # whether all that a checkpoint held is in its place

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        freeze(self.model, self.config.train)  # Lightning asks for training mode again after each validation
        return self

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on the position in the training only, so a resumed run needs no state of generators.
        position = [self.config.train.seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.criterion(self.model(batch.images, batch.padding, batch.targets), batch.targets, batch.counts)
        self.check_loss()  # of the step before, for which nothing has to wait any more
        images = ", ".join(str(target.image_id) for target in batch.targets)
        place = f"step {self.global_step + 1} (epoch {self.current_epoch + 1}, images {images})"
        self.unchecked = Arriving(losses.total), place
        if (self.global_step + 1) % LOG_EVERY == 0:
            self.log_losses(losses, len(batch))
        return losses.total

    def check_loss(self) -> None:
        """Look at the last loss, unless it was looked at. Nothing may be saved before.

        Raises:
            DqdetError: it is not finite.
        """
        if self.unchecked is None:
            return
        (arriving, place), self.unchecked = self.unchecked, None
        if not math.isfinite(loss := arriving.item()):
            raise DqdetError(
                f"the loss is {loss} in {place}; the last checkpoint is kept; lower train.lr, warm up longer "
                "(train.warmup) or set train.precision=32"
            )

    def log_losses(self, losses: Losses, batch_size: int) -> None:
        """The means over the batches of a step and all processes, in one reduction and one transfer."""
        scalars = {"loss": losses.total.detach(), **losses.terms}
        self.parts.append(torch.stack(list(scalars.values())))
        if len(self.parts) < self.config.train.accumulate:
            return
        mean = torch.stack(self.parts).mean(0)
        self.parts.clear()
        means = self.trainer.strategy.reduce(mean, reduce_op="mean").cpu()
        logged = {f"train/{name}": mean for name, mean in zip(scalars, means, strict=True)}
        self.log_dict(logged, batch_size=batch_size)

    def on_train_epoch_end(self) -> None:
        # Not at the start of the next epoch: that hook is not called for the first epoch of a resumed training.
        assert isinstance(self.trainer.datamodule, DataModule)  # type: ignore[attr-defined]
        self.trainer.datamodule.start_epoch(self.current_epoch + 1)  # type: ignore[attr-defined]

    def validation_step(  # type: ignore[override]
        self, batch: Batch | VideoStream, batch_idx: int
    ) -> list[Outcome] | list[list[Track]]:
        if isinstance(batch, VideoStream):
            (target,) = batch.targets
            parts = track(self.model, batch.frames, target.original_size, self.config)
            return [best_tracks(parts, self.config.inference.limit)]
        predictions = self.model(batch.images, batch.padding)
        sizes, original_sizes = zip(*((target.size, target.original_size) for target in batch.targets), strict=True)
        return infer(predictions, sizes, original_sizes, self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        wrong = [entry for entry, kind in ENTRIES.items() if not isinstance(checkpoint.get(entry), kind)]
        if wrong:
            raise DqdetError(f"the checkpoint to go on from has no {listed(wrong)}, or not as a training saves it")
        weights = checkpoint["state_dict"]
        if other := differences(self.state_dict(), weights):
            raise DqdetError(f"the checkpoint to go on from is of another model than configured: {other}")
        check_finite(weights, "the checkpoint to go on from")
        done = {"epochs": checkpoint[DataModule.__name__]["epoch"], "steps": checkpoint["global_step"]}
        for unit, passed in done.items():
            wanted = getattr(self.config.train, unit)
            if wanted is not None and passed > wanted:
                raise DqdetError(f"train.{unit}={wanted} is less than the {passed} {unit} that this training has done")

    def on_train_start(self) -> None:
        self.restored = True
        (schedule,) = self.trainer.lr_scheduler_configs
        follow(schedule.scheduler)  # type: ignore[arg-type]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        assert isinstance(self.trainer.datamodule, DataModule)  # type: ignore[attr-defined]
        optimiser = make_optimiser(self.model, self.config.train)
        schedule = make_schedule(optimiser, self.config.train, self.trainer.datamodule.steps_per_epoch)  # type: ignore[attr-defined]
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
