"""Metrics must be those of the official evaluation, for any results, in one process or several."""

import copy
import json

import numpy as np
import pycocotools.mask
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dqdet.metrics import detection
from dqdet.metrics.detection import SUMMARY, DetectionMetric, coco_results
from dqdet.types import ImageDetections

NOTHING = ImageDetections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


def as_detections(results: list[dict], category_ids: list[int]) -> ImageDetections:
    boxes = torch.tensor([entry["bbox"] for entry in results], dtype=torch.float64).reshape(-1, 4)  # x, y, w, h
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([category_ids.index(entry["category_id"]) for entry in results], dtype=torch.int64)
    return ImageDetections(torch.tensor([entry["score"] for entry in results], dtype=torch.float64), labels, boxes)


def by_image(ground_truth: dict, results: list[dict]) -> dict[int, list[dict]]:
    grouped: dict[int, list[dict]] = {image["id"]: [] for image in ground_truth["images"]}
    for entry in results:
        grouped[entry["image_id"]].append(entry)
    return grouped


def metric_of(ground_truth: dict, results: list[dict]) -> DetectionMetric:
    category_ids = [category["id"] for category in ground_truth["categories"]]
    metric = DetectionMetric(ground_truth, category_ids)
    for image_id, entries in by_image(ground_truth, results).items():
        metric.update([image_id], [as_detections(entries, category_ids)])
    return metric


@pytest.fixture(scope="module")
def fixture(shared):
    folder = shared / "metrics" / "coco_detection"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "results", "expected")}


def test_equals_official_numbers(fixture, capfd):
    metrics = metric_of(fixture["gt"], fixture["results"]).compute()

    assert [metrics[name] for name in SUMMARY] == pytest.approx(fixture["expected"]["stats_list"], abs=1e-9)
    categories = fixture["expected"]["per_category"].values()
    assert len(metrics) == 12 + 4 * len(categories)
    for category in categories:
        for number in ("AP", "AP50", "AP75", "AR100"):
            expected = -1 if category[number] is None else category[number]
            assert metrics[f"{number}/{category['name']}"] == pytest.approx(expected, abs=1e-9)
    assert capfd.readouterr().out == ""


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Category ids with gaps, crowds, an annotation with id 0, an image with more than 100 detections."""
    random = np.random.default_rng(seed)

    def boxes(count: int) -> list[list[float]]:
        return np.concatenate([random.uniform(0, 200, (count, 2)), random.uniform(4, 150, (count, 2))], 1).tolist()

    def near(box: list[float]) -> list[float]:
        return (np.array(box) + random.normal(0, 6, 4)).clip(1).tolist()

    def score() -> float:
        return round(random.random(), 2)  # two decimals: some are equal

    images = [{"id": 10 * i, "width": 350, "height": 350, "file_name": f"{i}.jpg"} for i in range(6)]
    annotations, results = [], []
    for image in images[1:]:  # the first one has no objects
        for box in boxes(8):
            where = {"image_id": image["id"], "category_id": int(random.choice([2, 5]))}
            shape = {"bbox": box, "area": box[2] * box[3] * 0.7, "iscrowd": int(random.random() < 0.1)}
            annotations.append({"id": len(annotations), **where, **shape})
            results.append({**where, "bbox": near(box), "score": score()})
    for image, count in zip(images, [3, 0, 5, 20, 260, 1], strict=True):
        for box in boxes(count):
            where = {"image_id": image["id"], "category_id": int(random.choice([2, 5, 9]))}
            results.append({**where, "bbox": box, "score": score()})
    categories = [{"id": number, "name": f"class {number}"} for number in (9, 2, 5)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def official_arrays(ground_truth: dict, results: list[dict], iou_type: str) -> dict[str, np.ndarray]:
    """All precisions and recalls of pycocotools."""
    official = COCO()
    official.dataset = copy.deepcopy(ground_truth)
    official.createIndex()
    evaluation = COCOeval(official, official.loadRes(copy.deepcopy(results)), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    return {name: evaluation.eval[name] for name in ("precision", "recall")}


def odd_objects(random: np.random.Generator, image: dict, classes: int) -> list[dict]:
    """Polygons in and out of the image, and both kinds of run lengths; areas at the limits of sizes; crowds."""
    height, width = image["height"], image["width"]
    objects = []
    for number in range(random.integers(12)):
        if random.random() < 0.5:
            centre, radius = random.uniform(-20, [width + 20, height + 20]), random.uniform(0.2, 60)
            points = centre + radius * random.normal(0, 1, (random.integers(3, 9), 2))
            segmentation = [(points * 2).round() / 2, points][number % 2].reshape(1, -1).tolist()
            mask = pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))
        else:
            pixels = random.random((height, width)) < random.random()
            mask = pycocotools.mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
            flat = pixels.T.ravel()
            changes = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
            counts = [0] * bool(flat[0]) + np.diff(changes).tolist()
            segmentation = {"size": [height, width], "counts": [counts, mask["counts"].decode()][number % 2]}
        area = random.choice([pycocotools.mask.area(mask), 0, 32**2, 32**2 - 1e-7, 96**2, 1e5, 1e10])
        objects.append(
            {
                "image_id": image["id"],
                "category_id": int(random.integers(1, classes + 1)),
                "segmentation": segmentation,
                "mask": pycocotools.mask.decode(mask),
                "bbox": pycocotools.mask.toBbox(mask).tolist(),
                "area": float(area),
                "iscrowd": int(random.random() < 0.2),
            }
        )
    return objects


def near_objects(random: np.random.Generator, known: dict, iou_type: str, classes: int) -> list[dict]:
    """Entries of results near an object, some of another class, with scores of which many are equal."""
    entries = []
    for _ in range(random.integers(4)):
        category = known["category_id"] if random.random() < 0.8 else int(random.integers(1, classes + 1))
        entry = {"image_id": known["image_id"], "category_id": category, "score": round(random.random(), 1)}
        if iou_type == "bbox":
            box = np.array(known["bbox"]) + random.normal(0, random.choice([0, 0.5, 3]), 4)
            entry["bbox"] = box.clip([-99, -99, 0, 0]).tolist()
        else:
            moved = np.roll(known["mask"], random.integers(-2, 3, 2), (0, 1))
            mask = pycocotools.mask.encode(np.asfortranarray(moved))
            entry["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}
        entries.append(entry)
    return entries


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_every_precision_is_that_of_pycocotools(iou_type, monkeypatch):
    """Of 40 odd data sets, whose images come in any order; in all classes, sizes and limits, not only the averages."""
    compared = []
    summary = detection.summary

    def recorded(precision, recall, names):
        compared.append({"precision": precision, "recall": recall})
        return summary(precision, recall, names)

    monkeypatch.setattr(detection, "summary", recorded)
    defined = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        classes = int(random.integers(1, 4))
        images = [
            {"id": n, "height": h, "width": w} for n, (h, w) in enumerate(random.integers(1, 140, (5, 2)).tolist())
        ]
        objects = [known for image in images for known in odd_objects(random, image, classes)]
        results = [entry for known in objects for entry in near_objects(random, known, iou_type, classes)]
        if not results:
            continue
        ground_truth = {
            "images": images,
            "annotations": [
                {"id": n, **{key: known[key] for key in known if key != "mask"}} for n, known in enumerate(objects, 1)
            ],
            "categories": [{"id": number, "name": str(number)} for number in range(1, classes + 1)],
        }
        metric = DetectionMetric(ground_truth, range(1, classes + 1), iou_type)
        for image_id in random.permutation(5).tolist():
            metric.add(image_id, [entry for entry in results if entry["image_id"] == image_id])
        metric.compute()
        official = official_arrays(ground_truth, results, iou_type)
        for name, values in compared.pop().items():
            np.testing.assert_allclose(values, official[name], rtol=0, atol=1e-9)
        defined += (official["precision"] > 0).sum()
    assert defined > 10_000


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_on_random_results(seed):
    ground_truth, results = random_case(seed)
    official = COCO()
    # The official evaluation takes an object with annotation id 0 for unmatched: number from 1 for it.
    numbered = [{**annotation, "id": annotation["id"] + 1} for annotation in ground_truth["annotations"]]
    official.dataset = {**ground_truth, "annotations": numbered}
    official.createIndex()
    # Ties are broken by the order of the entries: give both the same one.
    ordered = [entry for image in by_image(ground_truth, results).values() for entry in image]
    evaluation = COCOeval(official, official.loadRes([dict(entry) for entry in ordered]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()

    metrics = metric_of(ground_truth, results).compute()
    assert [metrics[name] for name in SUMMARY] == pytest.approx(evaluation.stats.tolist(), abs=1e-9)
    assert metrics["AP/class 9"] == -1


def test_ground_truth_is_left_as_it_was():
    ground_truth, results = random_case(0)
    before = json.dumps(ground_truth)
    metric_of(ground_truth, results).compute()
    assert json.dumps(ground_truth) == before


def test_no_detections_score_zero():
    ground_truth, _ = random_case(0)
    metrics = metric_of(ground_truth, []).compute()
    assert {metrics[name] for name in SUMMARY} == {0.0}


@pytest.mark.parametrize("count", [0, 3])
def test_without_annotations_nothing_is_defined(count):
    ground_truth, results = random_case(0)
    metrics = metric_of({**ground_truth, "annotations": []}, results[:count]).compute()
    assert set(metrics.values()) == {-1.0}


def test_only_images_that_were_seen_count():
    ground_truth, results = random_case(1)
    seen = [20, 40]
    some = {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in seen],
        "annotations": [entry for entry in ground_truth["annotations"] if entry["image_id"] in seen],
    }
    results = [entry for entry in results if entry["image_id"] in seen]
    expected = metric_of(some, results).compute()

    category_ids = [category["id"] for category in ground_truth["categories"]]
    metric = DetectionMetric(ground_truth, category_ids)
    for image_id, entries in by_image(some, results).items():
        metric.update([image_id], [as_detections(entries, category_ids)])
    assert metric.compute() == expected

    metric.reset()
    metric.update([0], [NOTHING])
    assert metric.compute()["AP"] == -1  # image 0 has no objects


def evaluate_share(rank: int, rendezvous: str, queue) -> None:
    """One of two processes: both have image 20, as with a sampler that pads the last batch."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    ground_truth, results = random_case(2)
    category_ids = [category["id"] for category in ground_truth["categories"]]
    metric = DetectionMetric(ground_truth, category_ids)
    for image_id, entries in by_image(ground_truth, results).items():
        if image_id in ([0, 10, 20], [20, 30, 40, 50])[rank]:
            metric.update([image_id], [as_detections(entries, category_ids)])
    queue.put(metric.compute())
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_the_metrics_of_one(tmp_path):
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(evaluate_share, args=(str(tmp_path / "rendezvous"), queue), nprocs=2)
    expected = metric_of(*random_case(2)).compute()
    assert [queue.get(), queue.get()] == [expected, expected]


def test_results_entries():
    found = ImageDetections(
        torch.tensor([0.75, 0.5]), torch.tensor([1, 0]), torch.tensor([[1.0, 2, 4, 8], [-3, 0, 5, 5]])
    )
    assert coco_results(7, found, [3, 90]) == [
        {"image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 6], "score": 0.75},
        {"image_id": 7, "category_id": 3, "bbox": [-3, 0, 8, 5], "score": 0.5},
    ]
