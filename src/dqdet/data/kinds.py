"""Which format the data set in a folder has."""

from __future__ import annotations

import os
from pathlib import Path

from dqdet.errors import DqdetError
from dqdet.formats.remote import is_address

# Files that only this format has, the first match counts.
SIGNS = {
    "coco": ("annotations/instances_*.json", "*/_annotations.coco.json", "_annotations.coco.json", "result.json"),
    "yolo": ("data.yaml", "dataset.yaml", "labels", "*/labels"),
    "voc": ("Annotations/**/*.xml", "*/*.xml"),
    "webdataset": ("*-[0-9]*.tar",),  # before labelme: an index is a JSON file, too
    "labelme": ("*.json", "*/*.json", "images/*/*.json"),
}


def kind_of(root: Path | str) -> str:
    """The ``data.kind`` of a folder, by the files in it. Behind an address there can be shards alone.

    Raises:
        DqdetError: there is no such folder, or no format of detection is recognised.
    """
    if is_address(str(root)):
        return "webdataset"
    root = Path(root)
    if not os.path.isdir(root):
        raise DqdetError(f"{root}: no such folder; give the folder of the data set")
    for kind, patterns in SIGNS.items():
        if any(next(root.glob(pattern), None) for pattern in patterns):
            return kind
    raise DqdetError(
        f"{root}: no data set of {', '.join(SIGNS)} is recognised there; give its format, such as data.kind=yolo"
    )
