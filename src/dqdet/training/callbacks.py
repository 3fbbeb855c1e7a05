"""What happens around the steps: validation with the official metrics, and checkpoints that survive interruptions."""

from __future__ import annotations

import io
import math
import multiprocessing
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.tensor import DTensor

from dqdet.config import to_yaml
from dqdet.errors import DqdetError, Interrupted
from dqdet.metrics.scores import is_kept, is_score
from dqdet.runs.folder import CONFIG, load_metrics, save_folder, write_file
from dqdet.training.arriving import Arriving
from dqdet.training.module import DetectionModule
from dqdet.training.task_metrics import TaskMetric
from dqdet.types import Batch, VideoStream


class Validation(Callback):
    """Measures a validation with the official metrics, and keeps the best model in the run folder.

    The best so far is what the folder holds, so it stays the best when the training is resumed. Of equal models, and
    where there is no score at all, the newest one is kept. What is no score is not logged.

    Args:
        metric: on the validation split.
        folder: of the run; None when nothing is to be kept.
        say: shows a line to the user.

    Attributes:
        metrics: of the last validation.
        step: after which that was.
    """

    def __init__(self, metric: TaskMetric, folder: Path | None = None, say: Callable[[str], None] = print) -> None:
        self.metric = metric
        self.folder = folder
        self.say = say
        self.said = False  # that there is no score
        self.metrics: dict[str, float] = {}
        self.step: int | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metric.reset()

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Any],
        batch: Batch | VideoStream,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.metric.update([target.image_id for target in batch.targets], outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DetectionModule)
        self.metrics, self.step = self.metric.compute(), trainer.global_step
        of_classes = f"{self.metric.best}/"
        logged = {name: v for name, v in self.metrics.items() if "/" not in name or name.startswith(of_classes)}
        summary = {f"val/{name}": v for name, v in logged.items() if is_score(v)}
        pl_module.log_dict(summary, sync_dist=True)
        if self.folder is None:
            return
        state = trainer.strategy.lightning_module_state_dict()  # gathered from all processes, where it is divided
        if not trainer.is_global_zero:
            return
        metric, best = self.metric.best, load_metrics(self.folder)
        kept = is_kept(self.metrics, best, metric)
        if not is_score(self.metrics[metric]) and not self.said:
            which = "the newest model is kept" if kept else f"that of step {best['step']} is kept"
            self.say(f"{metric} is not defined on the validation split, which has nothing to measure it on: {which}")
            self.said = True
        if kept:
            # JSON has no NaN.
            written = {name: -1.0 if math.isnan(value) else value for name, value in self.metrics.items()}
            metrics = {"step": trainer.global_step, **written}
            save_folder(self.folder, {n.removeprefix("model."): w for n, w in state.items()}, pl_module.config, metrics)


class LastCheckpoint(Callback):
    """Saves the state of the training after every epoch and at SIGINT and SIGTERM, and ends the training in time.

    The first signal lets the current step end (of several processes: the next one), a validation that has begun,
    too; the second one stops at once, unless both may come from one wish. An epoch is saved before its validation,
    because a validation can take long, and nothing of it is needed to go on.

    Args:
        file: to save to.
        steps: optimiser steps after which the training ends; None: all epochs.
        say: shows a line to the user.
    """

    def __init__(self, file: Path, steps: int | None, say: Callable[[str], None]) -> None:
        self.file = file
        self.steps = steps
        self.say = say
        self.signalled = False
        self.stopping = False  # before the next step
        self.asked: Arriving | None = None  # how many processes were signalled
        self.epoch_unsaved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            alone = trainer.world_size == 1 and multiprocessing.parent_process() is None

            def on_signal(number: int, frame: FrameType | None) -> None:
                # Of several processes each may get it twice, from the terminal and from torchrun or a study.
                if self.signalled and alone:
                    raise KeyboardInterrupt
                self.signalled = True
                step = "step" if trainer.world_size == 1 else "or the next step"
                what = "validation" if trainer.validating else step
                again = "; once more to stop at once, without saving" if alone else ""
                self.say(f"stopping after this {what}{again}")

            # Lightning's own handlers are replaced. It puts back those from before the training when it ends.
            signal.signal(signal.SIGINT, on_signal)
            signal.signal(signal.SIGTERM, on_signal)
        if trainer.is_global_zero:
            assert isinstance(pl_module, DetectionModule)
            # With the length that it goes on with, for when it is interrupted again.
            write_file(self.file.with_name(CONFIG), to_yaml(pl_module.config).encode())
        if self._complete(trainer):
            trainer.should_stop = True

    def _complete(self, trainer: Trainer) -> bool:
        return self.steps is not None and trainer.global_step >= self.steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._complete(trainer):
            trainer.should_stop = True
        if trainer.is_last_batch:
            self.epoch_unsaved = True
        elif (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            stop = self._anyone_signalled(trainer)
            if stop or trainer.should_stop:
                self._save(trainer, pl_module)
            self.stopping = stop  # when this step is in the logs

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.stopping:
            self._stop(trainer)

    # Lightning can go on from a checkpoint that is saved in one of these two hooks, but not reliably from one of the
    # last batch. The first comes before the averaged weights are swapped in.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_epoch(trainer, pl_module)
        if self._anyone_signalled(trainer):
            self._stop(trainer)

    def _save_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.epoch_unsaved:
            self._save(trainer, pl_module)
            self.epoch_unsaved = False

    def _anyone_signalled(self, trainer: Trainer) -> bool:
        """Processes receive a signal at different moments; they stop after the same step.

        Of several ones the answer is that to the question of a step before: none of them waits for its device.
        """
        if trainer.world_size == 1:
            return self.signalled
        own = torch.full((), float(self.signalled), device=trainer.strategy.root_device)
        asked, self.asked = self.asked, Arriving(trainer.strategy.reduce(own, reduce_op="sum"))
        return asked is not None and asked.item() > 0

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DetectionModule)
        pl_module.check_loss()
        own = (p.to_local() if isinstance(p, DTensor) else p for p in pl_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(all(bool(weights.isfinite().all()) for weights in own)):
            raise DqdetError(
                f"the weights are not finite after step {trainer.global_step}; the last checkpoint is kept; "
                "lower train.lr, warm up longer (train.warmup) or set train.precision=32"
            )
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.file)

    def _stop(self, trainer: Trainer) -> None:
        raise Interrupted(
            f"stopped after step {trainer.global_step}, nothing is lost; go on with "
            f"`dqdet train --resume {self.file.parent}`"
        )


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoints as files that are never half written and execute nothing when they are read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_file(Path(path), content.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except FileNotFoundError as error:
            raise DqdetError(
                f"{path}: no such file; a training writes it after its first epoch, or when it is interrupted"
            ) from error
        except Exception as error:  # whatever unpickling damaged bytes brings
            raise DqdetError(
                f"{path}: damaged or cut short ({type(error).__name__}); the training cannot go on from it"
            ) from error
