"""What an evaluation leaves: the predictions in the official formats of data set and task, metrics, a table of classes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from dqdet.config import Config
from dqdet.data.cityscapes import IMAGE_ENDING, CityscapesDataset
from dqdet.data.dataset import DetectionDataset
from dqdet.data.segments import SegmentsDataset
from dqdet.errors import DqdetError
from dqdet.formats.panoptic import VOID, write_ids
from dqdet.formats.results import IouType, StoredResults, coco_results, panoptic_result, video_results
from dqdet.runs.folder import METRICS, NO_CATEGORY
from dqdet.types import Batch, ImageDetections, PanopticMap, Segmentation, Track

RESULTS = "results.json"
CLASSES = "classes.csv"


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
        for number, (score, label) in enumerate(zip(objects.scores.tolist(), objects.labels.tolist(), strict=True)):
            if self.category_ids[label] == NO_CATEGORY:
                continue
            name = f"masks/{image}_{number}.png"
            mask = objects.masks[number].to(torch.uint8) * 255  # [H, W]
            Image.fromarray(mask.cpu().numpy()).save(self.folder / name)
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
    of_cityscapes = isinstance(dataset, CityscapesDataset)
    files: list[Files] = [CityscapesFiles(config, dataset, folder) if of_cityscapes else CocoFile(config, folder, "segm")]
    if config.data.task == "panoptic":
        assert isinstance(dataset, SegmentsDataset)
        files.append(PanopticFiles(dataset, folder))
    return files


class Recording(Callback):
    """Writes what a validation finds into a folder, which takes the place of ``out`` when all is done.

    Several processes need to see the same folder.

    Args:
        out: the folder; a new or an empty one, or that of an earlier evaluation.

    Raises:
        DqdetError: ``out`` has other files, or cannot be written; an earlier evaluation there is kept.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.unfinished = out.with_name(f".{out.name}.unfinished")
        self.files: list[Files] = []
        if out.exists() and not (out / METRICS).is_file() and any(out.iterdir()):
            raise DqdetError(f"{out}: has files that are of no evaluation; choose another folder for the results")

    def start(self, config: Config, dataset: DetectionDataset, first: bool) -> None:
        """To be called before the validation; the first process makes the folder empty."""
        if first:
            self._writing(lambda: (shutil.rmtree(self.unfinished, ignore_errors=True), self.unfinished.mkdir(parents=True)))
        self.files = official_files(config, dataset, self.unfinished)

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Any],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        ...
