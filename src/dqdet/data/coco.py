"""Data sets in COCO's detection and instance format, as downloaded or as exported by annotation tools.

Two layouts of a split are found under the root folder:

- ``annotations/instances_{split}.json`` with the images in ``{split}`` or ``images/{split}`` (COCO),
- ``{split}/_annotations.coco.json`` with the images beside it (Roboflow).

What cannot be used is an error that lists all faults at once. What official DETR mends is mended: boxes are
clipped to their image, and those without area inside it are left out of the targets. ``ground_truth`` stays as
in the file.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors

from dqdet.config import DataConfig
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.data.transforms import Sample
from dqdet.errors import DqdetError, listed

SPLIT_NAMES = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid", "test")}

logger = logging.getLogger(__name__)


def _layouts(root: Path, name: str) -> Iterator[tuple[Path, list[Path]]]:
    """Annotation file and possible image folders of the split ``name``."""
    yield root / "annotations" / f"instances_{name}.json", [root / name, root / "images" / name]
    yield root / name / "_annotations.coco.json", [root / name]


def find_split(config: DataConfig, split: Split) -> tuple[Path, Path]:
    """Annotation file and image folder of a split.

    Raises:
        DqdetError: the folder, the annotation file or the image folder is missing; says what was looked for.
    """
    if config.root is None:
        raise DqdetError("data.root is not set: give the folder of the data set, such as data.root=/data/coco")
    root = Path(config.root)
    if not root.is_dir():
        raise DqdetError(f"{root}: no such folder; set data.root to the folder of the data set")
    if not any(root.iterdir()):
        raise DqdetError(f"{root}: the folder is empty; set data.root to the folder of the data set")
    chosen = getattr(config, split)
    layouts = [layout for name in ([chosen] if chosen else SPLIT_NAMES[split]) for layout in _layouts(root, name)]
    for file, folders in layouts:
        if file.is_file():
            for folder in folders:
                if folder.is_dir():
                    return file, folder
            raise DqdetError(f"{file}: the folder with its images is missing; looked for {listed(folders)}")
    looked = ", ".join(str(file.relative_to(root)) for file, _ in layouts)
    raise DqdetError(
        f"{root}: no annotations of the {split} split; looked for {looked}; set data.{split} to the name of the split"
    )


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < math.inf


def _image_fault(image: dict[str, Any]) -> str | None:
    if not (isinstance(image.get("file_name"), str) and image["file_name"]):
        return "has no file_name"
    for side in ("height", "width"):
        if not (_is_finite(image.get(side)) and image[side] >= 1):
            return f"has no {side}"
    return None


def _category_fault(category: dict[str, Any]) -> str | None:
    return None if isinstance(category.get("name"), str) and category["name"] else "has no name"


def _annotation_fault(annotation: dict[str, Any], image_ids: set[int], category_ids: set[int]) -> str | None:
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        if not (_is_id(annotation.get(key)) and annotation[key] in known):
            return f"has the unknown {key} {annotation.get(key)!r}"
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        return f"has a bbox that is not 4 finite numbers: {box!r}"
    return None


def _find_faults(document: dict[str, Any]) -> list[str]:
    """All records that cannot be used, with the reason."""
    faults: list[str] = []

    def check(kind: str, records: list[Any], fault: Callable[[dict[str, Any]], str | None]) -> set[int]:
        """Add the faulty ones of ``records``, and return their ids."""
        ids: set[int] = set()
        for position, record in enumerate(records, start=1):
            if not isinstance(record, dict) or not _is_id(record.get("id")):
                faults.append(f"{kind} number {position} has no whole number as id")
                continue
            reason = "has an id that is there already" if record["id"] in ids else fault(record)
            if reason is not None:
                faults.append(f"{kind} {record['id']} {reason}")
            ids.add(record["id"])
        return ids

    image_ids = check("image", document["images"], _image_fault)
    category_ids = check("category", document["categories"], _category_fault)
    check("annotation", document["annotations"], lambda a: _annotation_fault(a, image_ids, category_ids))
    return faults


def read_document(file: Path) -> dict[str, Any]:
    """A COCO annotation file: a dictionary with the lists ``images``, ``categories`` and ``annotations``.

    Raises:
        DqdetError: the file cannot be read, is not JSON, or is not in COCO's detection format.
    """
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise DqdetError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise DqdetError(f"{file}: not valid JSON ({error}); download or export it again") from error
    for kind in ("images", "categories", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(kind), list):
            raise DqdetError(f"{file}: not in COCO's detection format (no list {kind!r}); export it as COCO JSON")
        if kind != "annotations" and not document[kind]:
            raise DqdetError(f"{file}: the list {kind!r} is empty; export the annotations again")
    return document


def check_document(document: dict[str, Any], file: Path, folder: Path) -> None:
    """Refuse records that cannot be used, and images that are not in ``folder``, all of them in one error.

    Files are only looked for here: opening all images of a large data set would take minutes.
    """
    faults = _find_faults(document)
    names = [image.get("file_name") for image in document["images"] if isinstance(image, dict)]
    present = set(os.listdir(folder))
    missing = [
        name
        for name in names
        if isinstance(name, str) and name and name not in present and not (folder / name).is_file()
    ]
    complaints = []
    if faults:
        complaints.append(f"bad entries ({len(faults)}): {listed(faults, '; ')}; correct or remove them")
    if missing:
        complaints.append(
            f"{len(missing)} of {len(names)} images are missing in {folder}: {listed(missing)}; "
            "add them or remove their records"
        )
    if complaints:
        raise DqdetError(f"{file}: {'; '.join(complaints)}")


class CocoDataset(DetectionDataset):
    """A split of a data set in COCO format; see the module's docstring for the layouts.

    Items are in the order of the image ids, labels in the order of the category ids. Images without objects
    are kept. Crowd annotations are no targets, but part of ``ground_truth``, because the official evaluation
    ignores detections that lie in them. Files are converted to RGB; their EXIF orientation is not applied, as
    the official loaders do not apply it.

    Raises:
        DqdetError: the data is missing or faulty.
    """

    def __init__(self, config: DataConfig, split: Split, seed: int = 0) -> None:
        super().__init__(config, split, seed)
        self.annotation_file, self.image_folder = find_split(config, split)
        document = read_document(self.annotation_file)
        check_document(document, self.annotation_file, self.image_folder)

        categories = sorted(document["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        images = sorted(document["images"], key=lambda image: image["id"])
        self.image_ids = [image["id"] for image in images]
        # Arrays, not lists of records: every worker process would end up with its own copy of those, because
        # counting references writes to the memory pages that forked processes share.
        self.sizes = np.array([[image["height"], image["width"]] for image in images], dtype=np.int64)  # [images, 2]
        self.aspect_ratios = self.sizes[:, 1] / self.sizes[:, 0]
        self.file_names = np.array([image["file_name"] for image in images])
        self._set_objects([a for a in document["annotations"] if not a.get("iscrowd")])

    def _set_objects(self, annotations: list[dict[str, Any]]) -> None:
        """Arrays of all objects, those of an image one after the other and in the order of the file."""
        image_index = {image_id: index for index, image_id in enumerate(self.image_ids)}
        label = {category_id: label for label, category_id in enumerate(self.category_ids)}
        images = np.array([image_index[a["image_id"]] for a in annotations], dtype=np.int64)  # [objects]
        labels = np.array([label[a["category_id"]] for a in annotations], dtype=np.int64)  # [objects]
        boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 2, 2)
        boxes[:, 1] += boxes[:, 0]  # x, y, w, h -> (x0, y0), (x1, y1)
        boxes = boxes.clip(0, self.sizes[images, None, ::-1])
        valid = np.all(boxes[:, 1] > boxes[:, 0], axis=1)
        if dropped := [annotations[position]["id"] for position in np.flatnonzero(~valid)]:
            logger.warning(
                f"{self.annotation_file}: {len(dropped)} of {len(annotations)} boxes have no area inside their "
                f"image and are left out of the targets: annotations {listed(dropped)}"
            )
        order = np.flatnonzero(valid)
        order = order[np.argsort(images[order], kind="stable")]
        self.labels = labels[order]
        self.boxes = boxes[order].reshape(-1, 4).astype(np.float32)
        # Objects of image i: starts[i] .. starts[i + 1] - 1
        self.starts = np.searchsorted(images[order], np.arange(len(self.image_ids) + 1))

    def read(self, index: int) -> Sample:
        objects = slice(self.starts[index], self.starts[index + 1])
        canvas_size = tuple(self.sizes[index].tolist())
        boxes = torch.tensor(self.boxes[objects])
        return {
            "image": self._read_image(index),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas_size),
            "labels": torch.tensor(self.labels[objects]),
        }

    def _read_image(self, index: int) -> PIL.Image.Image:
        file = self.image_folder / self.file_names[index]
        try:
            with PIL.Image.open(file) as opened:
                image = opened.convert("RGB")
        # Which of these Pillow raises depends on the format and on where the file is damaged.
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise DqdetError(
                f"{file}: cannot be read as an image ({error}); "
                f"replace the file or remove image {self.image_ids[index]} from {self.annotation_file}"
            ) from error
        height, width = self.sizes[index]
        if image.size != (width, height):
            raise DqdetError(
                f"{file}: is {image.width} x {image.height} pixels, but image {self.image_ids[index]} of "
                f"{self.annotation_file} is {width} x {height}; correct one of them "
                "(the EXIF orientation of a file is not applied)"
            )
        return image

    def ground_truth(self) -> dict[str, Any]:
        """The annotation file, with the fields that evaluation needs and some tools leave out."""
        document = read_document(self.annotation_file)
        document.setdefault("info", {})
        for annotation in document["annotations"]:
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        return document
