"""Which format the data set in a folder has."""

from __future__ import annotations

import os
from pathlib import Path

from dqdet.errors import DqdetError

# Files that only this format has, the first match counts.
SIGNS = {
    "coco": ("annotations/instances_*.json", "*/_annotations.coco.json", "_annotations.coco.json", "result.json"),
    "yolo": ("data.yaml", "dataset.yaml", "labels", "*/labels"),
    "voc": ("Annotations/*.xml", "*/*.xml"),
    "labelme": ("*.json", "*/*.json", "images/*/*.json"),
}


def kind_of(root: Path) -> str:
    """The ``data.kind`` of a folder, by the files in it.

    Raises:
        DqdetError: there is no such folder, or no format of detection is recognised.
    """
    if not os.path.isdir(root):
        raise DqdetError(f"{root}: no such folder; give the folder of the data set")
    for kind, patterns in SIGNS.items():
        if any(next(root.glob(pattern), None) for pattern in patterns):
            return kind
    raise DqdetError(
        f"{root}: no data set of {', '.join(SIGNS)} is recognised there; give its format, such as data.kind=yolo"
    )
