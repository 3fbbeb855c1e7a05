"""Data sets with annotation files in COCO's formats: where these lie, and the images that they list."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from dqdet.config import DataConfig
from dqdet.data.dataset import Split
from dqdet.errors import DqdetError, listed
from dqdet.formats.image_files import Decoded, read_shrunk
from dqdet.formats.image_headers import header_faults
from dqdet.formats.records import is_text
from dqdet.formats.shards import Member

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid", "test")}

# Annotation file and possible image folders of a split, from the root folder and the name of the split.
Layouts = Callable[[Path, str], Iterator[tuple[Path, list[Path]]]]


def root_of(config: DataConfig) -> Path:
    """The folder of the data set.

    Raises:
        DqdetError: it is not given, does not exist or is empty.
    """
    if config.root is None:
        raise DqdetError("data.root is not set: give the folder of the data set, such as data.root=/data/coco")
    root = Path(config.root)
    if not os.path.isdir(root):
        raise DqdetError(f"{root}: no such folder; set data.root to the folder of the data set")
    if not any(root.iterdir()):
        raise DqdetError(f"{root}: the folder is empty; set data.root to the folder of the data set")
    return root


def find_split(config: DataConfig, split: Split, layouts: Layouts) -> tuple[Path, Path]:
    """Annotation file and image folder of a split.

    Raises:
        DqdetError: the root, the annotation file or the image folder is missing; says what was looked for.
    """
    root = root_of(config)
    chosen = getattr(config, split)
    places = [place for name in ([chosen] if chosen else SPLIT_NAMES[split]) for place in layouts(root, name)]
    for file, folders in places:
        if os.path.isfile(file):
            return file, first_folder(folders, f"{file}: the folder with its images is missing")
    looked = ", ".join(str(file.relative_to(root)) for file, _ in places)
    raise DqdetError(
        f"{root}: no annotations of the {split} split; looked for {looked}; set data.{split} to the name of the split"
    )


def first_folder(folders: Sequence[Path], complaint: str) -> Path:
    """The first of ``folders`` that exists; raises DqdetError with ``complaint`` if none does."""
    for folder in folders:
        if os.path.isdir(folder):
            return folder
    raise DqdetError(f"{complaint}; looked for {listed(folders)}")


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
            name for name in names if is_text(name) and name not in present and not os.path.isfile(folder / str(name))
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
        sizes = [(record["height"], record["width"]) for record in records]
        self.sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)  # [images, 2]
        self.file_names = np.array([record["file_name"] for record in records])
        self.unwarned = multiprocessing.Lock()  # taken once, by whichever process of the loader is the first to warn

    @property
    def aspect_ratios(self) -> np.ndarray:
        return self.sizes[:, 1] / self.sizes[:, 0]

    def stored(self, index: int) -> Path | Member:
        """Where the file of an image is."""
        return self.folder / self.file_names[index]

    def file_faults(self) -> list[str]:
        """What is wrong with the files, as far as their headers tell."""
        faults = header_faults(self.folder, self.file_names.tolist(), [(h, w) for h, w in self.sizes.tolist()])
        return [f"{self.folder}: {fault}" for fault in faults]

    def read(self, index: int) -> tv_tensors.Image:
        """The image ``[3, H, W]`` (uint8, RGB), upright as EXIF says, unless the record has its size as stored.

        Raises:
            DqdetError: it cannot be read, or has another size than its record.
        """
        return tv_tensors.Image(self.read_shrunk(index, None).pixels)

    def read_shrunk(self, index: int, least: int | None) -> Decoded:
        """The image, of which ``least`` pixels of the shorter side are enough, see `read_shrunk`; None: all there are.

        Raises:
            DqdetError: it cannot be read, or has another size than its record.
        """
        file = self.stored(index)
        encoded = file.encoded() if isinstance(file, Member) else file
        advice = f"replace the file or remove {self.kind} {self.ids[index]} from {self.annotation_file}"
        height, width = self.sizes[index].tolist()
        picture = read_shrunk(encoded, least, advice, (width, height), lambda: self._warn(file))
        if picture.size != (width, height):
            raise DqdetError(
                f"{file}: is {picture.size[0]} x {picture.size[1]} pixels, but {self.kind} {self.ids[index]} of "
                f"{self.annotation_file} is {width} x {height}; correct one of them"
            )
        return picture

    def _warn(self, file: Path | Member) -> None:
        if self.unwarned.acquire(block=False):
            logger.warning(
                f"{self.annotation_file}: images such as {file.name} are turned upright as their EXIF orientation "
                "says, because their recorded sizes do not tell how they were annotated; if that was as stored, remove "
                "the orientation from the files"
            )
