"""What a person watches while a training runs: curves, pictures, and whether it still gets better."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from dqdet.data.dataset import DetectionDataset
from dqdet.drawing.curves import curves
from dqdet.drawing.pictures import detected, objects, picture, side_by_side
from dqdet.formats.image_files import write_image
from dqdet.metrics.processes import gathered
from dqdet.runs.folder import write_file
from dqdet.training.logs import CsvLog
from dqdet.types import Batch, ImageDetections, VideoStream


class Patience(Callback):
    """Ends a training when validations stop getting better.

    How many there were since the best one is counted in the log, so that it counts on when the training is resumed.

    Args:
        validations: without a better one after which the training ends.
        table: of the run.
        metric: that says which of two models is better.
        say: shows a line to the user.
    """

    def __init__(self, validations: int, table: CsvLog, metric: str, say: Callable[[str], None] = print) -> None:
        self.validations = validations
        self.table = table
        self.metric = metric
        self.say = say

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        values = [float(row[f"val/{self.metric}"]) for row in self.table.rows() if row.get(f"val/{self.metric}")]
        since = len(values) - 1 - values.index(max(values)) if values else 0
        if trainer.strategy.broadcast(since >= self.validations):
            trainer.should_stop = True
            if trainer.is_global_zero:
                self.say(
                    f"{self.metric} has not become better in {since} validations (train.patience={self.validations}): "
                    f"the training ends after step {trainer.global_step}"
                )


class Curves(Callback):
    """Keeps a picture of the training's curves up to date, in the folder of the run.

    Drawing takes a part of a second, so there is a new one after a minute at most, and at the end.

    Args:
        file: to write.
        table: of the run.
        metric: of the validation.
    """

    EVERY = 60.0  # seconds

    def __init__(self, file: Path, table: CsvLog, metric: str) -> None:
        self.file = file
        self.table = table
        self.metric = metric
        self.drawn = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if time.monotonic() - self.drawn > self.EVERY:
            self.draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.draw(trainer)

    def draw(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and (rows := self.table.rows()):
            content = io.BytesIO()
            curves(rows, self.metric).savefig(content, format="png")
            write_file(self.file, content.getbuffer())
        self.drawn = time.monotonic()


class ValidationPictures(Callback):
    """Draws what the model finds in the same few validation images, beside the truth, as the training goes on.

    They are in ``logs/pictures`` and in the loggers that take pictures, about `TIMES` times in a training.

    Args:
        dataset: of the validation.
        count: of the images, which are spread over the data set.
        folder: to write to.
        threshold: lowest score that is drawn.
    """

    TIMES = 10
    WIDTH = 480  # pixels of each picture

    def __init__(self, dataset: DetectionDataset, count: int, folder: Path, threshold: float = 0.3) -> None:
        spread = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
        self.dataset = dataset
        self.indices = {dataset.image_ids[index]: index for index in spread}
        self.folder = folder
        self.threshold = threshold
        self.found: dict[int, ImageDetections] = {}

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[ImageDetections],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for target, found in zip(batch.targets, outputs, strict=True):
            if target.image_id in self.indices:
                self.found[target.image_id] = found

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found, self.found = gathered(self.found), {}
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        wanted = epoch == epochs or epoch % max(1, epochs // self.TIMES) == 0
        if not (trainer.is_global_zero and wanted and trainer.state.fn == "fit"):
            return
        drawn = self._picture(found)
        file = self.folder / f"epoch_{epoch:04d}.jpg"
        write_image(file, drawn)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(drawn)  # [H, W, 3]
                logger.experiment.add_image("val/pictures", pixels, trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("val/pictures", [drawn], trainer.global_step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifact(logger.run_id, file, "pictures")

    def _picture(self, found: Mapping[int, ImageDetections]) -> Image.Image:
        images, truths, detections = [], [], []
        for image_id, index in self.indices.items():
            sample = self.dataset.read(index)
            images.append(picture(sample["image"]))
            truths.append(objects(sample["boxes"], sample["labels"], self.dataset.classes, sample.get("masks")))
            detections.append(detected(found[image_id], self.dataset.classes, self.threshold))
        return side_by_side(images, {"truth": truths, "prediction": detections}, self.WIDTH)


class Timing(ProgressBar):
    """How long the steps of a training and the images of a validation take, reading included. It shows nothing.

    Attributes:
        steps: seconds of each step; the first one, which prepares much, is left out.
        images: seconds an image of each batch of the validation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []
        self.images: list[float] = []
        self.last: float | None = None

    def enable(self) -> None:
        """There is nothing to show."""

    def disable(self) -> None:
        """There is nothing to hide."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now = self._now(pl_module)
        if self.last is not None:
            self.steps.append(now - self.last)
        self.last = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = self._now(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch | VideoStream,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self.last is not None
        now = self._now(pl_module)
        self.images.append((now - self.last) / len(batch.targets))
        self.last = now

    @staticmethod
    def _now(pl_module: LightningModule) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        return time.perf_counter()
