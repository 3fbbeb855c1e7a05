"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), as the official evaluation computes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqdet.formats.panoptic import VOID
from dqdet.metrics.processes import gathered
from dqdet.types import PanopticMap


@dataclass
class Counts:
    """What panoptic quality is made of, for one category."""

    iou: float = 0.0  # sum over the true positives
    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0


def overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids in each of two maps ``[H, W]``, sorted, and the pixels that each pair of them shares ``[G, P]``."""
    pairs = first.astype(np.int64).ravel() << 32 | second.astype(np.int64).ravel()
    # Neighbours are mostly alike: runs of equal pairs are far fewer than pixels, and only they are sorted.
    starts = np.flatnonzero(np.diff(pairs, prepend=pairs[0] - 1))
    lengths = np.diff(starts, append=len(pairs))
    ids, numbers = zip(*(np.unique(side, return_inverse=True) for side in divmod(pairs[starts], 2**32)), strict=True)
    shape = len(ids[0]), len(ids[1])
    shared = np.bincount(numbers[0] * shape[1] + numbers[1], lengths, minlength=shape[0] * shape[1])
    return *ids, shared.astype(np.int64).reshape(shape)


def count_segments(truth: PanopticMap, prediction: PanopticMap) -> dict[int, Counts]:
    """The counts of one image, by category id.

    A predicted and a true segment of the same category match when their IoU exceeds 0.5, so that each has at most
    one match; void pixels of the ground truth count for no union. Crowd segments take part in no match. A
    predicted segment of which more than half lies on void and on the crowd of its category is ignored.
    """
    true_ids, ids, intersections = overlaps(truth.ids, prediction.ids)  # [G], [P], [G, P]
    true_areas, areas = intersections.sum(1), intersections.sum(0)  # [G], [P]
    on_void = intersections[true_ids == VOID].sum(0)  # [P]

    true_segments = {segment["id"]: segment for segment in truth.segments}
    categories = {segment["id"]: segment["category_id"] for segment in prediction.segments}
    # Crowds of one category are not told apart officially either: the last one in the list stands for them.
    crowds = {segment["category_id"]: segment["id"] for segment in truth.segments if segment.get("iscrowd")}

    counts: defaultdict[int, Counts] = defaultdict(Counts)
    matched = np.zeros(len(ids), dtype=bool)
    unions = true_areas[:, None] + areas - intersections - on_void  # [G, P]
    for g, true_id in enumerate(true_ids.tolist()):
        if true_id == VOID or true_segments[true_id].get("iscrowd"):
            continue
        category = true_segments[true_id]["category_id"]
        for p in np.flatnonzero(intersections[g] / unions[g] > 0.5):
            if categories.get(int(ids[p])) == category:
                counts[category].true_positives += 1
                counts[category].iou += float(intersections[g, p] / unions[g, p])
                matched[p] = True
                break
        else:
            counts[category].false_negatives += 1
    for p in np.flatnonzero(~matched & (ids != VOID)):
        category = categories[int(ids[p])]
        on_crowd = intersections[true_ids == crowds.get(category, -1), p].sum()
        if (on_void[p] + on_crowd) / areas[p] <= 0.5:
            counts[category].false_positives += 1
    return dict(counts)


class PanopticMetric:
    """Counts matches image by image; keeps the counts only.

    Works over several processes like ``DetectionMetric``: each updates with its own images, every process gets the
    metrics of all, and an image that several processes saw counts once.

    Args:
        categories: COCO's list of categories, with ``id``, ``name`` and ``isthing``.
    """

    def __init__(self, categories: Sequence[dict[str, Any]]) -> None:
        self.categories = list(categories)
        self.reset()

    def reset(self) -> None:
        self.results: dict[int, dict[int, Counts]] = {}  # image id -> category id -> counts

    def update(
        self, image_ids: Sequence[int], truths: Sequence[PanopticMap], predictions: Sequence[PanopticMap]
    ) -> None:
        """Compare the prediction of each image with its ground truth; maps and lists of segments must agree."""
        for image_id, truth, prediction in zip(image_ids, truths, predictions, strict=True):
            self.results[image_id] = count_segments(truth, prediction)

    def compute(self) -> dict[str, float]:
        """The metrics over all images given to ``update``, in any process, since the last ``reset``.

        Returns:
            ``PQ``, ``SQ`` and ``RQ`` in 0..1, averaged over the categories that occur on either side, the same of
            things and of stuff only (``PQ_things``, ``PQ_stuff``, ...; -1 if none of them occurs), and for each
            category ``PQ/name``, ``SQ/name`` and ``RQ/name`` (0 if it does not occur, as officially).
        """
        total: defaultdict[int, Counts] = defaultdict(Counts)
        for image in gathered(self.results).values():
            for category_id, counts in image.items():
                total[category_id].iou += counts.iou
                total[category_id].true_positives += counts.true_positives
                total[category_id].false_positives += counts.false_positives
                total[category_id].false_negatives += counts.false_negatives

        qualities = {category["id"]: _qualities(total[category["id"]]) for category in self.categories}
        things = {category["id"] for category in self.categories if category["isthing"]}
        metrics: dict[str, float] = {}
        for suffix, chosen in (("", set(qualities)), ("_things", things), ("_stuff", set(qualities) - things)):
            occurring = [qualities[category_id] for category_id in chosen if total[category_id] != Counts()]
            means = np.mean(occurring, axis=0).tolist() if occurring else [-1.0] * 3
            metrics |= {f"{name}{suffix}": mean for name, mean in zip(("PQ", "SQ", "RQ"), means, strict=True)}
        for category in self.categories:
            values = zip(("PQ", "SQ", "RQ"), qualities[category["id"]], strict=True)
            metrics |= {f"{name}/{category['name']}": value for name, value in values}
        return metrics


def _qualities(counts: Counts) -> tuple[float, float, float]:
    """Panoptic, segmentation and recognition quality of a category."""
    segmentation = counts.iou / max(counts.true_positives, 1)
    errors = counts.false_positives + counts.false_negatives
    recognition = counts.true_positives / max(counts.true_positives + errors / 2, 0.5)
    return segmentation * recognition, segmentation, recognition
