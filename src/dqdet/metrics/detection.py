"""COCO box and mask metrics: average precision and recall as the official evaluation computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from dqdet.formats.results import IouType, StoredResults, coco_results
from dqdet.metrics.processes import from_first
from dqdet.types import ImageDetections

CATEGORIES_AT_ONCE = 10

# In the order of the official summary.
AVERAGE_PRECISION = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
AVERAGE_RECALL = ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")
SUMMARY = AVERAGE_PRECISION + AVERAGE_RECALL


def numbers(records: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Numbers from 1 for the ids of records, in the same order."""
    return {number: position for position, number in enumerate(sorted(record["id"] for record in records), 1)}


class DetectionMetric:
    """Collects detections image by image and compares them with the ground truth of a data set.

    Works over several processes: each updates with its own images, and ``compute`` gives every process the
    metrics of all of them. An image that several processes saw, as a distributed sampler makes happen to
    equalise their shares, counts once. Results are kept on disk.

    Args:
        ground_truth: a data set in COCO's JSON structure, at the size to which detections refer.
        category_ids: the category id of each label.
        iou_type: whether boxes (``bbox``) or masks (``segm``) are compared.
    """

    best = "AP"

    def __init__(self, ground_truth: dict[str, Any], category_ids: Sequence[int], iou_type: IouType = "bbox") -> None:
        # The evaluation keeps all ids as doubles, marks matches by annotation id, 0 meaning none, and writes into the
        # annotations: it gets copies, numbered from 1.
        self.image_numbers = numbers(ground_truth["images"])
        self.category_numbers = categories = numbers(ground_truth["categories"])
        self.category_ids = list(category_ids)
        annotations = [
            {
                **annotation,
                "id": number,
                "image_id": self.image_numbers[annotation["image_id"]],
                "category_id": categories[annotation["category_id"]],
            }
            for number, annotation in enumerate(ground_truth["annotations"], 1)
        ]
        self.ground_truth = COCO(
            {
                **ground_truth,
                "images": [{**image, "id": self.image_numbers[image["id"]]} for image in ground_truth["images"]],
                "categories": [{**c, "id": categories[c["id"]]} for c in ground_truth["categories"]],
                "annotations": annotations,
            }
        )
        self.iou_type: IouType = iou_type
        self.reset()

    def reset(self) -> None:
        self.results = StoredResults()

    def update(self, image_ids: Sequence[int], detections: Sequence[ImageDetections]) -> None:
        for image_id, found in zip(image_ids, detections, strict=True):
            self.add(image_id, coco_results(image_id, found, self.category_ids, self.iou_type))

    def add(self, image_id: int, entries: Sequence[dict[str, Any]]) -> None:
        """What an official results file has of an image; categories that the data set has not do not count."""
        image = self.image_numbers[image_id]
        self.results[image_id] = [
            {**entry, "image_id": image, "category_id": self.category_numbers.get(entry["category_id"], 0)}
            for entry in entries
        ]

    def compute(self) -> dict[str, float]:
        """The metrics over all images given to ``update``, in any process, since the last ``reset``.

        Returns:
            the twelve official numbers (``AP``, ``AP50``, ``AP75``, ``AP_small``, ..., ``AR1``, ``AR10``,
            ``AR100``, ``AR_small``, ...) and, for each class, ``AP/name``, ``AP50/name``, ``AP75/name`` and
            ``AR100/name``; -1 where there is no ground truth to measure, as in the official evaluation.
        """
        self.results.gather()
        return from_first(self._evaluate)

    def _evaluate(self) -> dict[str, float]:
        category_ids = sorted(self.ground_truth.getCatIds())
        if not category_ids:
            return dict.fromkeys(SUMMARY, -1.0)
        # Categories do not depend on each other. The evaluation needs several times the memory of the entries, so
        # it gets those of a few categories at a time.
        parts = []
        for start in range(0, len(category_ids), CATEGORIES_AT_ONCE):
            chosen = category_ids[start : start + CATEGORIES_AT_ONCE]
            entries = [entry for image in self.results.values() for entry in image if entry["category_id"] in chosen]
            evaluation = COCOeval_faster(self.ground_truth, self.ground_truth.loadRes(entries), iouType=self.iou_type)
            evaluation.params.imgIds = sorted(self.image_numbers[image_id] for image_id in self.results)
            evaluation.params.catIds = chosen
            evaluation.evaluate()
            evaluation.accumulate()
            parts.append(evaluation.eval)
        evaluation.params.catIds = category_ids
        evaluation.eval = {
            "precision": np.concatenate([part["precision"] for part in parts], axis=2),  # [T, R, K, areas, limits]
            "recall": np.concatenate([part["recall"] for part in parts], axis=1),  # [T, K, areas, limits]
        }
        evaluation.summarize()
        return summary(evaluation)


def summary(evaluation: COCOeval_faster) -> dict[str, float]:
    """The metrics of ``DetectionMetric.compute`` from an evaluation that has been summarised."""
    metrics = dict(zip(SUMMARY, evaluation.stats.tolist(), strict=True))

    # Axes: IoU thresholds, recall thresholds (precision only), categories, areas (first: all),
    # maximum numbers of detections (last: 100).
    precision = evaluation.eval["precision"][..., 0, -1]  # [T, R, K]
    recall = evaluation.eval["recall"][..., 0, -1]  # [T, K]
    for k, category in enumerate(evaluation.cocoGt.loadCats(evaluation.params.catIds)):
        name = category["name"]
        metrics[f"AP/{name}"] = _mean_of_defined(precision[:, :, k])
        metrics[f"AP50/{name}"] = _mean_of_defined(precision[0, :, k])
        metrics[f"AP75/{name}"] = _mean_of_defined(precision[5, :, k])
        metrics[f"AR100/{name}"] = _mean_of_defined(recall[:, k])
    return metrics


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
