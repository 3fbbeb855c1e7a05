"""``report.html`` of an evaluation, and the thresholds that follow from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import supervision as sv
from PIL import Image

from dqdet.config import Config
from dqdet.data.dataset import DetectionDataset
from dqdet.drawing.pictures import objects, picture, side_by_side
from dqdet.drawing.report import report_page
from dqdet.formats.results import Entries, IouType
from dqdet.metrics.errors import Thresholds, best_thresholds, confusion, errors_by_image, match
from dqdet.runs.folder import THRESHOLDS, write_file

REPORT = "report.html"
WORST = 20  # images that are shown
WIDTH = 480  # pixels of each picture


def write_report(
    folder: Path,
    config: Config,
    dataset: DetectionDataset,
    results: Mapping[int, Entries],
    metrics: Mapping[str, float],
    speed: str,
) -> None:
    """Write ``report.html`` and ``thresholds.json``, which has the threshold of each class by its name.

    Args:
        folder: to write to.
        config: of the model, with the data set's ids of its classes.
        dataset: that it was measured on.
        results: entries of the results file of each image, boxes or masks as of ``config.data.task``.
        metrics: that were measured.
        speed: of the evaluation, in words.
    """
    iou_type: IouType = "bbox" if config.data.task == "detection" else "segm"
    truth = dataset.ground_truth()
    matches = match(truth, results, iou_type)
    best = best_thresholds(matches)
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    limits = {category["id"]: limit for category, limit in zip(categories, best.thresholds, strict=True)}

    def above(entry: Mapping[str, Any]) -> bool:
        return entry["score"] > limits[entry["category_id"]]

    errors = errors_by_image(matches, best.thresholds)
    pictures = []
    for image_id in sorted(errors, key=lambda image_id: -errors[image_id])[:WORST]:
        if errors[image_id]:
            found = [entry for entry in results[image_id] if entry["category_id"] in limits and above(entry)]
            caption = f"image {image_id}: {errors[image_id]} errors"
            pictures.append((caption, _picture(dataset, dataset.image_ids.index(image_id), found)))
    title = f"{config.preset} on {config.data.root or config.data.kind}"
    confused = confusion(truth, results, above, iou_type)
    page = report_page(title, metrics, matches, best, confused, pictures, speed)
    write_file(folder / REPORT, page.encode())
    write_file(folder / THRESHOLDS, thresholds_text(matches.classes, best).encode())


def thresholds_text(classes: list[str], best: Thresholds) -> str:
    return json.dumps(dict(zip(classes, best.thresholds, strict=True)), indent=2, ensure_ascii=False) + "\n"


def _picture(dataset: DetectionDataset, index: int, found: Entries) -> Image.Image:
    sample = dataset.read(index)
    image = picture(sample["image"])
    truth = objects(sample["boxes"], sample["labels"], dataset.classes, sample.get("masks"))
    return side_by_side([image], {"truth": [truth], "prediction": [_detections(dataset, found)]}, WIDTH)


def _detections(dataset: DetectionDataset, found: Entries) -> sv.Detections:
    """Entries of a results file of one image."""
    if not found:
        return sv.Detections.empty()
    labels = np.array([dataset.category_ids.index(entry["category_id"]) for entry in found])
    if "segmentation" in found[0]:
        masks = pycocotools.mask.decode([entry["segmentation"] for entry in found])  # [H, W, K]
        masks = masks.transpose(2, 0, 1).astype(bool)
        boxes = sv.mask_to_xyxy(masks).astype(np.float32)
    else:
        masks = None
        boxes = np.array([entry["bbox"] for entry in found], dtype=np.float32)  # [K, 4] x, y, width, height
        boxes[:, 2:] += boxes[:, :2]
    scores = np.array([entry["score"] for entry in found])
    return sv.Detections(
        boxes, masks, class_id=labels, confidence=scores, data={"class_name": np.array(dataset.classes)[labels]}
    )
