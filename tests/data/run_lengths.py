"""COCO's two forms of a mask's run-length encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Lengths of runs down the columns, the first one of background."""
    values = np.concatenate([[0], mask.ravel(order="F"), [2]])
    ends = np.flatnonzero(values[1:] != values[:-1])
    counts = np.diff(np.concatenate([[0], ends]), prepend=0)[1:].tolist()
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}
