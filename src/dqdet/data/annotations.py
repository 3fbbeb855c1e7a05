"""The annotations of a split as one document of COCO, whatever its files look like.

Formats with a file for each image (YOLO, Pascal VOC, LabelMe) have no ids: images are numbered from 1 in the order of
their names, classes in that of the list of them, objects in that of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dqdet.config import DataConfig
from dqdet.data.coco_files import SPLIT_NAMES, root_of
from dqdet.data.dataset import Split
from dqdet.errors import DqdetError, printable
from dqdet.formats.folders import files_below
from dqdet.formats.image_files import IMAGE_SUFFIXES, opened_image, sizes
from dqdet.formats.image_headers import AT_ONCE
from dqdet.formats.masks import compress, mask_area
from dqdet.formats.shards import Shards
from dqdet.formats.yolo import read_names

CLASS_FILES = ("classes.txt", "labels.txt")  # that list the classes of formats which do so nowhere else
NO_CLASSES = ("__ignore__", "_background_")  # of LabelMe's labels.txt
IMAGE = "replace or remove the file"


@dataclass
class Annotations:
    """What a split is annotated with."""

    file: Path  # or folder, that messages name
    folder: Path  # of the images
    document: dict[str, Any]  # of COCO: images, categories, annotations
    faults: list[str] = field(default_factory=list)  # of the files that the document is made of
    warnings: list[str] = field(default_factory=list)  # of what may not be as meant
    shards: Shards | None = None  # of the images, where they are no files of their own


@dataclass
class Annotated:
    """An image with its objects, which have ``bbox`` and the index of their class, ``label``."""

    name: str  # of the file, relative to the folder of the images
    height: int
    width: int
    objects: list[dict[str, Any]]


def as_document(images: Iterable[Annotated], classes: Sequence[str]) -> dict[str, Any]:
    """COCO's document of images that are annotated one by one."""
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(sorted(images, key=lambda image: image.name), 1):
        records.append({"id": number, "file_name": image.name, "height": image.height, "width": image.width})
        for found in image.objects:
            shape = {key: found[key] for key in ("bbox", "segmentation", "iscrowd", "place") if key in found}
            known = {"id": len(annotations) + 1, "image_id": number, "category_id": found["label"] + 1}
            annotations.append(known | shape)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": records, "categories": categories, "annotations": annotations}


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, also linked ones, sorted."""
    return files_below(folder, IMAGE_SUFFIXES)


def upright_sizes(files: Sequence[Path]) -> tuple[list[tuple[int, int]], list[str]]:
    """Height and width of each picture as EXIF turns it, (1, 1) where it cannot be read, and what is wrong with those.

    Reading a header is waiting for the disk, so several files are read at once.
    """

    def of(file: Path) -> tuple[tuple[int, int], str | None]:
        try:
            with opened_image(file, IMAGE) as image:
                width, height = sizes(image)[1]
                return (height, width), None
        except DqdetError as error:
            return (1, 1), str(error).removesuffix(f"; {IMAGE}")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(of, files))
    return [size for size, _ in found], [fault for _, fault in found if fault]


# What a file for an image holds: COCO's record of it, its objects with the ``name`` of their class, and what is wrong.
Read = tuple[dict[str, Any], list[dict[str, Any]], list[str]]


def files_of_splits(
    config: DataConfig,
    split: Split,
    files_of: Callable[[Path, str], list[Path]],
    whole_of: Callable[[Path], list[Path]],
    places: str,
) -> tuple[Path, list[Path], list[Path]]:
    """The root of a data set, the annotation files of a split, and those of the other one, sorted.

    A set where neither has files, and none is named, is divided.

    Args:
        config: of the data set.
        split: that is wanted.
        files_of: gives those in a folder of the split with a name; none where there are none.
        whole_of: gives those of a set without splits.
        places: where these look, for the message.

    Raises:
        DqdetError: there are none of the split.
    """
    root = root_of(config)
    other: Split = "val" if split == "train" else "train"
    found: dict[Split, list[Path]] = {}
    for which in (split, other):
        chosen = getattr(config, which)
        of_names = (files_of(root, name) for name in ([chosen] if chosen else SPLIT_NAMES[which]))
        found[which] = next(filter(None, of_names), [])
    if not any((*found.values(), config.train, config.val)) and (whole := whole_of(root)):
        names = part([str(file) for file in whole], split, config.val_share)
        for file in whole:
            found[split if str(file) in names else other].append(file)
    if not found[split]:
        raise DqdetError(
            f"{root}: no annotations of the {split} split; looked for {places}; set data.{split} to the name of the "
            "split"
        )
    return root, found[split], found[other]


def of_files(
    root: Path,
    folder: Path,
    files: Sequence[Path],
    others: Sequence[Path],
    read: Callable[[Path], Read],
    image_of: Callable[[Path, dict[str, Any]], str | None],
) -> Annotations:
    """The annotations of files that name the classes of their objects, one file an image.

    Args:
        root: of the data set, where a list of the classes may be.
        folder: of the images.
        files: of the split.
        others: of the other split, whose objects have classes, too.
        read: what is in a file.
        image_of: the name of the image that a file with a record belongs to, relative to ``folder``; None: none.
    """
    found = [read(file) for file in files]
    faults = [fault for _, _, wrong in found for fault in wrong]
    classes = listed_classes(root)
    if not classes:
        objects = [one for _, of_file, _ in (*found, *map(read, others)) for one in of_file]
        classes = sorted({one["name"] for one in objects})
    numbers = {name: label for label, name in enumerate(classes)}
    images = []
    for file, (record, objects, _) in zip(files, found, strict=True):
        if not record:
            continue
        unknown = [one for one in objects if one["name"] not in numbers]
        faults += [f"{one['place']} has the class {printable(one['name'])!r}, which is not listed" for one in unknown]
        if (name := image_of(file, record)) is None:
            faults.append(f"{file} has no image; looked for {folder}")
            continue
        known = [one | {"label": numbers[one["name"]]} for one in objects if one["name"] in numbers]
        images.append(Annotated(name, record["height"], record["width"], known))
    return Annotations(root, folder, as_document(images, classes), faults)


def listed_classes(root: Path) -> list[str]:
    """The classes in the order of ``classes.txt`` or ``labels.txt``; none, where there is no such file."""
    for file in (root / name for name in CLASS_FILES):
        if file.is_file():
            return [name for name in read_names(file) if name not in NO_CLASSES]
    return []


def part(names: Sequence[str], split: Split, share: float) -> set[str]:
    """The part of a set without splits that belongs to one.

    Images are drawn by a digest of their names, so that neither the machine nor the order matters, and few of them
    change sides when others are added.

    Args:
        names: of all images.
        split: that is wanted.
        share: of the images that is for validation.

    Raises:
        DqdetError: there are fewer than two images.
    """
    if len(names) < 2:
        raise DqdetError(f"{len(names)} images cannot be divided into training and validation; add more")
    drawn = sorted(names, key=lambda name: hashlib.blake2b(Path(name).name.encode(errors="surrogateescape")).digest())
    count = min(max(1, round(share * len(names))), len(names) - 1)
    return set(drawn[:count] if split == "val" else drawn[count:])


def completed(document: dict[str, Any], masks: bool) -> dict[str, Any]:
    """A checked document with the fields that evaluation needs and some tools leave out, ``iscrowd`` and ``area``.

    Args:
        document: is changed.
        masks: whether the areas are those of masks, not of boxes.
    """
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in document["images"]}
    for annotation in document["annotations"]:
        annotation["iscrowd"] = int(annotation.get("iscrowd", 0))
        if "area" not in annotation and masks:
            size = sizes[annotation["image_id"]]
            annotation["area"] = mask_area(compress(annotation["segmentation"], *size), *size)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return document


def divided(document: dict[str, Any], split: Split, share: float) -> dict[str, Any]:
    """The images of one split of a document, whose records were checked, with their objects."""
    chosen = part([image["file_name"] for image in document["images"]], split, share)
    images = [image for image in document["images"] if image["file_name"] in chosen]
    ids = {image["id"] for image in images}
    annotations = [one for one in document["annotations"] if one["image_id"] in ids]
    return document | {"images": images, "annotations": annotations}
