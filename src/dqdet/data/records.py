"""Data sets annotated by one JSON file: found, read, and checked so that all faults come in one error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from dqdet.config import DataConfig
from dqdet.data.dataset import Split
from dqdet.errors import DqdetError, listed

Layouts = Callable[[Path, str], Iterator[tuple[Path, list[Path]]]]


def find_annotations(config: DataConfig, split: Split, names: Sequence[str], layouts: Layouts) -> tuple[Path, Path]:
    """Annotation file and image folder of a split.

    Args:
        config: where to look.
        split: which part.
        names: what the split may be called where the configuration does not say.
        layouts: for a root folder and a name, the possible annotation files, each with its possible image folders.

    Raises:
        DqdetError: the folder, the annotation file or the image folder is missing; says what was looked for.
    """
    if config.root is None:
        raise DqdetError(
            f"data.root is not set: give the folder of the data set, such as data.root=/data/{config.kind}"
        )
    root = Path(config.root)
    if not root.is_dir():
        raise DqdetError(f"{root}: no such folder; set data.root to the folder of the data set")
    if not any(root.iterdir()):
        raise DqdetError(f"{root}: the folder is empty; set data.root to the folder of the data set")
    chosen = getattr(config, split)
    found = [layout for name in ([chosen] if chosen else names) for layout in layouts(root, name)]
    for file, folders in found:
        if file.is_file():
            for folder in folders:
                if folder.is_dir():
                    return file, folder
            raise DqdetError(f"{file}: the folder with its images is missing; looked for {listed(folders)}")
    looked = ", ".join(str(file.relative_to(root)) for file, _ in found)
    raise DqdetError(
        f"{root}: no annotations of the {split} split; looked for {looked}; set data.{split} to the name of the split"
    )


def read_json(file: Path) -> Any:
    """Raises DqdetError when the file cannot be read or is not JSON."""
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DqdetError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise DqdetError(f"{file}: not valid JSON ({error}); download or export it again") from error


def is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_records(
    kind: str, records: Sequence[Any], fault: Callable[[dict[str, Any]], str | None], faults: list[str]
) -> set[int]:
    """Add those of ``records`` that cannot be used to ``faults``, with the reason, and return the ids of all."""
    ids: set[int] = set()
    for position, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not is_id(record.get("id")):
            faults.append(f"{kind} number {position} has no whole number as id")
            continue
        reason = "has an id that is there already" if record["id"] in ids else fault(record)
        if reason is not None:
            faults.append(f"{kind} {record['id']} {reason}")
        ids.add(record["id"])
    return ids


def category_fault(category: dict[str, Any]) -> str | None:
    return None if isinstance(category.get("name"), str) and category["name"] else "has no name"


def read_image(file: Path, height: int, width: int, record: str, annotation_file: Path) -> PIL.Image.Image:
    """An image in RGB. Its EXIF orientation is not applied, as the official loaders do not apply it.

    Raises:
        DqdetError: the file cannot be read, or has another size than ``record`` (such as "image 7") says.
    """
    try:
        with PIL.Image.open(file) as opened:
            image = opened.convert("RGB")
    # Which of these Pillow raises depends on the format and on where the file is damaged.
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise DqdetError(
            f"{file}: cannot be read as an image ({error}); replace the file or remove {record} from {annotation_file}"
        ) from error
    if image.size != (width, height):
        raise DqdetError(
            f"{file}: is {image.width} x {image.height} pixels, but {record} of {annotation_file} is "
            f"{width} x {height}; correct one of them (the EXIF orientation of a file is not applied)"
        )
    return image
