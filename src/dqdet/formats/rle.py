"""Masks as compressed run-length encoding, the form in which COCO's files hold them."""

from __future__ import annotations

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
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]


def compressed(masks: Tensor) -> RleMasks:
    """``masks [K, H, W]`` (bool) in little memory."""
    height, width = masks.shape[1:]
    return RleMasks((height, width), encode(masks))


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
