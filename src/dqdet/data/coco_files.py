"""Annotation files in COCO's formats: where they lie, what is in them, and the images that they list."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image

from dqdet.config import DataConfig
from dqdet.data.dataset import Split
from dqdet.errors import DqdetError, listed

SPLIT_NAMES = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid", "test")}

# Annotation file and possible image folders of a split, from the root folder and the name of the split.
Layouts = Callable[[Path, str], Iterator[tuple[Path, list[Path]]]]


def find_split(config: DataConfig, split: Split, layouts: Layouts) -> tuple[Path, Path]:
    """Annotation file and image folder of a split.

    Raises:
        DqdetError: the root, the annotation file or the image folder is missing; says what was looked for.
    """
    if config.root is None:
        raise DqdetError("data.root is not set: give the folder of the data set, such as data.root=/data/coco")
    root = Path(config.root)
    if not root.is_dir():
        raise DqdetError(f"{root}: no such folder; set data.root to the folder of the data set")
    if not any(root.iterdir()):
        raise DqdetError(f"{root}: the folder is empty; set data.root to the folder of the data set")
    chosen = getattr(config, split)
    places = [place for name in ([chosen] if chosen else SPLIT_NAMES[split]) for place in layouts(root, name)]
    for file, folders in places:
        if file.is_file():
            return file, first_folder(folders, f"{file}: the folder with its images is missing")
    looked = ", ".join(str(file.relative_to(root)) for file, _ in places)
    raise DqdetError(
        f"{root}: no annotations of the {split} split; looked for {looked}; set data.{split} to the name of the split"
    )


def first_folder(folders: Sequence[Path], complaint: str) -> Path:
    """The first of ``folders`` that exists; raises DqdetError with ``complaint`` if none does."""
    for folder in folders:
        if folder.is_dir():
            return folder
    raise DqdetError(f"{complaint}; looked for {listed(folders)}")


# What an annotation file has to hold. YouTube-VIS does not publish all annotations.
LISTS = {
    "detection": ("images", "categories", "annotations"),
    "panoptic": ("images", "categories", "annotations"),
    "video": ("videos", "categories"),
}


def read_document(file: Path, format: Literal["detection", "panoptic", "video"] = "detection") -> dict[str, Any]:
    """A COCO annotation file, or one of YouTube-VIS: a dictionary with the lists that its format needs.

    Raises:
        DqdetError: the file cannot be read, is not JSON, or is not in COCO's format.
    """
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise DqdetError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise DqdetError(f"{file}: not valid JSON ({error}); download or export it again") from error
    for kind in LISTS[format]:
        if not isinstance(document, dict) or not isinstance(document.get(kind), list):
            raise DqdetError(f"{file}: not in COCO's {format} format (no list {kind!r}); export it as COCO JSON")
        if kind != "annotations" and not document[kind]:
            raise DqdetError(f"{file}: the list {kind!r} is empty; export the annotations again")
    return document


def is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < math.inf


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def image_fault(image: dict[str, Any]) -> str | None:
    """Why a record of an image cannot be used, or None."""
    if not is_text(image.get("file_name")):
        return "has no file_name"
    for side in ("height", "width"):
        if not (is_finite(image.get(side)) and image[side] >= 1):
            return f"has no {side}"
    return None


def category_fault(category: dict[str, Any]) -> str | None:
    """Why a record of a category cannot be used, or None."""
    return None if is_text(category.get("name")) else "has no name"


def record_faults(
    kind: str, records: list[Any], fault: Callable[[dict[str, Any]], str | None], key: str = "id"
) -> tuple[list[str], set[int]]:
    """All ``records`` that cannot be used, with the reason, and the ids of all.

    Args:
        kind: what messages call a record.
        records: of the annotation file.
        fault: why a record, which has an id that no other has, cannot be used.
        key: under which the records have their ids.
    """
    faults: list[str] = []
    ids: set[int] = set()
    for position, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not is_id(record.get(key)):
            faults.append(f"{kind} number {position} has no whole number as {key}")
            continue
        reason = f"has an {key} that is there already" if record[key] in ids else fault(record)
        if reason is not None:
            faults.append(f"{kind} {record[key]} {reason}")
        ids.add(record[key])
    return faults, ids


def refuse(file: Path, faults: list[str], files: dict[str, tuple[Path, list[Any]]]) -> None:
    """Raise one DqdetError for all faults of an annotation file and all files that it names in vain.

    Files are only looked for here: opening all images of a large data set would take minutes.

    Args:
        file: the annotation file.
        faults: of its records.
        files: for each kind of files, such as ``images``, their folder and the records that name them.
    """
    complaints = [f"bad entries ({len(faults)}): {listed(faults, '; ')}; correct or remove them"] if faults else []
    for kind, (folder, records) in files.items():
        present = set(os.listdir(folder))
        names = [record.get("file_name") for record in records if isinstance(record, dict)]
        missing = [
            name for name in names if is_text(name) and name not in present and not (folder / str(name)).is_file()
        ]
        if missing:
            complaints.append(
                f"{len(missing)} of {len(names)} {kind} are missing in {folder}: {listed(missing)}; "
                "add them or remove their records"
            )
    if complaints:
        raise DqdetError(f"{file}: {'; '.join(complaints)}")


class CocoImages:
    """The images that an annotation file lists, in the order of their ids.

    They are kept in arrays, not in lists of records: every worker process would end up with its own copy of those,
    because counting references writes to the memory pages that forked processes share.

    Args:
        records: of the images, checked.
        annotation_file: named in errors.
        folder: of the images.
        kind: what messages call a record.
    """

    def __init__(self, records: list[dict[str, Any]], annotation_file: Path, folder: Path, kind: str = "image") -> None:
        self.kind = kind
        self.annotation_file = annotation_file
        self.folder = folder
        records = sorted(records, key=lambda record: record["id"])
        self.ids = [record["id"] for record in records]
        self.sizes = np.array(
            [[record["height"], record["width"]] for record in records], dtype=np.int64
        )  # [images, 2]
        self.file_names = np.array([record["file_name"] for record in records])

    @property
    def aspect_ratios(self) -> np.ndarray:
        return self.sizes[:, 1] / self.sizes[:, 0]

    def read(self, index: int) -> PIL.Image.Image:
        """The image in RGB; its EXIF orientation is not applied, as the official loaders do not apply it.

        Raises:
            DqdetError: it cannot be read, or has another size than its record.
        """
        file = self.folder / self.file_names[index]
        try:
            with PIL.Image.open(file) as opened:
                image = opened.convert("RGB")
        # Which of these Pillow raises depends on the format and on where the file is damaged.
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise DqdetError(
                f"{file}: cannot be read as an image ({error}); "
                f"replace the file or remove {self.kind} {self.ids[index]} from {self.annotation_file}"
            ) from error
        height, width = self.sizes[index]
        if image.size != (width, height):
            raise DqdetError(
                f"{file}: is {image.width} x {image.height} pixels, but {self.kind} {self.ids[index]} of "
                f"{self.annotation_file} is {width} x {height}; correct one of them "
                "(the EXIF orientation of a file is not applied)"
            )
        return image
