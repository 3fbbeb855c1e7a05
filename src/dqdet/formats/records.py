"""Annotation files in COCO's formats: what they have to hold, and what their records must be.

What a field may be is said here, for all formats; bounds belong to it. They are wide: what lies beyond them is no
annotation, but would crash or fill the memory where it is used.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, TypedDict

import msgspec

from dqdet.errors import DqdetError, printable, value_text

LISTS = {
    "detection": ("images", "categories", "annotations"),
    "panoptic": ("images", "categories", "annotations"),
    "video": ("videos", "categories", "annotations"),
}

LONGEST_SIDE = 65_535  # of an image in pixels, the most that JPEG has
MOST_PIXELS = 178_956_970  # of an image; Pillow opens no larger ones
FARTHEST = 1e6  # coordinate, in pixels
FINITE = 1e300  # the sum of many such numbers is still finite
LARGEST_AREA = 1e12
LONGEST_TEXT = 1024  # characters of a name
TEXT = "utf-8-sig"  # what text files are read as: UTF-8, also with the mark that Windows puts before it

_NUMBERS = {int, float}


def read_document(
    file: Path,
    format: Literal["detection", "panoptic", "video"] = "detection",
    keys: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A COCO annotation file, or one of YouTube-VIS: a dictionary with the lists that its format needs.

    YouTube-VIS does not publish all annotations: where its files have none, or null, the list is empty.

    Args:
        file: to read.
        format: that it should have.
        keys: what is needed of the annotations; polygons are most of a file, and to read past them is much faster.

    Raises:
        DqdetError: the file cannot be read, is not JSON, or is not in COCO's format.
    """
    try:
        document = _parsed(file.read_bytes(), keys)
    except OSError as error:
        raise DqdetError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:
        raise DqdetError(f"{file}: not valid JSON ({error}); download or export it again") from error
    except RecursionError as error:
        raise DqdetError(f"{file}: lists or objects are nested too deeply; export it as COCO JSON") from error
    if format == "video" and isinstance(document, dict) and document.get("annotations") is None:
        document["annotations"] = []
    for kind in LISTS[format]:
        if not isinstance(document, dict) or not isinstance(document.get(kind), list):
            raise DqdetError(f"{file}: not in COCO's {format} format (no list {kind!r}); export it as COCO JSON")
        if kind != "annotations" and not document[kind]:
            raise DqdetError(f"{file}: the list {kind!r} is empty; export the annotations again")
    return document


def _parsed(content: bytes, keys: Sequence[str] | None) -> Any:
    """What JSON says, at least of the ``keys`` of annotations; raises as ``json.loads`` does."""
    collecting = gc.isenabled()
    gc.disable()  # it would look at millions of new objects again and again, none of which is garbage
    try:
        if keys is not None:
            # What has not this form, or is no strict JSON, such as NaN, is read whole below, where its faults are told.
            with suppress(msgspec.MsgspecError, RecursionError, UnicodeError):
                return msgspec.json.decode(content, type=_document_with(tuple(keys)))
        return json.loads(content)
    finally:
        if collecting:
            gc.enable()


@cache
def _document_with(keys: tuple[str, ...]) -> Any:
    """The type of a document whose annotations have some of these keys."""
    typed_dict: Any = TypedDict  # mypy wants its keys to be written out
    annotation = typed_dict("annotation", dict.fromkeys(keys, Any), total=False)
    lists = {"images": Any, "categories": Any, "shards": Any, "annotations": GenericAlias(list, annotation)}
    return typed_dict("document", lists, total=False)


def is_id(value: object) -> bool:
    """A whole number of 64 bits; neither true nor false."""
    return type(value) is int and -(2**63) <= value < 2**63


def are_numbers(values: Sequence[Any], farthest: float = FARTHEST) -> bool:
    """All are finite and not beyond the bound; none is true or false."""
    # Lists of coordinates are long and many, so no step of this is a loop of Python.
    return (
        set(map(type, values)) <= _NUMBERS
        and (not values or (-farthest <= min(values) and max(values) <= farthest))
        and math.isfinite(sum(values))  # NaN hides from min and max
    )


def is_text(value: object) -> bool:
    """Not empty, not endless, and nothing that no file name or terminal can hold."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and "\0" not in value and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def is_flag(value: object) -> bool:
    """0 or 1, which some tools write as false or true."""
    return isinstance(value, int) and value in (0, 1)


def text_fault(record: dict[str, Any], key: str) -> str | None:
    """Why a name cannot be used, or None."""
    value = record.get(key)
    if is_text(value):
        return None
    if not value:
        return f"has no {key}"
    return f"has the {key} {value_text(value)}, which is no text of at most {LONGEST_TEXT} valid characters"


def size_fault(record: dict[str, Any]) -> str | None:
    """Why ``height`` and ``width`` of an image cannot be used, or None."""
    for side in ("height", "width"):
        value = record.get(side)
        if value is None:
            return f"has no {side}"
        if not (are_numbers([value]) and value == int(value) and 1 <= value <= LONGEST_SIDE):
            return f"has the {side} {value_text(value)}, which is no whole number in 1..{LONGEST_SIDE}"
    if record["height"] * record["width"] > MOST_PIXELS:
        return f"has {record['width']} x {record['height']} pixels, more than {MOST_PIXELS}"
    return None


def image_fault(image: dict[str, Any]) -> str | None:
    """Why a record of an image cannot be used, or None."""
    return text_fault(image, "file_name") or size_fault(image)


def crowd_fault(annotation: dict[str, Any]) -> str | None:
    """Why the ``iscrowd`` of an object, which may be left out, cannot be used, or None."""
    crowd = annotation.get("iscrowd", 0)
    return None if is_flag(crowd) else f"has the iscrowd {value_text(crowd)}, which is neither 0 nor 1"


def record_faults(
    kind: str, records: list[Any], fault: Callable[[dict[str, Any]], str | None], key: str = "id"
) -> tuple[list[str], set[int]]:
    """All ``records`` that cannot be used, with the reason, and the ids of all.

    Args:
        kind: what messages call a record.
        records: of the annotation file; those with a ``place``, of other files, are called by that.
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
            faults.append(f"{record.get('place', f'{kind} {record[key]}')} {reason}")
        ids.add(record[key])
    return faults, ids


def category_faults(
    categories: list[Any], fault: Callable[[dict[str, Any]], str | None] = lambda category: None
) -> tuple[list[str], set[int]]:
    """As `record_faults` for categories, whose names must differ. ``fault``: what else a format asks of them."""
    names = Counter(c["name"] for c in categories if isinstance(c, dict) and is_text(c.get("name")))

    def any_fault(category: dict[str, Any]) -> str | None:
        if reason := text_fault(category, "name"):
            return reason
        if names[category["name"]] > 1:
            return f"has the name of another one: {printable(category['name'])!r}"
        return fault(category)

    return record_faults("category", categories, any_fault)
