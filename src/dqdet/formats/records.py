"""Annotation files in COCO's formats: what they have to hold, and what their records must be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from dqdet.errors import DqdetError

# YouTube-VIS does not publish all annotations.
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
