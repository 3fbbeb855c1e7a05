"""Data sets of Pascal VOC: an XML file for each image.

- ``Annotations``, ``JPEGImages`` and ``ImageSets/Main/NAME.txt`` with the images of each split, as published; without
  such lists the set is divided,
- folders ``NAME`` with images and XML files side by side (Roboflow).

An image belongs to the XML file of its name, which is beside it or in the same subfolder of ``Annotations``. Classes
are in the order of ``classes.txt``, or else of their names.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from dqdet.config import DataConfig
from dqdet.data.annotations import Annotations, files_of_splits, of_files
from dqdet.data.dataset import Split
from dqdet.errors import DqdetError
from dqdet.formats.folders import files_below
from dqdet.formats.image_files import is_image_name
from dqdet.formats.records import TEXT
from dqdet.formats.voc import read_annotation

XML = (".xml",)
PRESENCE = re.compile(r"\s+(-1|0|1)$")  # of a class


def read_voc(config: DataConfig, split: Split) -> Annotations:
    """The annotations of a split.

    Raises:
        DqdetError: there are none.
    """
    places = "ImageSets/Main/NAME.txt, NAME/*.xml and Annotations/*.xml"
    root, files, others = files_of_splits(config, split, _files, _whole, places)
    pictures, annotations = root / "JPEGImages", root / "Annotations"
    folder = pictures if os.path.isdir(pictures) else root

    @cache
    def images_of(inside: Path) -> dict[str, Path]:
        images = filter(is_image_name, inside.iterdir()) if os.path.isdir(inside) else ()
        return {image.stem: image for image in sorted(images)}

    def image_of(file: Path, record: dict[str, Any]) -> str | None:
        subfolder = file.parent.relative_to(annotations) if file.is_relative_to(annotations) else Path()
        found = (images_of(inside).get(file.stem) for inside in (file.parent, pictures / subfolder))
        return next((os.path.relpath(image, folder) for image in found if image), None)

    return of_files(root, folder, files, others, read_annotation, image_of)


def _files(root: Path, name: str) -> list[Path]:
    listed = root / "ImageSets" / "Main" / f"{name}.txt"
    if os.path.isfile(listed):
        return sorted(_listed(listed, root / "Annotations"))
    return files_below(root / name, XML)


def _whole(root: Path) -> list[Path]:
    return [] if os.path.isdir(root / "ImageSets" / "Main") else files_below(root / "Annotations", XML)


def _listed(file: Path, folder: Path) -> list[Path]:
    """The XML files of the images in a list, whose second column, in lists of one class, says whether it is there."""
    try:
        names = [line.strip() for line in file.read_text(encoding=TEXT).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DqdetError(f"{file}: cannot be read as a list of images ({error}); correct it") from error
    if not names:
        raise DqdetError(f"{file}: lists no images; write the name of one in each line")
    whole = [folder / f"{name}.xml" for name in names]
    return [
        file if os.path.isfile(file) else folder / f"{PRESENCE.sub('', name)}.xml"
        for file, name in zip(whole, names, strict=True)
    ]
