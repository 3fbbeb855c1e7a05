"""Predictions of a model -> scored, labelled boxes in pixels, as the published evaluations select them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from dqdet.config import Classification
from dqdet.inference.pairs import Pairs, classes_of_queries, queries_and_classes
from dqdet.types import Candidates, ImageDetections, Predictions, rows


def detections(
    predictions: Predictions,
    sizes: Sequence[tuple[int, int]],
    classification: Classification,
    classes: int,
    limit: int = 100,
) -> list[ImageDetections]:
    """The detections of each image, from the last layer's predictions of the group used at inference.

    With ``focal`` and ``iou_aware`` these are of :func:`queries_and_classes`, with ``cross_entropy`` of
    :func:`classes_of_queries`.

    Args:
        predictions: of B images.
        sizes: height and width in pixels of each image, the boxes' unit.
        classification: ``config.loss.classification`` of the model.
        classes: C; some families have one logit more, for "no object".
        limit: the highest-scoring candidates of an image that are kept.
    """
    final = predictions.final
    select = classes_of_queries if classification == "cross_entropy" else queries_and_classes
    return located(candidates(final, select(final.logits[0], classes, limit)), sizes, limit)


def candidates(final: Predictions, pairs: Pairs) -> Candidates:
    """Pairs with the boxes that the last layer has for their queries."""
    assert final.boxes is not None, "these predictions have no boxes"
    return Candidates(pairs.scores, pairs.labels, rows(final.boxes[0], pairs.queries)[None], None)


def located(found: Candidates, sizes: Sequence[tuple[int, int]], limit: int) -> list[ImageDetections]:
    """The first ``limit`` of each image, in pixels of images of these heights and widths."""
    assert found.boxes is not None
    boxes = box_convert(found.boxes[0].float(), "cxcywh", "xyxy")  # [B, K, 4]
    pixels = [in_pixels(of_image, size) for of_image, size in zip(boxes, sizes, strict=True)]  # B of [K, 4]
    columns = zip(found.scores, found.labels, pixels, strict=True)
    return [ImageDetections(scores[:limit], labels[:limit], of_image[:limit]) for scores, labels, of_image in columns]


def in_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Relative boxes ``[K, 4]`` (x1, y1, x2, y2) in pixels of an image of a height and width."""
    height, width = size
    return torch.stack([boxes[:, 0::2] * width, boxes[:, 1::2] * height], -1).flatten(1)  # [K, 2, 2] -> [K, 4]
