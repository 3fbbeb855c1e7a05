"""Data sets in COCO's detection and instance format, as downloaded or as exported by annotation tools, and those of
other formats (YOLO, Pascal VOC, LabelMe, shards) as COCO would have them.

Two layouts of a split are found under the root folder:

- ``annotations/instances_{split}.json`` with the images in ``{split}`` or ``images/{split}`` (COCO; CVAT, whose
  splits are called Train, Validation and Test),
- ``{split}/_annotations.coco.json`` with the images beside it (Roboflow).

Where neither has a split, a set without splits is divided into two (``data.val_share``):

- ``annotations/instances_default.json`` with the images in ``images/default`` or ``images`` (CVAT),
- ``result.json`` with the images that it names, mostly in ``images`` (Label Studio),
- ``_annotations.coco.json`` with the images beside it.

What cannot be used is an error that lists all faults at once. What the official loaders mend is mended: boxes are
clipped to their image, and objects without area inside it, or whose polygons enclose no pixel, are left out of the
targets. ``ground_truth`` stays as in the file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from dqdet.config import DataConfig
from dqdet.data.annotations import Annotations, completed, divided
from dqdet.data.coco_faults import find_faults
from dqdet.data.coco_files import SPLIT_NAMES, CocoImages, find_split, first_folder, refuse
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.data.labelme import read_labelme
from dqdet.data.transforms import Sample, least_side
from dqdet.data.voc import read_voc
from dqdet.data.webdataset import ShardImages, read_webdataset
from dqdet.data.yolo import read_yolo
from dqdet.errors import listed
from dqdet.formats.masks import CompressedMasks, compress, mask_area
from dqdet.formats.records import read_document

logger = logging.getLogger(__name__)

KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")  # of an annotation
CVAT = {"train": "Train", "val": "Validation", "test": "Test"}  # what it calls these splits


def _layouts(root: Path, name: str) -> Iterator[tuple[Path, list[Path]]]:
    yield root / "annotations" / f"instances_{name}.json", [root / name, root / "images" / name]
    yield root / name / "_annotations.coco.json", [root / name]
    if name in CVAT:
        of_cvat = CVAT[name]
        yield root / "annotations" / f"instances_{of_cvat}.json", [root / "images" / of_cvat, root / "images"]


def _undivided(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    images = root / "images"
    yield root / "annotations" / "instances_default.json", [images / "default", images]
    yield root / "result.json", [root]
    yield root / "_annotations.coco.json", [root]


def _find_undivided(config: DataConfig) -> tuple[Path, Path] | None:
    """Annotation file and image folder of a set without splits, if that is what the root folder has."""
    if config.root is None or config.train or config.val:
        return None
    root = Path(config.root)
    names = [name for split in SPLIT_NAMES.values() for name in split]
    if any(os.path.isfile(file) for name in names for file, _ in _layouts(root, name)):
        return None
    for file, folders in _undivided(root):
        if os.path.isfile(file):
            return file, first_folder(folders, f"{file}: the folder with its images is missing")
    return None


def read_coco(config: DataConfig, split: Split, keys: Sequence[str] | None = None) -> Annotations:
    """The annotations of a split; ``keys``: what is needed of each, see `read_document`.

    Raises:
        DqdetError: they are missing, or no document of COCO; of a set without splits also if they are faulty.
    """
    if found := _find_undivided(config):
        file, folder = found
        document = _with_slashes(read_document(file, keys=keys))
        refuse(file, find_faults(document, masks=config.task == "instance"), {})
        return Annotations(file, folder, divided(document, split, config.val_share))
    file, folder = find_split(config, split, _layouts)
    return Annotations(file, folder, read_document(file, keys=keys))


def _with_slashes(document: dict[str, Any]) -> dict[str, Any]:
    r"""Label Studio on Windows writes ``images\name.jpg``."""
    for image in document["images"]:
        name = image.get("file_name") if isinstance(image, dict) else None
        if isinstance(name, str) and "\\" in name:
            image["file_name"] = name.replace("\\", "/")
    return document


READERS: dict[str, Callable[[DataConfig, Split], Annotations]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "webdataset": read_webdataset,
}
WITH_KEYS: dict[str, Callable[[DataConfig, Split, Sequence[str]], Annotations]] = {  # those that read a document
    "coco": read_coco,
    "webdataset": read_webdataset,
}


class CocoDataset(DetectionDataset):
    """A split of a data set in COCO format, or in one that becomes it (`READERS`); see the module's docstring.

    The instance task has masks.
    Items are in the order of the image ids, labels in the order of the category ids. Images without objects
    are kept, except in training with ``config.skip_empty``. Crowd annotations are no targets, but part of
    ``ground_truth``, because the official evaluation ignores detections that lie in them. Files are converted to RGB
    and, unless their recorded sizes are those before that, turned upright as EXIF says.

    Raises:
        DqdetError: the data is missing or faulty.
    """

    masks: CompressedMasks | None = None  # of all objects

    def __init__(self, config: DataConfig, split: Split, seed: int = 0) -> None:
        super().__init__(config, split, seed)
        self.task = config.task
        # Masks would have to be shrunk with their image.
        shrunk = config.shrink and split == "train" and self.task == "detection"
        self.least = least_side(config) if shrunk else None
        self.read_annotations = partial(READERS[config.kind], config, split)
        needed = KEYS if self.task == "detection" else (*KEYS, "segmentation")
        read_keys = WITH_KEYS.get(config.kind)
        annotations = self.read_annotations() if read_keys is None else read_keys(config, split, needed)
        self.annotation_file, folder, document = annotations.file, annotations.folder, annotations.document
        faults = annotations.faults or find_faults(document, masks=self.task == "instance")
        for warning in annotations.warnings:
            logger.warning(warning)
        shards = annotations.shards
        refuse(self.annotation_file, faults, {} if shards is not None else {"images": (folder, document["images"])})

        categories = sorted(document["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        objects = [a for a in document["annotations"] if not a.get("iscrowd")]
        records = document["images"]
        if config.skip_empty and split == "train":
            shown = {one["image_id"] for one in objects}
            records = [record for record in records if record["id"] in shown]
        if shards is None:
            self.images = CocoImages(records, self.annotation_file, folder)
        else:
            ids = [record["id"] for record in document["images"]]
            self.images = ShardImages(records, self.annotation_file, folder, shards, ids)
        self.image_ids = self.images.ids
        self.aspect_ratios = self.images.aspect_ratios
        self._set_objects(objects)

    def _set_objects(self, annotations: list[dict[str, Any]]) -> None:
        """Arrays of all objects, those of an image one after the other and in the order of the file."""
        image_index = {image_id: index for index, image_id in enumerate(self.image_ids)}
        label = {category_id: label for label, category_id in enumerate(self.category_ids)}
        images = np.array([image_index[a["image_id"]] for a in annotations], dtype=np.int64)  # [objects]
        labels = np.array([label[a["category_id"]] for a in annotations], dtype=np.int64)  # [objects]
        boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 2, 2)
        boxes[:, 1] += boxes[:, 0]  # x, y, w, h -> (x0, y0), (x1, y1)
        sizes = self.images.sizes[images]  # [objects, 2]
        boxes = boxes.clip(0, sizes[:, None, ::-1])
        valid = np.all(boxes[:, 1] > boxes[:, 0], axis=1)
        self._warn("boxes have no area", annotations, ~valid)

        counts: list[bytes] = []
        if self.task == "instance":
            counts = [compress(a["segmentation"], *size) for a, size in zip(annotations, sizes.tolist(), strict=True)]
            areas = [mask_area(count, *size) for count, size in zip(counts, sizes.tolist(), strict=True)]
            empty = np.array(areas, dtype=np.int64) == 0
            self._warn("masks have no pixel", annotations, empty)
            valid &= ~empty

        order = np.flatnonzero(valid)
        order = order[np.argsort(images[order], kind="stable")]
        self.labels = labels[order]
        self.boxes = boxes[order].reshape(-1, 4).astype(np.float32)
        if self.task == "instance":
            self.masks = CompressedMasks([counts[position] for position in order])
        # Objects of image i: starts[i] .. starts[i + 1] - 1
        self.starts = np.searchsorted(images[order], np.arange(len(self.image_ids) + 1))

    def _warn(self, what: str, annotations: list[dict[str, Any]], dropped: np.ndarray) -> None:
        places = [annotations[position] for position in np.flatnonzero(dropped)]
        if ids := [place.get("place", place["id"]) for place in places]:
            logger.warning(
                f"{self.annotation_file}: {len(ids)} of {len(annotations)} {what} inside their "
                f"image and are left out of the targets: annotations {listed(ids)}"
            )

    def file_faults(self) -> list[str]:
        return self.images.file_faults()

    def read(self, index: int) -> Sample:
        first, stop = self.starts[index : index + 2].tolist()
        image, _, part = self.images.read_shrunk(index, self.least)
        height, width = image.shape[1:]
        boxes = torch.tensor(self.boxes[first:stop]) / part  # [N, 4]
        sample: Sample = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor(self.labels[first:stop]),
        }
        if self.masks is not None:
            sample["masks"] = tv_tensors.Mask(self.masks.decode(first, stop, height, width))
        return sample

    def has_objects(self) -> bool:
        return len(self.labels) > 0

    def ground_truth(self) -> dict[str, Any]:
        """The annotations, with the fields that evaluation needs and some tools leave out."""
        document = self.read_annotations().document
        document.setdefault("info", {})
        for annotation in document["annotations"]:
            annotation.pop("place", None)
        return completed(document, masks=self.task == "instance")
