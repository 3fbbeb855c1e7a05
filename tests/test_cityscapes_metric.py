"""Instance AP and mean IoU must be those of the Cityscapes evaluation."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from dqdet.formats.cityscapes import CLASSES, THINGS
from dqdet.formats.rle import compressed
from dqdet.metrics.cityscapes import CityscapesInstanceMetric
from dqdet.metrics.semantic import SemanticMetric
from dqdet.types import ImageDetections


def read(file: Path) -> np.ndarray:
    with PIL.Image.open(file) as image:
        return np.array(image)


def as_detections(file: Path) -> ImageDetections:
    """Official results of an image: lines of mask file, label id and score; labels that are no class have -1."""
    rows = [line.split() for line in file.read_text().splitlines()]
    labels = list(THINGS)
    return ImageDetections(
        scores=torch.tensor([float(score) for _, _, score in rows], dtype=torch.float64),
        labels=torch.tensor([labels.index(int(number)) if int(number) in labels else -1 for _, number, _ in rows]),
        boxes=torch.zeros(len(rows), 4),
        masks=compressed(torch.tensor(np.array([read(file.parent / mask) != 0 for mask, _, _ in rows]))),
    )


def test_instances_equal_official_numbers(shared):
    folder = shared / "metrics" / "cityscapes"
    expected = json.loads((folder / "expected.json").read_text())["instance"]
    metric = CityscapesInstanceMetric()
    files = sorted((folder / "gtFine" / "val").glob("*/*_gtFine_instanceIds.png"))
    assert len(files) == 5
    for number, file in enumerate(files):
        result = folder / "pred_instance" / file.parent.name / file.name.replace("_gtFine_instanceIds.png", "_pred.txt")
        metric.update([number], [read(file)], [as_detections(result)])
    metrics = metric.compute()

    assert metrics["AP"] == pytest.approx(expected["AP"], abs=1e-9)
    assert metrics["AP50"] == pytest.approx(expected["AP50"], abs=1e-9)
    for name, values in expected["classes"].items():
        for number in ("AP", "AP50"):
            value = -1 if values[number] is None else values[number]
            assert metrics[f"{number}/{name}"] == pytest.approx(value, abs=1e-9)


def test_semantic_equals_official_numbers(shared):
    folder = shared / "metrics" / "cityscapes"
    expected = json.loads((folder / "expected.json").read_text())["semantic"]
    labels = np.full(256, 255)  # by label id
    labels[[label.id for label in CLASSES]] = np.arange(19)
    metric = SemanticMetric([label.name for label in CLASSES])
    for number, file in enumerate(sorted((folder / "gtFine" / "val").glob("*/*_gtFine_labelIds.png"))):
        result = folder / "pred_semantic" / file.parent.name / file.name.replace("_gtFine_", "_pred_")
        metric.update([number], [labels[read(file)]], [labels[read(result)]])
    metrics = metric.compute()

    assert metrics["mIoU"] == pytest.approx(expected["mean_iou_classes"], abs=1e-9)
    for name, value in expected["iou_classes"].items():
        assert metrics[f"IoU/{name}"] == pytest.approx(value, abs=1e-9)


CAR, ROAD, OUT_OF_ROI = 26, 7, 3


def detections(score_and_columns: list[tuple[float, slice]]) -> ImageDetections:
    """Cars that cover columns of a 20 x 40 image."""
    masks = torch.zeros(len(score_and_columns), 20, 40, dtype=torch.bool)
    for mask, (_, columns) in zip(masks, score_and_columns, strict=True):
        mask[:, columns] = True
    scores = torch.tensor([score for score, _ in score_and_columns])
    labels = torch.full((len(masks),), list(THINGS).index(CAR))
    return ImageDetections(scores, labels, torch.zeros(len(masks), 4), compressed(masks))


def ap50(truth: np.ndarray, found: ImageDetections) -> float:
    metric = CityscapesInstanceMetric()
    metric.update([0], [truth], [found])
    return metric.compute()["AP50"]


def road_with(*parts: tuple[slice, int]) -> np.ndarray:
    truth = np.full((20, 40), ROAD)
    for columns, number in parts:
        truth[:, columns] = number
    return truth


def test_what_excuses_a_prediction():
    car = (slice(0, 10), CAR * 1000)
    right, wrong = (0.5, slice(0, 10)), (0.9, slice(20, 30))
    assert ap50(road_with(car), detections([right])) == 1
    # The curve goes from precision 0 at recall 0 to precision 1/2 at recall 1.
    assert ap50(road_with(car), detections([right, wrong])) == 0.25
    # With equal scores there is one point, precision 1/2 at recall 1; the curve begins at precision 1.
    assert ap50(road_with(car), detections([right, (0.5, slice(20, 30))])) == 0.75
    for excuse in (OUT_OF_ROI, CAR):
        assert ap50(road_with(car, (slice(20, 30), excuse)), detections([right, wrong])) == 1
    small = road_with(car)
    small[:9, 20:30] = CAR * 1000 + 1  # 90 pixels; a prediction that meets it is no error
    found = detections([right, wrong])
    assert found.masks is not None
    masks = torch.from_numpy(found.masks.decoded())
    masks[1, 9:] = False
    found.masks = compressed(masks)
    assert ap50(small, found) == 1
    # The second best of an object is an error.
    assert ap50(road_with(car), detections([right, (0.4, slice(0, 9))])) == 1
    assert ap50(road_with(car), detections([right, (0.6, slice(0, 9))])) == 1
    two = road_with(car, (slice(20, 30), CAR * 1000 + 7))
    assert ap50(two, detections([(0.9, slice(0, 10)), (0.8, slice(0, 9)), (0.7, slice(20, 30))])) < 1


def test_nothing_to_measure():
    assert ap50(road_with(), detections([(0.5, slice(0, 9))])) == -1
    assert ap50(road_with((slice(0, 10), CAR * 1000)), detections([])) == 0
    assert SemanticMetric(["a", "b"]).compute() == {"mIoU": -1, "IoU/a": -1, "IoU/b": -1}


def labels_of_images(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(-1, 4, (6, 5)) for _ in range(count)]  # of 3 classes: -1 and 3 are none


@given(st.permutations(range(4)))
def test_mean_iou_does_not_depend_on_the_order_of_images(order):
    truths, predictions = labels_of_images(8)[:4], labels_of_images(8)[4:]
    metric = SemanticMetric(["a", "b", "c"])
    for image in order:
        metric.update([image], [truths[image]], [predictions[image]])
    metrics = metric.compute()
    # Counted over the pixels of all images at once
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    prediction = prediction[(truth >= 0) & (truth < 3)]
    truth = truth[(truth >= 0) & (truth < 3)]
    for label, name in enumerate("abc"):
        both, either = (truth == label) & (prediction == label), (truth == label) | (prediction == label)
        assert metrics[f"IoU/{name}"] == both.sum() / either.sum()


def evaluate_share(rank: int, rendezvous: str, queue) -> None:
    """One of two processes: both have image 1, as with a sampler that pads the last batch."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    queue.put(metrics_of([[0, 1], [1, 2]][rank]))
    dist.destroy_process_group()


def metrics_of(images: list[int]) -> tuple[dict[str, float], dict[str, float]]:
    instances, semantic = CityscapesInstanceMetric(), SemanticMetric(["a", "b", "c"])
    for image in images:
        truth = road_with((slice(0, 10), CAR * 1000), (slice(12, 30), CAR * 1000 + 1))
        found = detections([(0.1 * image, slice(0, 10)), (0.3 + 0.1 * image, slice(12, 22 + 2 * image))])
        instances.update([image], [truth], [found])
        semantic.update([image], [labels_of_images(6)[image]], [labels_of_images(6)[image + 3]])
    return instances.compute(), semantic.compute()


@pytest.mark.slow
def test_two_processes_get_the_metrics_of_one(tmp_path):
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(evaluate_share, args=(str(tmp_path / "rendezvous"), queue), nprocs=2)
    expected = metrics_of([0, 1, 2])
    assert 0 < expected[0]["AP"] < 1
    assert [queue.get(), queue.get()] == [expected, expected]
