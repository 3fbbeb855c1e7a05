"""Masks as compressed run-length encoding, the form in which COCO's results files hold them."""

from __future__ import annotations

from typing import TypedDict

import pycocotools.mask
import torch
from torch import Tensor


class Rle(TypedDict):
    size: list[int]  # height, width
    counts: str


def encode(masks: Tensor) -> list[Rle]:
    """The encoding of each of ``masks [K, H, W]`` (bool), ready for JSON."""
    columns = masks.to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()  # [K, W, H]: runs go down the columns
    encoded = pycocotools.mask.encode(columns.transpose(2, 1, 0))  # [H, W, K] in Fortran order
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]
