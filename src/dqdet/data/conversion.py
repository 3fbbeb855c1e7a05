"""Data sets of any format of detection, written as COCO has them, or as shards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from dqdet.data.coco import CocoDataset
from dqdet.data.webdataset import index_file, indexed, scan
from dqdet.errors import DqdetError
from dqdet.formats.folders import numbered
from dqdet.formats.image_files import IMAGE_SUFFIXES, REPLACE, is_image_name, opened_image
from dqdet.formats.shards import Member, ShardWriter

LARGEST_SHARD = 256 * 2**20  # bytes


def write_coco(splits: dict[str, CocoDataset], out: Path) -> None:
    """Write ``annotations/instances_SPLIT.json``, and copies of the images to ``images/SPLIT``.

    Images keep their names without folders, or with these where names would be the same.

    Args:
        splits: by the name of each.
        out: a folder that is empty or not there.

    Raises:
        DqdetError: ``out`` has files, or cannot be written to.
    """
    with _new_folder(out):
        for split, dataset in splits.items():
            document, files = _document(dataset)
            names = _names([image["file_name"] for image in document["images"]])
            folder = out / "images" / split
            for image, file, name in zip(document["images"], files, names, strict=True):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file, Member):
                    (folder / name).write_bytes(file.read_bytes())
                else:
                    shutil.copyfile(file, folder / name)
                image["file_name"] = name
            annotations = out / "annotations"
            annotations.mkdir(exist_ok=True)
            (annotations / f"instances_{split}.json").write_text(json.dumps(document))


def write_shards(splits: dict[str, CocoDataset], out: Path, largest: int = LARGEST_SHARD) -> None:
    """Write ``SPLIT-000000.tar``, ... and ``index-SPLIT.json``, as ``dqdet.data.webdataset`` has them, with all ids.

    Args:
        splits: by the name of each.
        out: a folder that is empty or not there.
        largest: bytes of images that a shard has at most, unless one alone has more.

    Raises:
        DqdetError: ``out`` has files, or cannot be written to.
    """
    with _new_folder(out):
        out.mkdir(parents=True, exist_ok=True)
        for split, dataset in splits.items():
            document, files = _document(dataset)
            categories = sorted(document["categories"], key=lambda category: category["id"])
            names = {category["id"]: category["name"] for category in categories}
            objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
            for one in document["annotations"]:
                objects[one["image_id"]].append(one | {"category": names[one["category_id"]]})
            writer = ShardWriter(out, split, largest)
            for image, file in zip(document["images"], files, strict=True):
                record = {**image, "objects": objects[image["id"]]}
                writer.add(_suffix(file), file.read_bytes(), record)
            writer.close()
            index_file(out, split).write_text(json.dumps(indexed(scan(writer.written), categories, out)))
            # For those who read the shards without the index, or make it anew.
            (out / "classes.txt").write_text("".join(f"{name}\n" for name in names.values()))


WRITERS: dict[str, Callable[[dict[str, CocoDataset], Path], None]] = {"coco": write_coco, "webdataset": write_shards}


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    try:
        if out.exists() and any(out.iterdir()):
            raise DqdetError(f"{out}: has files already; choose another folder")
        yield
    except OSError as error:
        raise DqdetError(f"{out}: cannot be written ({error.strerror}); choose another folder or make space") from error


def _document(dataset: CocoDataset) -> tuple[dict[str, Any], list[Path | Member]]:
    """All annotations of the images of a data set, and where the files of these are."""
    document = dataset.ground_truth()
    index = {image_id: number for number, image_id in enumerate(dataset.image_ids)}
    images = [image for image in document["images"] if image["id"] in index]
    annotations = [one for one in document["annotations"] if one["image_id"] in index]
    files = [dataset.images.stored(index[image["id"]]) for image in images]
    return document | {"images": images, "annotations": annotations}, files


def _suffix(file: Path | Member) -> str:
    """The suffix of an image file; by its content, where its name has none that shards have: Pascal VOC's may be wrong.

    Of a format without such a suffix it is another one, because all are read by their content.
    """
    name = Path(file.name)
    if is_image_name(name):
        return name.suffix
    with opened_image(file.encoded() if isinstance(file, Member) else file, REPLACE) as image:
        formats = Image.registered_extensions()
        return next((suffix for suffix in IMAGE_SUFFIXES if formats.get(suffix) == image.format), IMAGE_SUFFIXES[0])


def _names(paths: list[str]) -> list[str]:
    counts = Counter(Path(path).name for path in paths)
    return numbered(name if counts[name := Path(path).name] == 1 else _with_folders(Path(path)) for path in paths)


def _with_folders(path: Path) -> str:
    """The name with those of its folders, as that of a file in one folder, whatever the path leads through."""
    return "_".join([part for part in path.parts if part not in (path.anchor, "..")][-3:])
