"""Panoptic maps in COCO's format: a list of segments, and a PNG whose colours are their ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image

from dqdet.formats.image_files import opened_image, write_image
from dqdet.types import PanopticMap

VOID = 0  # the id of pixels that belong to no segment


def read_ids(file: Path) -> np.ndarray:
    """The segment ids [H, W] of an official PNG map: R + 256 G + 65536 B.

    Raises:
        DqdetError: the file is missing or is no image.
    """
    with opened_image(file, "write it again", "a panoptic PNG") as opened:
        colours = np.asarray(opened.convert("RGB"), dtype=np.uint32)  # [H, W, 3]
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def write_ids(file: Path, ids: np.ndarray) -> None:
    """Write segment ids [H, W], each below 2^24, as an official PNG map. Raises OSError when it cannot be written."""
    colours = np.empty((*ids.shape, 3), dtype=np.uint8)
    for channel in range(3):
        colours[..., channel] = ids >> 8 * channel & 255
    write_image(file, PIL.Image.fromarray(colours))


def segment_faults(panoptic: PanopticMap, category_ids: Iterable[int]) -> list[str]:
    """Where map and list of segments disagree, and categories that do not exist; one text for each fault."""
    in_map = set(np.unique(panoptic.ids).tolist()) - {VOID}
    in_list = {segment["id"] for segment in panoptic.segments}
    known = set(category_ids)
    return [
        *(f"segment {number} is in the PNG but not in the JSON" for number in sorted(in_map - in_list)),
        *(f"segment {number} is in the JSON but not in the PNG" for number in sorted(in_list - in_map)),
        *(
            f"segment {segment['id']} has the unknown category_id {segment['category_id']}"
            for segment in panoptic.segments
            if segment["category_id"] not in known
        ),
    ]
