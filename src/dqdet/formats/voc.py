"""Annotation files of Pascal VOC (Everingham et al., IJCV 2010): of each image an XML file.

Corners are pixels counted from 1, both inside the box: in coordinates of the image it is xmin - 1 .. xmax. Objects that
are marked as difficult are not counted by the official evaluation, neither found nor missed; here they are crowds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from dqdet.errors import printable, value_text
from dqdet.formats.records import FARTHEST, are_numbers, image_fault, is_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
EASY, DIFFICULT = ("", "0", "0.0", "false", "no", "unspecified"), ("1", "1.0", "true", "yes")


@dataclass
class Element:
    """A part of an XML file. ``ElementTree`` would not say in which line it is."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, tag: str) -> Element | None:
        return next((child for child in self.children if child.tag == tag), None)

    def value(self, tag: str) -> str:
        """The text of a child; empty where there is none."""
        child = self.find(tag)
        return "" if child is None else child.text.strip()


def parse(content: bytes) -> Element:
    """The root of an XML file. Raises ExpatError, whose text has the line; ValueError or LookupError: its encoding."""
    parser = expat.ParserCreate()
    path = [Element("", 0)]

    def start(tag: str, attributes: dict[str, str]) -> None:
        path[-1].children.append(element := Element(tag, parser.CurrentLineNumber))
        path.append(element)

    def text(characters: str) -> None:
        path[-1].text += characters

    def entity(*declaration: object) -> None:
        # One of another of another ... may be longer than any memory.
        raise expat.ExpatError("it declares entities, which annotations have none of")

    parser.EntityDeclHandler = entity
    parser.StartElementHandler = start
    parser.CharacterDataHandler = text
    parser.EndElementHandler = lambda tag: path.pop() and None  # what a handler returns is ignored
    parser.Parse(content, True)
    return path[0].children[0]


def read_annotation(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The record of an image and its objects as COCO has them, and what is wrong, with the line.

    An object has the name of its class (``name``), ``bbox``, ``iscrowd`` and, of polygons, ``segmentation``.
    """
    try:
        root = parse(file.read_bytes())
    except OSError as error:
        return {}, [], [f"{file} cannot be read ({error.strerror})"]
    except (expat.ExpatError, ValueError, LookupError) as error:  # the last two are of encodings
        return {}, [], [f"{file} is no XML ({error})"]
    size = root.find("size") or Element("size", root.line)
    image = {"file_name": root.value("filename")} | {side: _whole(size.value(side)) for side in ("height", "width")}
    faults = [f"{file}:{size.line} {fault}"] if (fault := image_fault(image | {"file_name": file.name})) else []
    objects = []
    for element in root.children:
        if element.tag == "object":
            try:
                objects.append(_object(element) | {"place": f"{file}:{element.line}"})
            except ValueError as error:
                faults.append(f"{file}:{element.line} {error}")
    return image, objects, faults


def _object(element: Element) -> dict[str, Any]:
    """Raises ValueError with the reason where an element is no object."""
    name, box = element.value("name"), element.find("bndbox")
    if not is_text(name):
        raise ValueError("has no name of a class")
    if box is None:
        raise ValueError(f"({printable(name)}) has no bndbox")
    corners = [_number(box.value(corner)) for corner in CORNERS]
    if not are_numbers(corners):
        given = ", ".join(f"{corner}={value_text(box.value(corner))}" for corner in CORNERS)
        raise ValueError(f"({printable(name)}) has corners that are not numbers within {FARTHEST:.0f}: {given}")
    left, top, right, bottom = corners[0] - 1, corners[1] - 1, *corners[2:]
    found = {"name": name, "bbox": [left, top, right - left, bottom - top], "iscrowd": _difficult(element)}
    if polygons := [_polygon(child) for child in element.children if child.tag == "polygon"]:
        found["segmentation"] = polygons
    return found


def _difficult(element: Element) -> int:
    text = element.value("difficult")
    for flag, texts in enumerate((EASY, DIFFICULT)):
        if text.lower() in texts:
            return flag
    raise ValueError(f"has the difficult {value_text(text)}, which is neither 0 nor 1")


def _polygon(element: Element) -> list[float]:
    """x1, y1, x2, y2, ... of the elements of these names, as Roboflow writes them."""
    points = [_number(child.text.strip()) for child in element.children if child.tag[:1] in ("x", "y")]
    if len(points) < 6 or len(points) % 2 or not are_numbers(points):
        raise ValueError(f"has a polygon of {len(points)} numbers; at least 3 corners of two are needed")
    return [point - 1 for point in points]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _whole(text: str) -> int | str | None:
    return int(text) if text.isdecimal() else text or None
