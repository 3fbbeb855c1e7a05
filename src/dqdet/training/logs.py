"""The logs of a run: one CSV file and one TensorBoard curve, however often the training is interrupted."""

from __future__ import annotations

import csv
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor

from dqdet.formats.writing import replacing
from dqdet.training.data_module import DataModule

Row = dict[str, Any]


class CsvLog(Logger):
    """A CSV file of everything that is logged. A row is in it as soon as it is logged.

    Args:
        file: goes on where it exists; see `keep`.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.columns: list[str] = []
        self.last: Row = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They are in the configuration of the run."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row = values | {"step": step}
        if row == self.last:  # a rate is logged with every part of an accumulated step
            return
        self.last = row
        if row.keys() <= set(self.columns):
            with self.file.open("a", newline="") as file:
                file.write(self._lines([row]))
        else:
            self._write([*self.rows(), row])

    @rank_zero_only
    def save(self) -> None:
        """Have all rows on the disk itself."""
        if self.file.exists():
            with self.file.open("a") as file:
                os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """What is in the file, apart from a row that a dying process has not finished."""
        if not self.file.exists():
            return []
        whole, _, _ = self.file.read_text().rpartition("\n")
        return list(csv.DictReader(StringIO(whole)))

    @rank_zero_only
    def keep(self, before: int) -> None:
        """Forget the rows of this step and later ones: they are logged again.

        Before a validation the state is saved, so none is done again; the one at the end of a training has the number
        of a step that did not follow.
        """
        self._write(
            [row for row in self.rows() if row["step"].isdecimal() and int(row["step"]) < before + _measured(row)]
        )

    def has_validation(self, done: int) -> bool:
        """Whether the model was measured after so many steps."""
        return any(row["step"] in (str(done - 1), str(done)) and _measured(row) for row in self.rows())

    def _write(self, rows: Sequence[Row]) -> None:
        self.columns = sorted({name for row in rows for name in row})
        with replacing(self.file) as unfinished:
            # Names of classes are in those of columns, and may need quotes as values do.
            unfinished.write_text(
                self._lines([dict(zip(self.columns, self.columns, strict=True)), *rows]) if rows else ""
            )

    def _lines(self, rows: Sequence[Row]) -> str:
        lines = StringIO(newline="")
        csv.DictWriter(lines, self.columns, lineterminator="\n").writerows(rows)
        return lines.getvalue()


class GoingOn(Callback):
    """When a training goes on, its logs go on after the step of the checkpoint.

    The checkpoint of an epoch is saved before its validation. If that was cut short, it is done now.

    Args:
        table: of the run.
        events: of the run; None: it has none.
    """

    def __init__(self, table: CsvLog, events: TensorBoardLogger | None) -> None:
        self.table = table
        self.events = events

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.global_step
        self.table.keep(before=done)
        if trainer.is_global_zero and self.events is not None:
            # TensorBoard forgets what it has of this step and later ones, too.
            start = Event(step=done, session_log=SessionLog(status=SessionLog.START))
            self.events.experiment.file_writer.add_event(start, done)
        if trainer.strategy.broadcast(self._validation_is_missing(trainer)):
            loop = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating = True
            loop.run()
            loop._has_run = False  # or Lightning would take all that follows for done
            trainer.training = True

    def _validation_is_missing(self, trainer: Trainer) -> bool:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DataModule)
        epochs, batches = data.position["epoch"], data.position["start"]
        if not epochs or batches or epochs % (trainer.check_val_every_n_epoch or 1):
            return False
        return not self.table.has_validation(trainer.global_step)


def _measured(row: Row) -> bool:
    return any(name.startswith("val/") and value for name, value in row.items())


@contextmanager
def quiet_threads() -> Iterator[None]:
    """TensorBoard's thread hands over what goes wrong when it writes, but prints a traceback as well."""
    before = threading.excepthook

    def hook(error: threading.ExceptHookArgs, /) -> None:
        if not isinstance(error.exc_value, OSError):
            before(error)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
