"""Masks as compressed run-length encoding, the form in which COCO's files hold them."""

from __future__ import annotations

from collections.abc import Iterable

import pycocotools.mask
import torch
from torch import Tensor

from dqdet.types import Rle

# Of the characters of the counts: each holds five bits of a number, and whether more of them follow.
OFFSET, BITS, MORE, SIGN = 48, 0x1F, 0x20, 0x10


def encode(masks: Tensor) -> list[Rle]:
    """The encoding of each of ``masks [K, H, W]`` (bool), ready for JSON."""
    columns = masks.to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()  # [K, W, H]: runs go down the columns
    encoded = pycocotools.mask.encode(columns.transpose(2, 1, 0))  # [H, W, K] in Fortran order
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]


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


def side_by_side(masks: Iterable[Rle | None], height: int, width: int) -> Rle:
    """One mask ``[H, T * W]`` from those of T frames of one size; None: an empty one.

    Runs go down the columns, so that they follow one another, and no mask is decoded.
    """
    runs = [0]
    frames = 0
    for frames, mask in enumerate(masks, 1):  # noqa: B007, their number is needed
        following = [height * width] if mask is None else run_lengths(mask["counts"])
        if len(runs) % 2 == 0 and following[0] == 0:  # the mask goes on: foreground meets foreground
            following = following[1:]
            runs[-1] += following.pop(0)
        elif len(runs) % 2:  # background meets background
            runs[-1] += following.pop(0)
        runs += following
    size = [height, frames * width]
    return {
        "size": size,
        "counts": pycocotools.mask.frPyObjects({"size": size, "counts": runs}, *size)["counts"].decode(),
    }
