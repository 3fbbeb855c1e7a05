"""Data sets of Pascal VOC: an XML file for each image.

- ``Annotations``, ``JPEGImages`` and ``ImageSets/Main/NAME.txt`` with the images of each split, as published; without
  such lists the set is divided,
- folders ``NAME`` with images and XML files side by side (Roboflow).

An image belongs to the XML file of its name. Classes are in the order of ``classes.txt``, or else of their names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dqdet.config import DataConfig
from dqdet.data.annotations import Annotations, files_of_splits, images_in, of_files, part
from dqdet.data.coco_files import SPLIT_NAMES
from dqdet.data.dataset import Split
from dqdet.errors import DqdetError
from dqdet.formats.folders import files_below
from dqdet.formats.records import TEXT
from dqdet.formats.voc import read_annotation

PRESENCE = re.compile(r"\s+(-1|0|1)$")  # of a class


def read_voc(config: DataConfig, split: Split) -> Annotations:
    """The annotations of a split.

    Raises:
        DqdetError: there are none.
    """
    places = "ImageSets/Main/NAME.txt, NAME/*.xml and Annotations/*.xml"
    root, files, others = files_of_splits(config, split, _files, places)
    folder = root / "JPEGImages" if os.path.isdir(root / "JPEGImages") else root
    names = {file.with_suffix("").relative_to(folder): str(file.relative_to(folder)) for file in images_in(folder)}

    def image_of(file: Path, record: dict[str, Any]) -> str | None:
        return names.get(Path(file.stem) if folder != root else file.with_suffix("").relative_to(root))

    return of_files(root, folder, files, others, read_annotation, image_of)


def _files(config: DataConfig, split: Split, root: Path) -> list[Path]:
    """The XML files of a split, sorted; none where there are no annotations of it."""
    chosen = getattr(config, split)
    for name in [chosen] if chosen else SPLIT_NAMES[split]:
        listed = root / "ImageSets" / "Main" / f"{name}.txt"
        if os.path.isfile(listed):
            return sorted(_listed(listed, root / "Annotations"))
        if files := files_below(root / name, lambda file: file.suffix == ".xml"):
            return files
    whole = sorted((root / "Annotations").glob("*.xml"))
    if chosen or not whole or os.path.isdir(root / "ImageSets" / "Main"):
        return []
    chosen_names = part([str(file) for file in whole], split, config.val_share)
    return [file for file in whole if str(file) in chosen_names]


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
