"""Masks in COCO's annotations, polygons and run-length encodings (RLE): checked, compressed and decoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

from dqdet.formats.records import FARTHEST, FINITE, are_numbers, is_id
from dqdet.formats.rle import run_lengths
from dqdet.types import Rle

# Pixels along the outline of a polygon. pycocotools makes a list of all of them, some hundred bytes each.
LONGEST_OUTLINE = 2**21
# What run lengths are compressed to: pycocotools reads to the first zero byte, and numbers of 30 bits.
COUNTS = re.compile("(?:[P-o]{0,5}[0-O])*")

EMPTY = "has an empty mask"  # a fault of an object, but not of an object in one of several frames


def segmentation_fault(segmentation: object, height: int, width: int) -> str | None:
    """Why the ``segmentation`` of an object in an image of this size cannot be used, or None.

    Polygons without a pixel are no fault: objects of less than a pixel have them.
    """
    if not segmentation or not isinstance(segmentation, list | dict):
        return "has no segmentation"
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, height, width)
    for polygon in segmentation:
        if not (isinstance(polygon, list) and are_numbers(polygon, FINITE)):
            return "has a polygon that is not a list of finite numbers"
        if len(polygon) % 2:
            return f"has a polygon with an odd number of coordinates: {len(polygon)}"
        if len(polygon) < 6:
            return f"has a polygon of {len(polygon) // 2} points; at least 3 are needed"
        if not are_numbers(polygon):
            return f"has a polygon with coordinates beyond {FARTHEST:.0f}"
        if _outline(polygon) > LONGEST_OUTLINE:
            return f"has a polygon with an outline of more than {LONGEST_OUTLINE} pixels"
    return None


def _outline(polygon: list[float]) -> float:
    """At least the pixels along the outline of a polygon; exact where they could be many."""
    most = len(polygon) * max(max(polygon) - min(polygon), 1)
    if most <= LONGEST_OUTLINE:
        return most
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(1).sum())


def _rle_fault(rle: dict[str, Any], height: int, width: int) -> str | None:
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(map(is_id, size))):
        return "has an RLE without size"
    if size != [height, width]:
        return f"has an RLE of {size[1]} x {size[0]} pixels in an image of {width} x {height}"
    runs = counts
    if isinstance(counts, str):
        runs = run_lengths(counts) if COUNTS.fullmatch(counts) else None
    # pycocotools reads and writes outside its memory where runs are negative or do not fill the mask.
    if not (isinstance(runs, list) and all(is_id(run) and run >= 0 for run in runs) and sum(runs) == height * width):
        return f"has an RLE whose counts are not {height * width} pixels"
    return None if any(runs[1::2]) else EMPTY


def compress(segmentation: Any, height: int, width: int) -> bytes:
    """The counts of the compressed RLE of a ``segmentation`` that has no fault; polygons are united."""
    if isinstance(segmentation, list):
        return pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))["counts"]
    if isinstance(segmentation["counts"], list):
        return pycocotools.mask.frPyObjects(segmentation, height, width)["counts"]
    return segmentation["counts"].encode()


def as_rle(segmentation: Any, height: int, width: int) -> Rle:
    """The compressed RLE of a ``segmentation`` that has no fault."""
    return {"size": [height, width], "counts": compress(segmentation, height, width).decode()}


def mask_area(counts: bytes, height: int, width: int) -> int:
    """Pixels of a mask."""
    return int(pycocotools.mask.area({"size": [height, width], "counts": counts}))


class CompressedMasks:
    """The masks of all objects of a data set in one array, which worker processes share."""

    def __init__(self, counts: Sequence[bytes]) -> None:
        self.data = np.frombuffer(b"".join(counts), dtype=np.uint8)
        self.starts = np.cumsum([0, *map(len, counts)])

    def decode(self, first: int, stop: int, height: int, width: int) -> Tensor:
        """The masks of objects ``first .. stop - 1`` of an image of this size, ``[N, height, width]`` uint8."""
        if first == stop:
            return torch.zeros(0, height, width, dtype=torch.uint8)
        limits = self.starts[first : stop + 1].tolist()
        rles = [{"size": [height, width], "counts": self.data[start:end].tobytes()} for start, end in pairwise(limits)]
        return torch.from_numpy(pycocotools.mask.decode(rles)).permute(2, 0, 1).contiguous()  # [H, W, N] -> [N, H, W]
