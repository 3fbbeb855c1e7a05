"""Data sets of any format of detection, written as COCO has them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

from dqdet.data.coco import CocoDataset
from dqdet.errors import DqdetError


def write_coco(splits: dict[str, CocoDataset], out: Path) -> None:
    """Write ``annotations/instances_SPLIT.json``, and copies of the images to ``images/SPLIT``.

    Images keep their names without folders, or with these where names would be the same.

    Args:
        splits: by the name of each.
        out: a folder that is empty or not there.

    Raises:
        DqdetError: ``out`` has files, or cannot be written to.
    """
    try:
        if out.exists() and any(out.iterdir()):
            raise DqdetError(f"{out}: has files already; choose another folder")
        for split, dataset in splits.items():
            document = dataset.ground_truth()
            names = _names([image["file_name"] for image in document["images"]])
            folder = out / "images" / split
            for image, name in zip(document["images"], names, strict=True):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(dataset.images.folder / image["file_name"], folder / name)
                image["file_name"] = name
            annotations = out / "annotations"
            annotations.mkdir(exist_ok=True)
            (annotations / f"instances_{split}.json").write_text(json.dumps(document))
    except OSError as error:
        raise DqdetError(f"{out}: cannot be written ({error.strerror}); choose another folder or make space") from error


def _names(paths: list[str]) -> list[str]:
    counts = Counter(Path(path).name for path in paths)
    return [Path(path).name if counts[Path(path).name] == 1 else "_".join(Path(path).parts[-3:]) for path in paths]
