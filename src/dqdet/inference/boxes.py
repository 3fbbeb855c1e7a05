"""Predictions of a model -> scored, labelled boxes in pixels, as the published evaluations select them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from dqdet.config import Classification
from dqdet.types import ImageDetections, Predictions


def detections(
    predictions: Predictions,
    sizes: Sequence[tuple[int, int]],
    classification: Classification,
    classes: int,
    limit: int = 100,
) -> list[ImageDetections]:
    """The detections of each image, from the last layer's predictions of the group used at inference.

    With ``focal`` and ``iou_aware`` every pair of a query and a class is a candidate with its own sigmoid score, so
    that a query may be reported under several classes (Deformable-DETR). With ``cross_entropy`` a query is reported
    once, under its best class; the last logit, "no object", takes part in the softmax only (DETR). "No object" is
    never reported.

    Args:
        predictions: of B images.
        sizes: height and width in pixels of each image, the boxes' unit.
        classification: ``config.loss.classification`` of the model.
        classes: C; some families have one logit more, for "no object".
        limit: the highest-scoring candidates of an image that are kept.
    """
    final = predictions.final
    assert final.boxes is not None, "these predictions have no boxes"
    logits = final.logits[0].float()  # [B, Q, C or C + 1]
    if classification != "cross_entropy":
        scores = logits[..., :classes].sigmoid()  # [B, Q, C]
        labels = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
    else:
        scores, labels = logits.softmax(-1)[..., :classes].max(-1, keepdim=True)  # [B, Q, 1]
    candidates = scores.shape[-1]  # a query

    scores = scores.flatten(1)  # [B, Q * candidates]
    scores, kept = scores.topk(min(limit, scores.shape[1]))  # [B, K]
    labels = labels.flatten(1).gather(1, kept)
    queries = (kept // candidates).unsqueeze(-1).expand(-1, -1, 4)  # [B, K, 4]
    boxes = box_convert(final.boxes[0].float(), "cxcywh", "xyxy").gather(1, queries)
    pixels = [in_pixels(of_image, size) for of_image, size in zip(boxes, sizes, strict=True)]  # B of [K, 4]
    return [ImageDetections(*image) for image in zip(scores, labels, pixels, strict=True)]


def in_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Relative boxes ``[K, 4]`` (x1, y1, x2, y2) in pixels of an image of a height and width."""
    height, width = size
    return torch.stack([boxes[:, 0::2] * width, boxes[:, 1::2] * height], -1).flatten(1)  # [K, 2, 2] -> [K, 4]
