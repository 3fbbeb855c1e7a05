"""Masks as compressed run-length encoding, the form in which COCO's files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

from dqdet.types import Rle, RleMasks

# Of the characters of the counts: each holds five bits of a number, and whether more of them follow.
OFFSET, BITS, MORE, SIGN = 48, 0x1F, 0x20, 0x10


def encode(masks: Tensor) -> list[Rle]:
    """The encoding of each of ``masks [K, H, W]`` (bool), ready for JSON."""
    columns = masks.to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()  # [K, W, H]: runs go down the columns
    encoded = pycocotools.mask.encode(columns.transpose(2, 1, 0))  # [H, W, K] in Fortran order
    return [_as_text(rle) for rle in encoded]


def compressed(masks: Tensor) -> RleMasks:
    """``masks [K, H, W]`` (bool) in little memory."""
    height, width = masks.shape[1:]
    return RleMasks((height, width), encode(masks))


def moved(mask: Rle, corner: tuple[int, int], size: tuple[int, int]) -> Rle:
    """The mask of a part of a picture in the whole picture, which is never held as pixels.

    Args:
        mask: of the part.
        corner: left and top of the part, in pixels of the picture.
        size: height and width of the picture.
    """
    left, top = corner
    height, width = size
    columns = pycocotools.mask.decode(mask).T.astype(np.int8)  # [w, h]
    column, row = np.diff(columns, prepend=0, append=0).nonzero()  # where runs start and end, in turn
    places, times = np.unique((column + left) * height + row + top, return_counts=True)
    places = places[times == 1]  # a run that ends where the next column's starts goes on
    runs = np.diff(np.union1d(places, [height * width]), prepend=0).tolist()
    return _as_text(pycocotools.mask.frPyObjects({"size": [height, width], "counts": runs}, height, width))


def union(masks: Sequence[Rle]) -> Rle:
    """The pixels of any of some masks of one size."""
    return masks[0] if len(masks) == 1 else _as_text(pycocotools.mask.merge(masks))


def _as_text(rle: Mapping[str, Any]) -> Rle:
    """As ``pycocotools`` gives it, ready for JSON."""
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def run_lengths(counts: str) -> list[int]:
    """The lengths of the runs of a mask, background first; IndexError if the last one is cut off."""
    codes = [code - OFFSET for code in counts.encode()]
    runs: list[int] = []
    position = 0
    while position < len(codes):
        value = shift = 0
        more = True
        while more:
            code = codes[position]
            value |= (code & BITS) << shift
            more = bool(code & MORE)
            position, shift = position + 1, shift + 5
        if code & SIGN:
            value -= 1 << shift
        # From the fourth on, a run is stored as the difference from the one two before it.
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
