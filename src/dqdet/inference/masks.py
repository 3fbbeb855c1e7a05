"""Masks of queries -> instances, panoptic maps and tracks, selected as in the published evaluations.

Masks are predicted at a quarter of the resolution. Only those of queries that are reported are brought to the
original size, a few at a time, so that the memory for logits does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from dqdet.config import Config, SequenceLossConfig
from dqdet.formats.panoptic import VOID
from dqdet.formats.rle import encode
from dqdet.inference.boxes import in_pixels
from dqdet.inference.pairs import Pairs, best_pairs
from dqdet.types import Candidates, ClipTracks, ImageDetections, PanopticMap, Predictions, RleMasks, Segmentation

PIXELS_AT_ONCE = 2**24  # of enlarged masks, 64 MiB
SCORES_AT_ONCE = 2**28  # of classes at pixels, 1 GiB


def instances(
    found: Predictions | Candidates, image: int, size: tuple[int, int], original_size: tuple[int, int], config: Config
) -> ImageDetections:
    """The best pairs of a query and a class. A score is that of the class times the mean certainty of the mask.

    Classes that are stuff are left out after the selection, as published.

    Args:
        found: predictions of the last layer, or the pairs that are selected already.
        image: its index.
        size: height and width within the padded batch.
        original_size: height and width of the results.
        config: of the model.
    """
    scores, labels, queries = pairs_of(found, image, config)
    if config.stuff:
        things = torch.tensor([name not in config.stuff for name in config.classes])
        kept = things.to(labels.device, non_blocking=True)[labels].nonzero()[:, 0]
        scores, labels, queries = scores[kept], labels[kept], queries[kept]
    chosen, pairs = queries.unique(return_inverse=True)  # a query may be reported under several classes
    masks, boxes, certainties = RleMasks(original_size, []), [scores.new_zeros(0, 4)], [scores.new_zeros(0)]
    for logits in enlarged(found, image, chosen, size, original_size):
        mask = logits > 0  # [M, H, W]
        masks.rles += encode(mask)
        boxes.append(boxes_of_masks(mask))
        certainties.append((logits.sigmoid_().mul_(mask)).flatten(1).sum(1) / (mask.flatten(1).sum(1) + 1e-6))
    scores, order = (scores * torch.cat(certainties)[pairs]).sort(descending=True)  # [K]
    rows = pairs[order]
    return ImageDetections(scores, labels[order], torch.cat(boxes)[rows], masks[rows.tolist()])


def boxed_instances(
    found: Predictions | Candidates, image: int, size: tuple[int, int], original_size: tuple[int, int], config: Config
) -> ImageDetections:
    """The same of queries that predict boxes beside their masks: scores are those of the classes alone (RF-DETR)."""
    assert found.boxes is not None, "these predictions have no boxes"
    scores, labels, queries = pairs_of(found, image, config)
    boxes = in_pixels(box_convert(found.boxes[0, image, queries].float(), "cxcywh", "xyxy"), original_size)
    chosen, pairs = queries.unique(return_inverse=True)
    masks = RleMasks(original_size, [])
    for logits in stretched(found, image, chosen, size, original_size):
        masks.rles += encode(logits > 0)  # [M, H, W]
    return ImageDetections(scores, labels, boxes, masks[pairs.tolist()])


def segmentation(
    final: Predictions, image: int, size: tuple[int, int], original_size: tuple[int, int], config: Config
) -> Segmentation:
    """All that a panoptic model says about an image; arguments as of :func:`instances`."""
    return Segmentation(
        instances=instances(final, image, size, original_size, config),
        panoptic=panoptic_map(final, image, size, original_size, config),
        label_map=lambda: semantic_map(final, image, size, original_size, config).cpu().numpy(),
    )


def semantic_map(
    final: Predictions, image: int, size: tuple[int, int], original_size: tuple[int, int], config: Config
) -> Tensor:
    """The label ``[H, W]`` with the highest of ``semantic_scores`` at each pixel."""
    height, width = original_size
    best = final.logits.new_full(original_size, -1.0, dtype=torch.float)  # [H, W]
    labels = torch.zeros_like(best, dtype=torch.int64)
    at_once = max(1, SCORES_AT_ONCE // (height * width))  # classes: those of photographs do not fit into the memory
    for start in range(0, len(config.classes), at_once):
        classes = slice(start, min(start + at_once, len(config.classes)))
        value, label = semantic_scores(final, image, size, original_size, classes).max(0)
        labels = torch.where(value > best, label + start, labels)
        best = torch.maximum(value, best)
    return labels


def semantic_scores(
    final: Predictions, image: int, size: tuple[int, int], original_size: tuple[int, int], classes: slice
) -> Tensor:
    """The score of C classes at each pixel, ``[C, H, W]``: the sum over queries of class times mask probability."""
    probabilities = final.logits[0, image].float().softmax(-1)[:, classes]  # [Q, C]
    scores = probabilities.new_zeros(probabilities.shape[1], *original_size)  # [C, H, W]
    queries = torch.arange(len(probabilities), device=scores.device)
    start = 0
    for logits in enlarged(final, image, queries, size, original_size):
        chunk = probabilities[start : start + len(logits)]  # [M, C]
        scores.flatten(1).addmm_(chunk.T, logits.sigmoid().flatten(1))
        start += len(logits)
    return scores


def panoptic_map(
    final: Predictions, image: int, size: tuple[int, int], original_size: tuple[int, int], config: Config
) -> PanopticMap:
    """Segments without overlap; a pixel belongs to the query with the highest class times mask probability there.

    Queries below ``inference.object_threshold`` take no part, and those that keep less than
    ``inference.overlap_threshold`` of their mask are left out. Segments of one stuff class become one. A
    segment's ``score`` is that of its class, the highest one of those that became one.
    """
    classes = len(config.classes)
    scores, labels = final.logits[0, image].float().softmax(-1).max(-1)  # [Q]
    queries = ((labels < classes) & (scores > config.inference.object_threshold)).nonzero()[:, 0]  # [K]
    scores, labels = scores[queries], labels[queries]

    best = scores.new_full(original_size, -1.0)  # [H, W] product of the query that a pixel belongs to
    owner = torch.zeros_like(best, dtype=torch.int64)  # [H, W] that query
    inside = torch.zeros_like(best, dtype=torch.bool)  # [H, W] whether the pixel is in its mask
    areas: list[int] = []  # [K] pixels of each mask, whoever they belong to
    start = 0
    for logits in enlarged(final, image, queries, size, original_size):
        masks = logits.sigmoid()  # [M, H, W]
        areas += (masks >= 0.5).flatten(1).sum(1).tolist()
        value, index = (scores[start : start + len(masks), None, None] * masks).max(0)  # [H, W]
        better = value > best
        best = torch.where(better, value, best)
        owner = torch.where(better, index + start, owner)
        inside = torch.where(better, masks.gather(0, index[None])[0] >= 0.5, inside)
        start += len(masks)

    owned = owner.flatten().bincount(minlength=start).tolist()  # [K] pixels
    visible = owner[inside].bincount(minlength=start).tolist()  # [K] pixels
    category_ids = config.ids
    segments: list[dict[str, Any]] = []
    numbers = [VOID] * start  # [K] segment that a query's pixels become
    stuff: dict[int, int] = {}  # label -> segment
    for k, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        if not visible[k] or owned[k] / areas[k] < config.inference.overlap_threshold:
            continue
        if label in stuff:
            segment = segments[stuff[label] - 1]
            segment["score"] = max(segment["score"], score)
            numbers[k] = segment["id"]
            continue
        numbers[k] = len(segments) + 1
        segments.append({"id": numbers[k], "category_id": category_ids[label], "score": score})
        if config.classes[label] in config.stuff:
            stuff[label] = numbers[k]
    ids = torch.where(inside, torch.tensor([*numbers, VOID], device=owner.device)[owner], VOID)
    return PanopticMap(ids.cpu().numpy(), segments)


def tracks(
    final: Predictions, video: int, size: tuple[int, int], original_size: tuple[int, int], config: Config
) -> ClipTracks:
    """The best pairs of a query and a class, by the score of the class alone, without those that are never seen."""
    scores, labels, queries = pairs_of(final, video, config)
    chosen, pairs = queries.unique(return_inverse=True)
    resize = stretched if isinstance(config.loss, SequenceLossConfig) else enlarged
    masks = torch.cat([logits > 0 for logits in resize(final, video, chosen, size, original_size)])  # [M * T, H, W]
    masks = masks.unflatten(0, (len(chosen), -1))  # [M, T, H, W]
    seen = masks.flatten(1).any(1)[pairs].nonzero()[:, 0]  # [K]
    return ClipTracks(scores[seen], labels[seen], masks[pairs[seen]])


def pairs_of(found: Predictions | Candidates, image: int, config: Config) -> Pairs:
    """Scores, labels and queries ``[K]`` of the best pairs of a query and a class of one image, best first."""
    limit = config.inference.limit
    if isinstance(found, Candidates):
        scores, labels = found.scores[image, :limit], found.labels[image, :limit]
        return Pairs(scores, labels, torch.arange(len(scores), device=scores.device))
    return Pairs(*(x[0] for x in best_pairs(found.logits[0, image, None], config, limit)))


def enlarged(
    final: Predictions | Candidates, image: int, queries: Tensor, size: tuple[int, int], original_size: tuple[int, int]
) -> Iterator[Tensor]:
    """Mask logits ``[M, H, W]`` at the original size, a few at a time: all of ``queries`` (video: all frames of each).

    As published for Mask2Former, masks are enlarged to the padded image, cropped to the image, and resized.
    """
    assert final.masks is not None, "these predictions have no masks"
    masks = final.masks.of(0, image, queries).float().flatten(0, -3)  # [M, h, w] (video: [M * T, h, w])
    if not len(masks):
        return
    padded = masks.shape[1] * final.masks.stride, masks.shape[2] * final.masks.stride
    for some in masks.unsqueeze(1).split(_count(padded, original_size)):
        whole = F.interpolate(some, size=padded, mode="bilinear")
        yield F.interpolate(whole[..., : size[0], : size[1]], size=original_size, mode="bilinear").squeeze(1)


def stretched(
    final: Predictions | Candidates, video: int, queries: Tensor, size: tuple[int, int], original_size: tuple[int, int]
) -> Iterator[Tensor]:
    """The same at once, as published for SeqFormer, whose masks have twice the size of a map, and RF-DETR."""
    assert final.masks is not None, "these predictions have no masks"
    masks = final.masks.of(0, video, queries).float().flatten(0, -3)  # [M * T, h, w]
    height, width = (2 * -(-side // (2 * final.masks.stride)) for side in size)
    for some in masks[:, None, :height, :width].split(_count(original_size)):
        yield F.interpolate(some, size=original_size, mode="bilinear").squeeze(1)


def _count(*sizes: tuple[int, int]) -> int:
    """Masks that are resized together."""
    return max(1, PIXELS_AT_ONCE // max(height * width for height, width in sizes))


def boxes_of_masks(masks: Tensor) -> Tensor:
    """The boxes ``[K, 4]`` (x1, y1, x2, y2) that just hold ``masks [K, H, W]``; zeros around an empty one."""
    ends = []
    for columns in (masks.any(1), masks.any(2)):  # [K, W], [K, H]
        places = torch.arange(1, columns.shape[1] + 1, device=masks.device)
        last = (columns * places).amax(1)  # [K]
        first = columns.to(torch.uint8).argmax(1)
        ends.append((first, last))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1).float()
