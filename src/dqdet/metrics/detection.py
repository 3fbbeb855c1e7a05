"""COCO box and mask metrics: average precision and recall as the official evaluation computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hotcoco import StreamingEval

from dqdet.formats.results import Entries, IouType, coco_results
from dqdet.metrics.processes import from_first, to_first
from dqdet.types import ImageDetections

# In the order of the official summary.
AVERAGE_PRECISION = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
AVERAGE_RECALL = ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")
SUMMARY = AVERAGE_PRECISION + AVERAGE_RECALL

UNKNOWN = 0  # the number of all categories that a data set has not


def numbers(records: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Numbers from 1 for the ids of records, in the same order."""
    return {number: position for position, number in enumerate(sorted(record["id"] for record in records), 1)}


class DetectionMetric:
    """Compares detections with the ground truth of a data set, image by image as they come.

    Of an image its matches are kept, a few KiB. Works over several processes: each updates with its own images, and
    ``compute`` gives every process the metrics of all of them. An image that several processes saw, as a distributed
    sampler makes happen to equalise their shares, counts once.

    Args:
        ground_truth: a data set in COCO's JSON structure, at the size to which detections refer.
        category_ids: the category id of each label.
        iou_type: whether boxes (``bbox``) or masks (``segm``) are compared.
    """

    best = "AP"

    def __init__(self, ground_truth: dict[str, Any], category_ids: Sequence[int], iou_type: IouType = "bbox") -> None:
        # The evaluation marks matches by annotation id, 0 meaning none, and has no negative ids: all are numbered.
        self.image_numbers = numbers(ground_truth["images"])
        self.category_numbers = numbers(ground_truth["categories"])
        self.label_numbers = [self.category_numbers.get(category_id, UNKNOWN) for category_id in category_ids]
        names = {self.category_numbers[category["id"]]: category["name"] for category in ground_truth["categories"]}
        self.names = [names[number] for number in sorted(names)]
        self.images = {
            image["id"]: {
                "id": self.image_numbers[image["id"]],
                "height": int(image["height"]),
                "width": int(image["width"]),
            }
            for image in ground_truth["images"]
        }
        shape = ("bbox",) if iou_type == "bbox" else ("bbox", "segmentation")
        self.objects: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in self.images}
        for number, annotation in enumerate(ground_truth["annotations"], 1):
            self.objects[annotation["image_id"]].append(
                {
                    "id": number,
                    "image_id": self.image_numbers[annotation["image_id"]],
                    "category_id": self.category_numbers[annotation["category_id"]],
                    "area": annotation["area"],
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                    **{key: annotation[key] for key in shape},
                }
            )
        self.iou_type: IouType = iou_type
        self.reset()

    def reset(self) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(self.names, 1)]
        self.matches = StreamingEval(categories, self.iou_type)

    def update(self, image_ids: Sequence[int], detections: Sequence[ImageDetections]) -> None:
        for image_id, found in zip(image_ids, detections, strict=True):
            number = self.image_numbers[image_id]
            self._match(image_id, coco_results(number, found, self.label_numbers, self.iou_type))

    def add(self, image_id: int, entries: Entries) -> None:
        """What an official results file has of an image."""
        number = self.image_numbers[image_id]
        numbered = [
            {**e, "image_id": number, "category_id": self.category_numbers.get(e["category_id"], UNKNOWN)}
            for e in entries
        ]
        self._match(image_id, numbered)

    def _match(self, image_id: int, entries: Entries) -> None:
        """Entries with our numbers for ids; of categories that the data set has not they do not count."""
        known = [entry for entry in entries if entry["category_id"] != UNKNOWN]
        self.matches.update([self.images[image_id]], self.objects[image_id], known)

    def compute(self) -> dict[str, float]:
        """The metrics over all images given to ``update``, in any process, since the last ``reset``.

        Returns:
            the twelve official numbers (``AP``, ``AP50``, ``AP75``, ``AP_small``, ..., ``AR1``, ``AR10``,
            ``AR100``, ``AR_small``, ...) and, for each class, ``AP/name``, ``AP50/name``, ``AP75/name`` and
            ``AR100/name``; -1 where there is no ground truth to measure, as in the official evaluation.
        """
        shares = to_first(self.matches.to_bytes())
        return from_first(lambda: self._evaluate(shares))

    def _evaluate(self, shares: Sequence[bytes]) -> dict[str, float]:
        if not self.names:
            return dict.fromkeys(SUMMARY, -1.0)
        evaluation = StreamingEval.merge(map(StreamingEval.from_bytes, shares)).finalize()
        evaluation.accumulate()
        assert evaluation.eval is not None
        return summary(evaluation.eval["precision"], evaluation.eval["recall"], self.names)


def summary(precision: np.ndarray, recall: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The metrics of ``DetectionMetric.compute`` from what official evaluations accumulate; -1 is undefined.

    Args:
        precision: ``[T, R, K, areas, limits]``, for 10 IoU thresholds, 101 recalls, all categories, the areas all,
            small, medium and large, and at most 1, 10 and 100 detections.
        recall: ``[T, K, areas, limits]``, the greatest.
        names: of the K categories.
    """
    most = precision[..., -1]  # [T, R, K, areas]
    averages = [most[..., 0], most[0, ..., 0], most[5, ..., 0], *(most[..., area] for area in (1, 2, 3))]
    recalls = [recall[..., 0, 0], recall[..., 0, 1], recall[..., 0, 2], *(recall[..., area, 2] for area in (1, 2, 3))]
    metrics = dict(zip(SUMMARY, map(_mean_of_defined, averages + recalls), strict=True))
    for k, name in enumerate(names):
        metrics[f"AP/{name}"] = _mean_of_defined(most[:, :, k, 0])
        metrics[f"AP50/{name}"] = _mean_of_defined(most[0, :, k, 0])
        metrics[f"AP75/{name}"] = _mean_of_defined(most[5, :, k, 0])
        metrics[f"AR100/{name}"] = _mean_of_defined(recall[:, k, 0, 2])
    return metrics


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
