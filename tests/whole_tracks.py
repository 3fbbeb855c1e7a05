"""Tracks of whole videos without compression, made in the plainest way: what compressed ones must equal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch

from dqdet.formats import rle
from dqdet.inference.windows import WindowTracks
from dqdet.types import ClipTracks, Track


def decode_frames(segmentations: Sequence[dict[str, Any] | list | None], height: int, width: int) -> np.ndarray:
    """The masks [T, H, W] (bool) of a track: of each frame RLE, compressed or not, polygons, or None (not visible)."""
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        if isinstance(segmentation, list):
            segmentation = pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))
        elif segmentation is not None and isinstance(segmentation["counts"], list):
            segmentation = pycocotools.mask.frPyObjects(segmentation, height, width)
        if segmentation is not None:
            mask[:] = pycocotools.mask.decode(segmentation)
    return masks


def as_tracks(tracks: ClipTracks) -> list[Track]:
    found = []
    for label, score, masks in zip(tracks.labels.tolist(), tracks.scores.tolist(), tracks.masks, strict=True):
        encoded = zip(rle.encode(masks), masks.flatten(1).any(1).tolist(), strict=True)
        found.append(Track(label, score, {frame: mask for frame, (mask, seen) in enumerate(encoded) if seen}))
    return found


def decompressed(tracks: Sequence[Track], length: int, height: int, width: int) -> ClipTracks:
    masks = [decode_frames([one.masks.get(frame) for frame in range(length)], height, width) for one in tracks]
    return ClipTracks(
        torch.tensor([one.score for one in tracks]),
        torch.tensor([one.label for one in tracks], dtype=torch.int64),
        torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, length, height, width)),
    )


def whole(parts: Iterable[WindowTracks], limit: int) -> ClipTracks:
    """The ``limit`` best tracks of all windows of a video, of those that are visible."""
    parts = list(parts)
    _, length, height, width = parts[-1].tracks.masks.shape
    labels = parts[-1].tracks.labels.new_zeros(1 + max((number for part in parts for number in part.ids), default=-1))
    sums, frames = labels.new_zeros(len(labels), dtype=torch.float), labels.new_zeros(len(labels))  # [tracks] each
    seen = labels.bool()  # [tracks]
    for part in parts:
        labels[part.ids] = part.tracks.labels
        seen[part.ids] |= part.tracks.masks.flatten(1).any(1)
        sums[part.ids] += part.tracks.scores.float() * part.tracks.masks.shape[1]
        frames[part.ids] += part.tracks.masks.shape[1]
    scores, best = (sums / frames).where(seen, -torch.inf).topk(min(limit, int(seen.sum())))  # [K]
    masks = torch.zeros(len(best), parts[-1].start + length, height, width, dtype=torch.bool, device=best.device)
    for part in parts:
        for row, number in enumerate(best.tolist()):
            if number in part.ids:
                of_part = part.tracks.masks[part.ids.index(number)]  # [T, H, W]
                masks[row, part.start : part.start + len(of_part)] = of_part
    return ClipTracks(scores, labels[best], masks)
