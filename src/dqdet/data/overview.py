"""What is in a data set, in numbers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dqdet.config import DataConfig
from dqdet.data.transforms import input_size
from dqdet.formats.shards import Member

SMALL, MEDIUM = 32**2, 96**2  # pixels: the bounds of COCO's small, medium and large objects


@dataclass
class Overview:
    """A split of a data set. Crowds are no objects. Boxes are those inside their image."""

    images: int
    crowds: int
    sizes: np.ndarray  # [images, 2] height and width of each image
    counts: np.ndarray  # [images] objects of each
    classes: dict[str, int]  # objects of each class, in label order
    boxes: np.ndarray  # [objects, 2] height and width of each box, in pixels of its file
    resized: np.ndarray  # [objects, 2] the same when the image is resized for the model

    @property
    def by_size(self) -> dict[str, int]:
        """Objects that are small, medium and large for the model, by the area of their boxes and COCO's bounds."""
        areas = self.resized.prod(1)
        small, large = int((areas < SMALL).sum()), int((areas > MEDIUM).sum())
        return {"small": small, "medium": len(areas) - small - large, "large": large}

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height of each box ``[objects]``."""
        return self.boxes[:, 1] / self.boxes[:, 0]


def overview(document: Mapping[str, Any], config: DataConfig) -> Overview:
    """The numbers of a split.

    Args:
        document: of COCO, as ``DetectionDataset.ground_truth`` gives it.
        config: says how images are resized in validation, and so in what size objects reach the model.
    """
    index = {image["id"]: number for number, image in enumerate(document["images"])}
    sizes = np.array([[image["height"], image["width"]] for image in document["images"]]).reshape(-1, 2)
    inputs = np.array([input_size(int(h), int(w), config) for h, w in sizes]).reshape(-1, 2)
    names = {c["id"]: c["name"] for c in sorted(document["categories"], key=lambda category: category["id"])}
    objects = [one for one in document["annotations"] if not one.get("iscrowd")]
    image = np.array([index[one["image_id"]] for one in objects], dtype=np.int64)  # [objects]
    corners = np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 2, 2)
    corners[:, 1] += corners[:, 0]
    corners = corners.clip(0, sizes[image][:, None, ::-1])
    boxes = (corners[:, 1] - corners[:, 0])[:, ::-1]  # [objects, 2] height, width
    shown = (boxes > 0).all(1)
    image, boxes = image[shown], boxes[shown]
    found = Counter(names[objects[position]["category_id"]] for position in np.flatnonzero(shown))
    return Overview(
        images=len(sizes),
        crowds=len(document["annotations"]) - len(objects),
        sizes=sizes,
        counts=np.bincount(image, minlength=len(sizes)),
        classes={name: found[name] for name in names.values()},
        boxes=boxes,
        resized=boxes * inputs[image] / sizes[image],
    )


def duplicates(files: Mapping[str, Sequence[Path | Member]]) -> list[list[tuple[str, Path | Member]]]:
    """The files with the same content, whatever they are called, as groups of (split, file).

    Args:
        files: of each split.
    """
    same: dict[bytes, list[tuple[str, Path | Member]]] = {}
    sizes = Counter(_size(file) for of_split in files.values() for file in of_split)
    for split, of_split in files.items():
        for file in of_split:
            if sizes[_size(file)] > 1:  # the others need not be read
                digest = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
                same.setdefault(digest, []).append((split, file))
    return [group for group in same.values() if len(group) > 1]


def _size(file: Path | Member) -> int:
    return file.length if isinstance(file, Member) else file.stat().st_size
