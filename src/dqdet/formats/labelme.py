"""Annotation files of LabelMe: of each image a JSON file with shapes.

Rectangles, circles, polygons and masks are objects. Shapes of one label with the same ``group_id`` are parts of one.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from dqdet.errors import printable, value_text
from dqdet.formats.records import FARTHEST, FINITE, are_numbers, image_fault, is_text
from dqdet.formats.rle import encode

CIRCLE = 64  # corners of its polygon


def read_annotation(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The record of an image and its objects as COCO has them, and what is wrong, with the shape.

    An object has the name of its class (``name``), its ``bbox`` and its ``segmentation``.
    """
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        return {}, [], [f"{file} cannot be read ({error.strerror})"]
    except (ValueError, RecursionError) as error:
        return {}, [], [f"{file} is no JSON ({error})"]
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list):
        return {}, [], [f"{file} has no list of shapes; it is no file of LabelMe"]
    name = document.get("imagePath")
    image: dict[str, Any] = {"file_name": PureWindowsPath(name).as_posix() if isinstance(name, str) else name}
    image |= {"height": document.get("imageHeight"), "width": document.get("imageWidth")}
    if fault := image_fault(image):
        return image, [], [f"{file} {fault.replace('file_name', 'imagePath')}"]
    image |= {side: int(image[side]) for side in ("height", "width")}  # which may be 30.0
    objects: dict[tuple[Any, ...], dict[str, Any]] = {}
    faults = []
    for number, shape in enumerate(shapes, 1):
        try:
            found = _object(shape, image["height"], image["width"])
        except ValueError as error:
            faults.append(f"{file}: shape {number} {error}")
            continue
        group = shape.get("group_id")
        key = (number,) if group is None else (found["name"], str(group))
        objects[key] = _united(objects[key], found) if key in objects else found | {"place": f"{file}: shape {number}"}
    for one in objects.values():
        if len(parts := one["segmentation"]) > 1 and any(isinstance(part, dict) for part in parts):
            faults.append(f"{one['place']} is a mask in a group with others; draw it as one shape")
        elif isinstance(parts[0], dict):
            one["segmentation"] = parts[0]
    return image, list(objects.values()), faults


def _object(shape: Any, height: int, width: int) -> dict[str, Any]:
    """Raises ValueError with the reason where a shape is no object."""
    if not isinstance(shape, dict) or not is_text(shape.get("label")):
        raise ValueError("has no label")
    label, kind, points = shape["label"], shape.get("shape_type", "polygon"), shape.get("points")
    described = f"({printable(label)}, {printable(str(kind))})"
    if not (
        isinstance(points, list)
        and all(isinstance(point, list) and len(point) == 2 and are_numbers(point, FINITE) for point in points)
        and all(are_numbers(point) for point in points)
    ):
        raise ValueError(f"{described} has points that are not pairs of numbers within {FARTHEST:.0f}")
    segmentation: Any
    match kind:
        case "rectangle" if len(points) in (2, 4):
            (left, top), (right, bottom) = np.min(points, 0).tolist(), np.max(points, 0).tolist()
            segmentation = [left, top, right, top, right, bottom, left, bottom]
        case "circle" if len(points) == 2:
            angles = np.arange(CIRCLE) * (2 * math.pi / CIRCLE)
            radius = math.dist(*points)
            corners = np.array(points[0]) + radius * np.stack([np.cos(angles), np.sin(angles)], 1)  # [64, 2]
            segmentation = corners.ravel().tolist()
        case "polygon" if len(points) >= 3:
            segmentation = [place for point in points for place in point]
        case "mask" if len(points) == 2:
            return {"name": label, **_mask(shape.get("mask"), points, height, width, described)}
        case "rectangle" | "circle" | "polygon" | "mask":
            raise ValueError(f"{described} has {len(points)} points")
        case _:
            raise ValueError(f"{described} is no object; draw rectangles, circles, polygons or masks, or remove it")
    xs, ys = segmentation[0::2], segmentation[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"name": label, "bbox": box, "segmentation": [segmentation]}


def _mask(encoded: Any, points: list[list[float]], height: int, width: int, described: str) -> dict[str, Any]:
    """A PNG in base64, which lies at the first point and ends with the pixel at the second one."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
            part = np.array(image) > 0
    except (TypeError, binascii.Error, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{described} has a mask that is no PNG in base64") from error
    (left, top), (right, bottom) = (map(round, point) for point in points)
    if part.shape != (bottom - top + 1, right - left + 1) or min(left, top) < 0 or right >= width or bottom >= height:
        raise ValueError(
            f"{described} has a mask of {value_text(part.shape)} pixels, which is not the box of its points"
        )
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, top : bottom + 1, left : right + 1] = torch.from_numpy(part)
    return {"bbox": [left, top, right - left + 1, bottom - top + 1], "segmentation": encode(mask)}


def _united(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two parts of an object as one."""
    (x, y, w, h), (x2, y2, w2, h2) = one["bbox"], other["bbox"]
    left, top, right, bottom = min(x, x2), min(y, y2), max(x + w, x2 + w2), max(y + h, y2 + h2)
    return one | {
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": one["segmentation"] + other["segmentation"],
    }
