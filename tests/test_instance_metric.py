"""Mask metrics must be those of the official evaluation, whatever the masks look like."""

import json

import numpy as np
import pycocotools.mask
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dqdet.formats import rle
from dqdet.metrics.detection import SUMMARY, DetectionMetric, coco_results
from dqdet.types import ImageDetections


def as_detections(image: dict, results: list[dict], category_ids: list[int]) -> ImageDetections:
    masks = np.zeros((len(results), image["height"], image["width"]), dtype=bool)
    for mask, entry in zip(masks, results, strict=True):
        mask[:] = pycocotools.mask.decode(entry["segmentation"])
    return ImageDetections(
        scores=torch.tensor([entry["score"] for entry in results], dtype=torch.float64),
        labels=torch.tensor([category_ids.index(entry["category_id"]) for entry in results], dtype=torch.int64),
        boxes=torch.zeros(len(results), 4),  # boxes of mask models mean nothing
        masks=rle.compressed(torch.tensor(masks)),
    )


def metric_of(ground_truth: dict, results: list[dict]) -> DetectionMetric:
    category_ids = [category["id"] for category in ground_truth["categories"]]
    metric = DetectionMetric(ground_truth, category_ids, "segm")
    for image in ground_truth["images"]:
        entries = [entry for entry in results if entry["image_id"] == image["id"]]
        metric.update([image["id"]], [as_detections(image, entries, category_ids)])
    return metric


def official(ground_truth: dict, results: list[dict]) -> list[float]:
    dataset = COCO()
    dataset.dataset = ground_truth
    dataset.createIndex()
    evaluation = COCOeval(dataset, dataset.loadRes([dict(entry) for entry in results]), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats.tolist()


def test_equals_official_numbers(shared):
    folder = shared / "metrics" / "coco_instance"
    ground_truth, results, expected = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "results", "expected")
    )
    metrics = metric_of(ground_truth, results).compute()

    assert [metrics[name] for name in SUMMARY] == pytest.approx(expected["stats_list"], abs=1e-9)
    assert len(metrics) == 12 + 4 * len(expected["per_category"])
    for category in expected["per_category"].values():
        for number in ("AP", "AP50", "AP75", "AR100"):
            value = -1 if category[number] is None else category[number]
            assert metrics[f"{number}/{category['name']}"] == pytest.approx(value, abs=1e-9)


def discs(random: np.random.Generator, count: int, height: int, width: int) -> torch.Tensor:
    """[count, height, width]; some reach over the border, some are empty."""
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = random.uniform(-10, [[height + 10], [width + 10]], (2, count))
    radius = random.uniform(-3, 45, count).clip(0)
    squared = (y - centre_y[:, None, None]) ** 2 + (x - centre_x[:, None, None]) ** 2
    return torch.tensor(squared < radius[:, None, None] ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_on_random_masks(seed):
    """Images of different sizes, crowds, equal scores, empty masks, more than 100 masks, and the results file."""
    random = np.random.default_rng(seed)
    category_ids = [3, 8]
    images = [{"id": i, "height": 90 + 10 * i, "width": 120 - 5 * i} for i in range(1, 6)]
    annotations: list[dict] = []
    metric_input, results = [], []
    for image, count in zip(images, (6, 0, 30, 130, 9), strict=True):
        objects = discs(random, 7, image["height"], image["width"])
        for mask in rle.encode(objects):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(random.choice(category_ids)),
                    "segmentation": mask,
                    "area": float(pycocotools.mask.area(mask)),
                    "bbox": pycocotools.mask.toBbox(mask).tolist(),
                    "iscrowd": int(random.random() < 0.15),
                }
            )
        masks = discs(random, count, image["height"], image["width"])
        masks[: min(count, 7)] |= objects[: min(count, 7)]
        scores = torch.tensor(random.uniform(0, 1, count).round(2)).sort(descending=True).values
        labels = torch.tensor(random.integers(0, 2, count))
        found = ImageDetections(scores, labels, torch.zeros(count, 4), rle.compressed(masks))
        metric_input.append((image["id"], found))
        results += coco_results(image["id"], found, category_ids, "segm")
    categories = [{"id": number, "name": f"class {number}"} for number in category_ids]
    ground_truth = {"images": images, "annotations": annotations, "categories": categories}

    metric = DetectionMetric(ground_truth, category_ids, "segm")
    for image_id, found in metric_input:
        metric.update([image_id], [found])
    metrics = metric.compute()
    results = json.loads(json.dumps(results))  # as in a file
    assert [metrics[name] for name in SUMMARY] == pytest.approx(official(ground_truth, results), abs=1e-9)
    assert metrics["AP"] > 0


def test_no_masks_score_zero():
    mask = rle.encode(torch.ones(1, 8, 9))[0]
    shape = {"segmentation": mask, "area": 72, "bbox": [0, 0, 9, 8], "iscrowd": 0}
    ground_truth = {
        "images": [{"id": 1, "height": 8, "width": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 4, **shape}],
        "categories": [{"id": 4, "name": "disc"}],
    }
    assert metric_of(ground_truth, []).compute()["AP"] == 0


@pytest.mark.parametrize("count", [0, 1, 4])
def test_encoding_is_undone_by_pycocotools(count):
    masks = torch.rand(count, 7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    encoded = rle.encode(masks)
    assert len(encoded) == count
    for mask, entry in zip(masks, encoded, strict=True):
        assert entry["size"] == [7, 5]
        np.testing.assert_array_equal(pycocotools.mask.decode(entry), mask.numpy())
