"""Instance-level average precision as the Cityscapes evaluation defines it.

It differs from COCO's in all parts: the precision-recall curve is integrated as it is (no interpolation), a match
needs an IoU above the threshold, void regions and groups excuse predictions that lie in them, and small objects are
no targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dqdet.formats.cityscapes import INSTANCE_BASE, LABELS, THINGS
from dqdet.metrics.processes import gathered
from dqdet.types import ImageDetections

MIN_PIXELS = 100  # smaller objects are no targets
OVERLAPS = np.arange(0.5, 1.0, 0.05)  # with the rounding of the official evaluation


@dataclass
class ClassMatches:
    """Objects and predictions of one class in one image: G objects or groups, P predictions."""

    target: np.ndarray  # [G] bool, neither a group nor too small
    pixels: np.ndarray  # [G]
    scores: np.ndarray  # [P]
    areas: np.ndarray  # [P]
    intersections: np.ndarray  # [G, P] pixels
    ignored: np.ndarray  # [P] pixels on void, groups and small objects


def match(truth: np.ndarray, detections: ImageDetections, label_ids: Iterable[int]) -> list[ClassMatches]:
    """Objects and predictions of one image, class by class.

    Args:
        truth: [H, W] of a ``gtFine_instanceIds`` file.
        detections: with masks at the size of ``truth``.
        label_ids: the Cityscapes label id of each label.
    """
    assert detections.masks is not None, "these detections have no masks"
    numbers, index = np.unique(truth, return_inverse=True)  # [N], H * W indices
    pixels = np.bincount(index.ravel(), minlength=len(numbers))  # [N]
    # Pixels of each prediction by instance number
    inside = (index.ravel()[mask.ravel()] for mask in detections.masks)
    covered = np.array([np.bincount(of_mask, minlength=len(numbers)) for of_mask in inside], dtype=np.int64)
    covered = covered.reshape(len(detections.masks), len(numbers)).T  # [N, K]
    labels, scores = detections.labels.cpu().numpy(), detections.scores.cpu().numpy()  # [K]
    # Objects of classes that are not evaluated (caravan) are not void, as they have instance numbers.
    void = np.isin(numbers, [label.id for label in LABELS.values() if label.ignore_in_eval])

    matches = []
    for label, label_id in enumerate(label_ids):
        group = numbers == label_id
        own = group | (numbers // INSTANCE_BASE == label_id)
        small = pixels < MIN_PIXELS
        found = (labels == label) & (covered.sum(0) > 0)
        # A group that is small is subtracted twice, as officially.
        ignored = covered[void].sum(0) + covered[group].sum(0) + covered[own & small].sum(0)
        matches.append(
            ClassMatches(
                target=~(group | small)[own],
                pixels=pixels[own],
                scores=scores[found],
                areas=covered.sum(0)[found],
                intersections=covered[np.ix_(own, found)],
                ignored=ignored[found],
            )
        )
    return matches


def _hits_and_errors(image: ClassMatches, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """The scores of true and of false positives.

    Above an overlap of one half a prediction meets one object at most. The best one of an object is right, its
    other ones are wrong. Predictions that meet a group or a small object do not count, nor those of which the
    ignored part is larger than ``overlap``.
    """
    unions = image.pixels[:, None] + image.areas - image.intersections  # [G, P]
    met = image.intersections / unions > overlap  # [G, P]
    meets_target = met[image.target].any(0)  # [P]
    hit = np.zeros(len(image.scores), dtype=bool)
    for predictions in met[image.target]:
        if predictions.any():
            hit[np.where(predictions, image.scores, -np.inf).argmax()] = True
    stray = ~met.any(0) & (image.ignored / image.areas <= overlap)
    return image.scores[hit], image.scores[(meets_target & ~hit) | stray]


def average_precision(images: Sequence[ClassMatches], overlap: float) -> float:
    """Of one class at one overlap; -1 if there is no object of it."""
    targets = sum(int(image.target.sum()) for image in images)
    if not targets:
        return -1.0
    outcomes = [_hits_and_errors(image, overlap) for image in images]
    hits = np.sort(np.concatenate([scores for scores, _ in outcomes]))
    errors = np.sort(np.concatenate([scores for _, scores in outcomes]))
    thresholds = np.unique(np.concatenate([hits, errors]))[::-1]  # falling, so that recall rises
    if not len(thresholds):
        return 0.0
    true_positives = len(hits) - np.searchsorted(hits, thresholds)
    false_positives = len(errors) - np.searchsorted(errors, thresholds)
    precision = true_positives / (true_positives + false_positives)
    recall = true_positives / targets
    # The curve starts at recall 0 with precision 1.
    return float(np.trapezoid(np.append(1.0, precision), np.append(0.0, recall)))


class CityscapesInstanceMetric:
    """Instance AP and AP50 of Cityscapes; keeps pixel counts of objects and predictions, no masks.

    Works over several processes: every one gets the metrics of all images, and an image that several saw counts
    once.

    Args:
        label_ids: the Cityscapes label id of each label.
    """

    def __init__(self, label_ids: Sequence[int] = tuple(THINGS)) -> None:
        self.label_ids = list(label_ids)
        self.reset()

    def reset(self) -> None:
        self.results: dict[int, list[ClassMatches]] = {}  # image id -> matches of each label

    def update(
        self, image_ids: Sequence[int], truths: Sequence[np.ndarray], detections: Sequence[ImageDetections]
    ) -> None:
        """Compare detections with ``gtFine_instanceIds`` maps [H, W] of the same size."""
        for image_id, truth, found in zip(image_ids, truths, detections, strict=True):
            self.results[image_id] = match(truth, found, self.label_ids)

    def compute(self) -> dict[str, float]:
        """The metrics over all images given to ``update``, in any process, since the last ``reset``.

        Returns:
            ``AP`` (mean over the overlaps 0.5, 0.55, ..., 0.95), ``AP50``, and for each class ``AP/name`` and
            ``AP50/name``; -1 where there is no ground truth to measure.
        """
        images = list(gathered(self.results).values())
        table = np.array(  # [classes, overlaps]
            [
                [average_precision([image[label] for image in images], overlap) for overlap in OVERLAPS]
                for label in range(len(self.label_ids))
            ]
        )
        table = table.reshape(-1, len(OVERLAPS))  # also without classes
        defined = table[table[:, 0] >= 0]
        metrics = {
            "AP": float(defined.mean()) if len(defined) else -1.0,
            "AP50": float(defined[:, 0].mean()) if len(defined) else -1.0,
        }
        for label_id, row in zip(self.label_ids, table, strict=True):
            metrics[f"AP/{LABELS[label_id].name}"] = float(row.mean())
            metrics[f"AP50/{LABELS[label_id].name}"] = float(row[0])
        return metrics
