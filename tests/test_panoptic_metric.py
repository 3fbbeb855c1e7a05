"""Panoptic quality must be that of the official evaluation, in one process or several."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from dqdet.errors import DqdetError
from dqdet.formats.panoptic import read_ids
from dqdet.metrics.panoptic import PanopticMetric, overlaps
from dqdet.types import PanopticMap
from panoptic_files import evaluate_files

CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]


def assert_official(metrics: dict[str, float], expected: dict) -> None:
    for number in ("PQ", "SQ", "RQ"):
        for suffix, part in (("", "All"), ("_things", "Things"), ("_stuff", "Stuff")):
            assert metrics[f"{number}{suffix}"] == pytest.approx(expected[part][number], abs=1e-9)
        for category in expected["per_class"].values():
            assert metrics[f"{number}/{category['name']}"] == pytest.approx(category[number], abs=1e-9)


def test_equals_official_numbers(shared):
    folder = shared / "metrics" / "panoptic"
    metrics = evaluate_files(folder / "gt.json", folder / "pred.json")
    expected = json.loads((folder / "expected.json").read_text())
    assert len(metrics) == 3 * (3 + len(expected["per_class"]))
    assert_official(metrics, expected)


@pytest.mark.parametrize(
    ("results", "case"),
    [("annotations/panoptic.json", "ground_truth_as_prediction"), ("predictions/panoptic.json", "predictions")],
)
def test_equals_official_numbers_on_coco_images(shared, results, case):
    folder = shared / "data" / "panoptic_sample"
    metrics = evaluate_files(folder / "annotations" / "panoptic.json", folder / results)
    assert_official(metrics, json.loads((folder / "expected.json").read_text())[case])


def panoptic(rows: list[str], **segments: tuple[int, int]) -> PanopticMap:
    """A map from letters (. is void); each segment has a category id and whether it is a crowd."""
    letters = np.array([[ord(letter) for letter in row] for row in rows])
    listed = [{"id": ord(name), "category_id": c, "iscrowd": crowd} for name, (c, crowd) in segments.items()]
    return PanopticMap(np.where(letters == ord("."), 0, letters), listed)


def test_by_hand():
    truth = panoptic(["aabb..", "aabbkk"], a=(1, 0), b=(7, 0), k=(1, 1))
    # x: a with one pixel of four missed. y: its union with b leaves the void out. z: mostly crowd, ignored.
    prediction = panoptic(["x.yyyy", "xx.yzz"], x=(1, 0), y=(7, 0), z=(1, 0))
    metric = PanopticMetric(CATEGORIES)
    metric.update([3], [truth], [prediction])
    metrics = metric.compute()
    assert metrics["PQ/cat"] == metrics["SQ_things"] == 3 / 4
    assert metrics["RQ/cat"] == 1
    assert metrics["SQ/sky"] == 3 / 4
    assert metrics["PQ"] == 3 / 4


def test_half_is_no_match():
    metric = PanopticMetric(CATEGORIES)
    metric.update([3], [panoptic(["aa"], a=(1, 0))], [panoptic(["x."], x=(1, 0))])
    metrics = metric.compute()
    assert metrics["PQ"] == 0
    assert metrics["PQ_stuff"] == -1  # no stuff on either side
    assert metrics["PQ/sky"] == 0


@pytest.fixture
def files(tmp_path) -> Path:
    for name in ("truth", "results"):
        (tmp_path / name).mkdir()
        annotations = []
        for image_id in (1, 2):
            ids = np.zeros((4, 6), dtype=np.uint32)
            ids[:2], ids[2:] = 5, 300
            save(tmp_path / name / f"{image_id}.png", ids)
            segments = [{"id": 5, "category_id": 1, "iscrowd": 0}, {"id": 300, "category_id": 7, "iscrowd": 0}]
            annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
        document = {"annotations": annotations, "categories": CATEGORIES}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def save(file: Path, ids: np.ndarray) -> None:
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    PIL.Image.fromarray(colours.astype(np.uint8)).save(file)


def evaluate(folder: Path) -> dict[str, float]:
    return evaluate_files(folder / "truth.json", folder / "results.json")


def test_ids_from_colours(files):
    ids = np.array([[0, 255, 256], [65535, 65536, 2**24 - 1]])
    save(files / "ids.png", ids)
    np.testing.assert_array_equal(read_ids(files / "ids.png"), ids)
    assert evaluate(files)["PQ"] == 1


def test_faults_are_reported_together(files):
    save(files / "truth" / "1.png", np.full((4, 6), 5))
    save(files / "results" / "2.png", np.concatenate([np.full((2, 6), 77), np.full((2, 6), 300)]))
    document = json.loads((files / "results.json").read_text())
    document["annotations"][0]["segments_info"][0]["category_id"] = 9
    (files / "results.json").write_text(json.dumps(document))

    with pytest.raises(DqdetError) as error:
        evaluate(files)
    message = str(error.value)
    assert "\n" not in message
    for fault in (
        f"{files / 'truth' / '1.png'}: image 1: segment 300 is in the JSON but not in the PNG",
        f"{files / 'results' / '1.png'}: image 1: segment 5 has the unknown category_id 9",
        f"{files / 'results' / '2.png'}: image 2: segment 77 is in the PNG but not in the JSON",
        f"{files / 'results' / '2.png'}: image 2: segment 5 is in the JSON but not in the PNG",
    ):
        assert fault in message


def test_other_size_and_missing_image(files):
    save(files / "results" / "1.png", np.concatenate([np.full((2, 9), 5), np.full((2, 9), 300)]))
    document = json.loads((files / "results.json").read_text())
    del document["annotations"][1]
    (files / "results.json").write_text(json.dumps(document))
    with pytest.raises(DqdetError, match=r"1\.png: image 1: the PNG has 9x4 not 6x4 pixels;.*no result for image 2"):
        evaluate(files)


def test_many_faults_stay_readable(files):
    save(files / "results" / "1.png", np.arange(1000, 1024).reshape(4, 6))
    with pytest.raises(DqdetError, match=r"segment 1019 is .* and 6 more"):
        evaluate(files)


def test_unreadable_files(files):
    (files / "results" / "1.png").write_text("no image")
    with pytest.raises(DqdetError, match=r"1\.png: cannot be read as a panoptic PNG"):
        evaluate(files)
    shutil.rmtree(files / "results")
    with pytest.raises(DqdetError, match=r"1\.png"):
        evaluate(files)
    (files / "results.json").write_text("[]")
    with pytest.raises(DqdetError, match=r"results\.json: not in COCO's panoptic format \(no list 'annotations'\)"):
        evaluate(files)
    (files / "results.json").write_text("{")
    with pytest.raises(DqdetError, match=r"results\.json: not valid JSON"):
        evaluate(files)


def random_maps(image_id: int) -> tuple[PanopticMap, PanopticMap]:
    random = np.random.default_rng(image_id)

    def one() -> PanopticMap:
        coarse = random.integers(0, 5, (3, 4))
        numbers = [number for number in np.unique(coarse).tolist() if number]
        segments = [{"id": number, "category_id": 1 if number < 4 else 7, "iscrowd": 0} for number in numbers]
        return PanopticMap(coarse.repeat(5, 0).repeat(5, 1), segments)

    truth = one()
    return truth, truth if image_id % 2 else one()


def evaluate_share(rank: int, rendezvous: str, queue) -> None:
    """One of two processes: both have image 2, as with a sampler that pads the last batch."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    queue.put(metrics_of([[0, 1, 2], [2, 3, 4]][rank]))
    dist.destroy_process_group()


def metrics_of(image_ids: list[int]) -> dict[str, float]:
    metric = PanopticMetric(CATEGORIES)
    for image_id in image_ids:
        truth, prediction = random_maps(image_id)
        metric.update([image_id], [truth], [prediction])
    return metric.compute()


@pytest.mark.slow
def test_two_processes_get_the_metrics_of_one(tmp_path):
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(evaluate_share, args=(str(tmp_path / "rendezvous"), queue), nprocs=2)
    expected = metrics_of(list(range(5)))
    assert 0 < expected["PQ"] < 1
    for _ in range(2):
        assert queue.get() == pytest.approx(expected, abs=1e-12)


def test_overlaps_are_those_of_single_pixels():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 5, (20, 30)), random.choice([0, 7, 2**24 - 1], (20, 30))
    first[5:15, 5:25] = 3  # runs over the end of a row, and of many pixels
    second[:, 10:] = 7
    ids, others, shared = overlaps(first.astype(np.uint32), second.astype(np.uint32))
    assert ids.tolist() == sorted(set(first.ravel().tolist()))
    assert others.tolist() == sorted(set(second.ravel().tolist()))
    assert shared.tolist() == [[int(((first == a) & (second == b)).sum()) for b in others] for a in ids]
