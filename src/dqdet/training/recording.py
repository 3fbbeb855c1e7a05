"""What an evaluation leaves: predictions in the official format of data set and task, metrics, a table of classes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from dqdet.config import Config
from dqdet.data.cityscapes import IMAGE_ENDING, CityscapesDataset
from dqdet.data.dataset import DetectionDataset
from dqdet.data.segments import SegmentsDataset
from dqdet.errors import DqdetError
from dqdet.formats.panoptic import VOID, write_ids
from dqdet.formats.results import IouType, StoredResults, coco_results, panoptic_result, video_results
from dqdet.runs.folder import NO_CATEGORY, save_metrics
from dqdet.types import Batch, ImageDetections, PanopticMap, Segmentation, Track, VideoStream

RESULTS = "results.json"
CLASSES = "classes.csv"
UNDEFINED = -1  # nothing in the data to measure it on


class Files(Protocol):
    """Results files of one format. Every process adds its own images; ``write`` is for all of them to call."""

    def add(self, image_id: int, found: Any, length: int) -> None: ...
    def write(self, first: bool) -> None: ...


class CocoFile:
    """``results.json`` of boxes or masks, as the evaluation of COCO reads it; of panoptic models the things."""

    def __init__(self, config: Config, folder: Path, iou_type: IouType) -> None:
        self.category_ids = config.category_ids
        self.folder = folder
        self.iou_type: IouType = iou_type
        self.results = StoredResults()

    def add(self, image_id: int, found: ImageDetections | Segmentation, length: int) -> None:
        entries = coco_results(image_id, _objects(found), self.category_ids, self.iou_type)
        self.results[image_id] = [entry for entry in entries if entry["category_id"] != NO_CATEGORY]

    def write(self, first: bool) -> None:
        self.results.gather()
        if first:
            self.results.write(self.folder / RESULTS)


class TracksFile:
    """``results.json`` of tracks, as the server of YouTube-VIS reads it."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.category_ids = config.category_ids
        self.folder = folder
        self.results = StoredResults()

    def add(self, image_id: int, found: list[Track], length: int) -> None:
        tracks = [one for one in found if self.category_ids[one.label] != NO_CATEGORY]
        self.results[image_id] = video_results(image_id, tracks, length, self.category_ids)

    def write(self, first: bool) -> None:
        self.results.gather()
        if first:
            self.results.write(self.folder / RESULTS)


class PanopticFiles:
    """``panoptic.json`` and its maps in ``panoptic/``, as the evaluation of panoptic segmentation reads them.

    An image of Cityscapes has its name for an id there, such as ``frankfurt_000000_000294``.
    """

    def __init__(self, dataset: SegmentsDataset, folder: Path) -> None:
        self.dataset = dataset
        self.folder = folder
        self.indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
        self.results = StoredResults()

    def add(self, image_id: int, found: Segmentation, length: int) -> None:
        file_name = PurePosixPath(self.dataset.file_names[self.indices[image_id]])
        given: Any = image_id
        if isinstance(self.dataset, CityscapesDataset):
            given = file_name.name.removesuffix(IMAGE_ENDING)
        name = str(file_name.with_suffix(".png"))
        panoptic = _of_known_categories(found.panoptic)
        place = self.folder / "panoptic" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_ids(place, panoptic.ids)
        self.results[image_id] = [panoptic_result(given, name, panoptic)]

    def write(self, first: bool) -> None:
        self.results.gather()
        if first:
            annotations = [entry for entries in self.results.values() for entry in entries]
            document = {"annotations": annotations, "categories": self.dataset.panoptic_categories}
            (self.folder / "panoptic.json").write_text(json.dumps(document))


class CityscapesFiles:
    """Of each image a text file and the masks that it names, as the evaluation of Cityscapes reads them."""

    def __init__(self, config: Config, dataset: CityscapesDataset, folder: Path) -> None:
        self.category_ids = config.category_ids
        self.dataset = dataset
        self.folder = folder / "instances"
        self.indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}

    def add(self, image_id: int, found: ImageDetections | Segmentation, length: int) -> None:
        objects = _objects(found)
        assert objects.masks is not None, "these detections have no masks"
        image = PurePosixPath(self.dataset.file_names[self.indices[image_id]]).name.removesuffix(IMAGE_ENDING)
        (self.folder / "masks").mkdir(parents=True, exist_ok=True)
        lines = []
        entries = zip(objects.scores.tolist(), objects.labels.tolist(), objects.masks, strict=True)
        for number, (score, label, mask) in enumerate(entries):
            if self.category_ids[label] == NO_CATEGORY:
                continue
            name = f"masks/{image}_{number}.png"
            Image.fromarray(mask.view(np.uint8) * 255).save(self.folder / name)  # [H, W]
            lines.append(f"{name} {self.category_ids[label]} {score}\n")
        (self.folder / f"{image}_pred.txt").write_text("".join(lines))

    def write(self, first: bool) -> None:
        """All is written already."""


def _objects(found: ImageDetections | Segmentation) -> ImageDetections:
    return found.instances if isinstance(found, Segmentation) else found


def _of_known_categories(panoptic: PanopticMap) -> PanopticMap:
    """Without segments of classes that the data set has not."""
    unknown = [segment["id"] for segment in panoptic.segments if segment["category_id"] == NO_CATEGORY]
    ids = panoptic.ids.copy()
    for number in unknown:
        ids[ids == number] = VOID
    return PanopticMap(ids, [segment for segment in panoptic.segments if segment["id"] not in unknown])


def official_files(config: Config, dataset: DetectionDataset, folder: Path) -> list[Files]:
    """Those of a task and a data set; ``config.category_ids`` are the data set's ids of the model's classes."""
    match config.data.task:
        case "detection":
            return [CocoFile(config, folder, "bbox")]
        case "video":
            return [TracksFile(config, folder)]
    files: list[Files] = [
        CityscapesFiles(config, dataset, folder)
        if isinstance(dataset, CityscapesDataset)
        else CocoFile(config, folder, "segm")
    ]
    if config.data.task == "panoptic":
        assert isinstance(dataset, SegmentsDataset)
        files.append(PanopticFiles(dataset, folder))
    return files


class Recording(Callback):
    """Gives official files what a validation finds.

    Raises:
        DqdetError: they cannot be written.
    """

    def __init__(self, files: Sequence[Files], folder: Path) -> None:
        self.files = files
        self.folder = folder

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Any],
        batch: Batch | VideoStream,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        with writing(self.folder):
            for target, found in zip(batch.targets, outputs, strict=True):
                for file in self.files:
                    file.add(target.image_id, found, target.boxes.shape[1])  # of a video [N, T, 4]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with writing(self.folder):
            for file in self.files:
                file.write(trainer.is_global_zero)


@contextmanager
def results_folder(out: Path, first: bool) -> Iterator[Path]:
    """An empty folder to write to, which at the end takes the place of ``out``. Several processes need to see the same.

    Args:
        out: a new folder, an empty one, or that of an earlier evaluation, which is kept until the end.
        first: whether this is the first of several processes, which makes and moves the folder.

    Raises:
        DqdetError: ``out`` has other files, or cannot be written.
    """
    unfinished = out.with_name(f".{out.name}.unfinished")
    with writing(out):
        if out.exists() and any(out.iterdir()) and not (out / CLASSES).is_file():
            raise DqdetError(f"{out}: has files that are of no evaluation; choose another folder for the results")
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if first:
            with writing(out):
                if out.exists():
                    shutil.rmtree(out)
                unfinished.rename(out)
    finally:
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """``metrics.json`` with all of them, and ``classes.csv`` with a line for each class.

    A field is empty where the data has nothing to measure it on. Raises DqdetError when they cannot be written.
    """
    of_classes: dict[str, dict[str, float | None]] = {}
    for name, value in metrics.items():
        metric, slash, label = name.partition("/")
        if slash:
            of_classes.setdefault(label, {})[metric] = None if value == UNDEFINED else value
    columns = dict.fromkeys(metric for values in of_classes.values() for metric in values)
    with writing(folder):
        save_metrics(folder, metrics)
        with (folder / CLASSES).open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["class", *columns])
            table.writeheader()
            table.writerows({"class": label} | values for label, values in of_classes.items())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DqdetError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another folder (--out) or make space"
        ) from error
