"""Data sets of LabelMe: a JSON file beside each image, in a folder for each split, or all in one, which is divided.

Images without a JSON file are not annotated, and no part of the set. Classes are in the order of ``labels.txt``, or
else of their names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dqdet.config import DataConfig
from dqdet.data.annotations import Annotations, files_of_splits, of_files
from dqdet.data.dataset import Split
from dqdet.formats.folders import files_below
from dqdet.formats.labelme import read_annotation

JSON = (".json",)


def read_labelme(config: DataConfig, split: Split) -> Annotations:
    """The annotations of a split.

    Raises:
        DqdetError: there are none.
    """
    root, files, others = files_of_splits(config, split, _files, _whole, "NAME/*.json and *.json")

    def image_of(file: Path, record: dict[str, Any]) -> str | None:
        places = [file.parent / record["file_name"], file.parent / Path(record["file_name"]).name]
        return next((os.path.relpath(place, root) for place in places if os.path.isfile(place)), None)

    return of_files(root, root, files, others, read_annotation, image_of)


def _files(root: Path, name: str) -> list[Path]:
    return files_below(root / name, JSON) or files_below(root / "images" / name, JSON)


def _whole(root: Path) -> list[Path]:
    return files_below(root, JSON)
