"""The progress bar: loss, AP (or PQ), images a second and time left; and a line that stays for every epoch."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from dqdet.metrics.scores import shown
from dqdet.training.arriving import Arriving

RECENT = 20  # steps over which the shown loss is averaged
WINDOW = 120.0  # seconds over which the speed is averaged


class TrainingProgress(ProgressBar):
    """One bar for the whole training, a second one during validation. Lines only, where there is no terminal.

    Args:
        batch: images a step, over all processes.
        metric: of the validation that is shown.
        steps: optimiser steps after which the training ends; None: all epochs.
    """

    def __init__(self, batch: int, metric: str, steps: int | None = None) -> None:
        super().__init__()
        self.batch = batch
        self.metric = metric
        self.steps = steps
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _State(table_column=Column(no_wrap=True)),
            console=self.console,
            expand=True,  # the bar takes what the text leaves of the width
            speed_estimate_period=WINDOW,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.last: Arriving | None = None  # loss, shown a step later, when nothing has to wait for it
        self.enabled = True
        self.training: TaskID | None = None
        self.validation: TaskID | None = None

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False
        self.bars.disable = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.enabled:
            self.console.print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches)
        self.training = self.bars.add_task(
            self._epoch(trainer),
            total=min(total, self.steps or total),
            completed=trainer.global_step,
            batch=self.batch,
            metrics={},
        )
        self.bars.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.training is not None
        metrics = self._metrics(self.training)
        self.last = Arriving(outputs["loss"] * trainer.accumulate_grad_batches)
        self.bars.update(
            self.training,
            description=self._epoch(trainer),
            completed=trainer.global_step,
            metrics=metrics,
        )

    def _metrics(self, training: TaskID) -> dict[str, float | None]:
        """What is shown, with the mean of the recent losses."""
        if self.last is not None:
            self.losses.append(self.last.item())
            self.last = None
        loss = {"loss": sum(self.losses) / len(self.losses)} if self.losses else {}
        return self.bars.tasks[training].fields["metrics"] | loss

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation = self.bars.add_task("validation", total=sum(map(int, trainer.num_val_batches)))
        self.bars.start()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self.validation is not None
        self.bars.advance(self.validation)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.validation is not None
        self.bars.remove_task(self.validation)
        if self.training is not None:
            task = self.bars.tasks[self.training]
            logged = trainer.callback_metrics.get(f"val/{self.metric}")
            value = None if logged is None else logged.item()
            self.bars.update(self.training, metrics=self._metrics(self.training) | {self.metric: value})
            self.print(f"{task.description}  step {trainer.global_step}  {_state(task)}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.bars.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bars.stop()

    @staticmethod
    def _epoch(trainer: Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


class _State(ProgressColumn):
    """What is known of the training: ``loss 4.321  AP 0.234  35.1 images/s  0:12:34 left``."""

    def render(self, task: Task) -> Text:
        return Text(_state(task) if "metrics" in task.fields else "")


def _state(task: Task) -> str:
    parts = [f"{name} {shown(value)}" for name, value in task.fields["metrics"].items()]
    if task.speed:
        parts.append(f"{task.speed * task.fields['batch']:.1f} images/s")
    if task.time_remaining is not None:
        parts.append(f"{timedelta(seconds=int(task.time_remaining))} left")
    return "  ".join(parts)
