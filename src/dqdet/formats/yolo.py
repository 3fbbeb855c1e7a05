"""Label files of YOLO: of each image a text file with a line for each object.

A line has the number of the class, and either a box (centre x, centre y, width, height) or the corners of a polygon
(x1, y1, x2, y2, ...), relative to the image. The names of the classes are in ``data.yaml`` or ``classes.txt``. Where
``data.yaml`` has ``kpt_shape``, keypoints follow the box, which are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dqdet.errors import NOT_YAML, DqdetError, value_text
from dqdet.formats.records import TEXT, is_id, is_text

SLACK = 0.01  # beyond the image, from rounding and from objects that it cuts; boxes are clipped anyway


def read_labels(
    file: Path, classes: int, height: int, width: int, keypoints: int = 0
) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of one image as COCO has them, and what is wrong, with the line.

    An object has the index of its class (``label``), its ``bbox`` in pixels, and the ``segmentation`` of a polygon.

    Args:
        file: of the labels; one that does not exist means no objects.
        classes: how many there are.
        height: of the image, as its width in pixels.
        width: see ``height``.
        keypoints: numbers of them after each box.
    """
    try:
        text = file.read_text(encoding=TEXT)
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError) as error:
        return [], [f"{file}: cannot be read as text ({error})"]
    objects, faults = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not (values := line.split()):
            continue
        try:
            found = _object(values, classes, height, width, keypoints)
        except ValueError as error:
            faults.append(f"{file}:{number} {error}")
        else:
            objects.append(found | {"place": f"{file}:{number}"})
    return objects, faults


def _object(values: list[str], classes: int, height: int, width: int, keypoints: int) -> dict[str, Any]:
    """Raises ValueError with the reason where a line is no object."""
    if keypoints:
        if len(values) != 5 + keypoints:
            raise ValueError(
                f"has {len(values)} values; a box with keypoints has {5 + keypoints} (class, x, y, width, height, ...)"
            )
        values = values[:5]
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError(f"has {len(values)} values; a box has 5 (class, x, y, width, height), a polygon 7, 9, ...")
    if not values[0].isdecimal() or int(values[0]) >= classes:
        raise ValueError(f"has the class {value_text(values[0])}, which is no whole number in 0..{classes - 1}")
    places = [_relative(value) for value in values[1:]]
    label = int(values[0])
    if len(places) == 4:
        x, y, w, h = places
        return {"label": label, "bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
    polygon = [place * side for place, side in zip(places, [width, height] * (len(places) // 2), strict=True)]
    xs, ys = polygon[0::2], polygon[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"label": label, "bbox": box, "segmentation": [polygon]}


def _relative(value: str) -> float:
    try:
        place = float(value)
    except ValueError:
        place = float("nan")
    if not -SLACK <= place <= 1 + SLACK:
        raise ValueError(f"has the value {value_text(value)}, which is not relative to the image, in 0..1")
    return place


def read_yaml(file: Path) -> dict[str, Any]:
    """``data.yaml``, with the names of the classes as a list.

    Raises:
        DqdetError: it cannot be read, or has no names that can be used.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding=TEXT))
    except (OSError, *NOT_YAML) as error:
        raise DqdetError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from error
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DqdetError(f"{file}: names has the keys {value_text(list(names))}; number the classes from 0")
        names = [names[number] for number in range(len(names))]
    return document | {"names": checked_names(file, names)} if isinstance(document, dict) else {"names": names}


def keypoint_numbers(file: Path, document: dict[str, Any]) -> int:
    """How many numbers of keypoints, by what ``data.yaml`` says of their shape, an object has after its box.

    Raises:
        DqdetError: it is no shape.
    """
    shape = document.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(is_id(n) and n > 0 for n in shape)):
        raise DqdetError(
            f"{file}: kpt_shape is {value_text(shape)}, not how many keypoints and numbers of each; correct it"
        )
    return int(shape[0] * shape[1])


def read_names(file: Path) -> list[str]:
    """A file with the name of a class in each line, such as ``classes.txt``.

    Raises:
        DqdetError: it cannot be read, or has no names that can be used.
    """
    try:
        lines = file.read_text(encoding=TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DqdetError(f"{file}: cannot be read as text ({error}); write a class in each line") from error
    return checked_names(file, [line.strip() for line in lines if line.strip()])


def checked_names(file: Path, names: object) -> list[str]:
    """The names of classes; numbers, which YAML makes of ``[0, 1]``, as text.

    Raises:
        DqdetError: there are none, or they cannot be used.
    """
    if not isinstance(names, list) or not names:
        raise DqdetError(f"{file}: has no list of the names of the classes (names); add it")
    names = [str(name) if type(name) is int else name for name in names]
    if wrong := [name for name in names if not is_text(name)]:
        raise DqdetError(
            f"{file}: among the names of the classes is {value_text(wrong[0])}, which is no text; put it in quotes"
        )
    if len(set(names)) < len(names):
        raise DqdetError(f"{file}: classes have the same name: {value_text(names)}; give each its own")
    return names
