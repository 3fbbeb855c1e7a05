"""Pictures of any size: overlapping tiles go through a model by themselves, and what they found is joined.

A border of a tile cuts objects, and what lies where tiles overlap is found by each of them. Two detections of different
tiles are one object when they agree in the part of the picture that both tiles see: there, boxes of one class have to
lie on each other. Elsewhere one of the two tiles sees nothing, so that halves that hardly overlap are joined too, which
suppression by the overlap of whole boxes would leave apart. A tile's own detections are never joined with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dqdet.formats.rle import moved, union
from dqdet.types import ImageDetections, RleMasks

LEAST_OVERLAP = 0.5  # where both tiles see, of two detections that are one object
BORDER = 0.02  # of a tile's side: a box that comes so close to a border is cut there
LEAST_SCORE = 0.5  # of that of the best, of a detection that has a say in where the object is


class Tile(NamedTuple):
    """A part of a picture, in its pixels."""

    left: int
    top: int
    right: int
    bottom: int


def tiles_of(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """Tiles that cover a picture, row by row; the last ones of a row or column are shifted inside.

    Args:
        size: height and width of the picture.
        side: of a tile, in pixels; where the picture is smaller, the tile is, too.
        overlap: least part of its side that a tile shares with the next, in 0..1, 1 excluded.
    """
    height, width = size
    rows, columns = _starts(height, side, overlap), _starts(width, side, overlap)
    return [Tile(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    step = max(1, math.floor(side * (1 - overlap)))
    count = max(0, math.ceil((length - side) / step)) + 1
    return [min(number * step, max(0, length - side)) for number in range(count)]


def joined(found: Sequence[ImageDetections], tiles: Sequence[Tile], size: tuple[int, int]) -> ImageDetections:
    """What was found in the tiles of a picture as what was found in the picture, on the CPU, best first.

    An object that several tiles found has the score of the best. Where one of them sees it whole, its box and mask are
    the object's; otherwise these are made of all parts.

    Args:
        found: in each tile, in pixels of the tile.
        tiles: of the picture.
        size: height and width of the picture.
    """
    counts = torch.tensor([len(one.scores) for one in found])
    owners = torch.arange(len(tiles)).repeat_interleave(counts)  # [K] the tile of each detection of all tiles
    scores = torch.cat([one.scores for one in found]).cpu()  # [K]
    labels = torch.cat([one.labels for one in found]).cpu()  # [K]
    places = torch.tensor(tiles)[owners]  # [K, 4]
    boxes = torch.cat([one.boxes for one in found]).cpu() + places[:, [0, 1, 0, 1]]  # [K, 4]
    cut = _cut(boxes, places, size)  # [K]

    groups = _groups(scores, owners, _pairs(scores, labels, boxes, cut, owners, tiles))
    shapes = [_shaping(group, scores, cut) for group in groups]
    best = torch.tensor([group[0] for group in groups], dtype=torch.int64)  # [J]
    ends = [torch.cat([boxes[parts, :2].amin(0), boxes[parts, 2:].amax(0)]) for parts in shapes]
    masks = None
    if found[0].masks is not None:
        rles = [rle for one in found if one.masks is not None for rle in one.masks.rles]  # K
        corners = places[:, :2].tolist()
        masks = RleMasks(size, [union([moved(rles[k], corners[k], size) for k in parts]) for parts in shapes])
    return ImageDetections(scores[best], labels[best], torch.stack(ends) if ends else boxes, masks)


def _cut(boxes: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Which boxes ``[K]`` (bool) a border of their tile cuts, that is none of the picture."""
    height, width = size
    margin = BORDER * (places[:, 2:] - places[:, :2]).amax(1, keepdim=True)  # [K, 1]
    low = (boxes[:, :2] <= places[:, :2] + margin) & (places[:, :2] > 0)
    high = (boxes[:, 2:] >= places[:, 2:] - margin) & (places[:, 2:] < torch.tensor([width, height]))
    return (low | high).any(1)


def _pairs(
    scores: Tensor, labels: Tensor, boxes: Tensor, cut: Tensor, owners: Tensor, tiles: Sequence[Tile]
) -> list[tuple[int, int]]:
    """Detections of two tiles that agree where both see, the best first.

    They agree by their IoU there. What a border leaves of an object may be a sliver whose extent is uncertain, so that
    of a smaller box that is cut, the part inside the other one counts. Good are pairs that lie on each other and score
    high, both of them.
    """
    of_tiles = [(owners == tile).nonzero()[:, 0] for tile in range(len(tiles))]
    found: list[Tensor] = []
    merits: list[Tensor] = []
    places = torch.tensor(tiles)  # [T, 4]
    shared = _within(places[:, None], places[:, :2], places[:, 2:])  # [T, T, 4]
    for a, b in _area(shared).triu(1).nonzero().tolist():
        ours, theirs = of_tiles[a], of_tiles[b]
        low, high = shared[a, b].split(2)
        seen = [_within(boxes[rows], low, high) for rows in (ours, theirs)]  # [A, 4], [B, 4]
        areas = [_area(part) for part in seen]  # [A], [B]
        first, second = areas[0][:, None], areas[1][None]
        both = _area(_within(seen[0][:, None], seen[1][:, :2], seen[1][:, 2:]))  # [A, B]
        iou = both / (first + second - both).clamp(min=1e-6)
        smaller_is_cut = torch.where(first < second, cut[ours][:, None], cut[theirs][None])
        overlap = torch.where(smaller_is_cut, both / torch.minimum(first, second).clamp(min=1e-6), iou)
        agree = (overlap >= LEAST_OVERLAP) & (labels[ours][:, None] == labels[theirs][None])
        rows, columns = agree.nonzero(as_tuple=True)
        found.append(torch.stack([ours[rows], theirs[columns]], 1))
        merits.append(iou[rows, columns] * torch.minimum(scores[ours[rows]], scores[theirs[columns]]))
    if not found:
        return []
    order = torch.cat(merits).argsort(descending=True, stable=True)
    return [(first, second) for first, second in torch.cat(found)[order].tolist()]


def _within(boxes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The parts of boxes ``[..., 4]`` from corners ``low`` to ``high``; empty ones have no positive side."""
    return torch.cat([torch.maximum(boxes[..., :2], low), torch.minimum(boxes[..., 2:], high)], -1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _groups(scores: Tensor, owners: Tensor, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """All detections, those of one object together: at most one of each tile; best first, within a group, too."""
    tile_of = owners.tolist()
    group_of = [[k] for k in range(len(tile_of))]
    for first, second in pairs:
        ours, theirs = group_of[first], group_of[second]
        if {tile_of[k] for k in ours}.isdisjoint(tile_of[k] for k in theirs):
            ours += theirs
            for k in theirs:
                group_of[k] = ours
    order = scores.argsort(descending=True, stable=True).tolist()
    rank = {k: place for place, k in enumerate(order)}
    groups = {id(group_of[k]): group_of[k] for k in order}  # in the order of their best
    return [sorted(group, key=rank.__getitem__) for group in groups.values()]


def _shaping(group: Sequence[int], scores: Tensor, cut: Tensor) -> list[int]:
    """Those of a group that say where the object is: the best that is whole, or all parts."""
    sure = [k for k in group if scores[k] >= LEAST_SCORE * scores[group[0]]]
    return next(([k] for k in sure if not cut[k]), sure)
