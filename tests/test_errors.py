"""Kinds of errors, confusion, curves, thresholds and calibration: against hotcoco, and what they are by definition."""

import json
from dataclasses import replace

import hotcoco
import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from dqdet.metrics.errors import (
    IGNORED,
    KINDS,
    RIGHT,
    average_precision,
    best_thresholds,
    calibration_error,
    confusion,
    error_costs,
    error_counts,
    errors_by_image,
    match,
    mean_precision,
)

NAMES = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))  # there


@pytest.fixture(scope="module")
def recorded(shared):
    folder = shared / "metrics" / "coco_detection"
    truth, entries = (json.loads((folder / name).read_text()) for name in ("gt.json", "results.json"))
    results = {image["id"]: [] for image in truth["images"]}
    for entry in entries:
        results[entry["image_id"]].append(entry)
    return truth, results


def without_crowds(truth):
    return truth | {"annotations": [one for one in truth["annotations"] if not one["iscrowd"]]}


def reference(tmp_path, truth, results):
    """hotcoco's evaluation. With crowds it would take detections on them for errors of place, which TIDE does not."""
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps([entry for of_image in results.values() for entry in of_image]))
    coco = hotcoco.COCO(str(tmp_path / "truth.json"))
    evaluation = hotcoco.COCOeval(coco, coco.load_res(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def test_kinds_of_errors_are_those_of_hotcoco(recorded, tmp_path):
    truth, results = without_crowds(recorded[0]), recorded[1]
    matches = match(truth, results)
    expected = reference(tmp_path, truth, results).tide_errors()
    assert error_counts(matches) == {kind: expected["counts"][name] for kind, name in NAMES.items()}
    costs = error_costs(matches)
    for kind, name in NAMES.items():
        assert costs[kind] == pytest.approx(expected["delta_ap"][name], abs=1e-9)
    assert mean_precision(matches) == pytest.approx(expected["ap_base"], abs=1e-9)
    assert min(error_counts(matches).values()) > 50  # of each kind there are many


@pytest.mark.parametrize("least", [0.0, 0.4])
def test_confusion_and_calibration_are_those_of_hotcoco(recorded, tmp_path, least):
    """Without crowds: with them hotcoco takes detections on these for some on no object."""
    truth, results = without_crowds(recorded[0]), recorded[1]
    evaluation = reference(tmp_path, truth, results)
    found = confusion(truth, results, lambda entry: entry["score"] >= least)
    np.testing.assert_array_equal(found, evaluation.confusion_matrix(min_score=least)["matrix"])
    assert found[:-1].sum() > 500
    assert calibration_error(match(truth, results)) == pytest.approx(evaluation.calibration()["ece"], abs=1e-12)


def test_detections_on_a_crowd_of_their_class_are_no_part_of_the_confusion():
    """As of the matches; one of another class lies on no object."""
    document = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "iscrowd": 1},
            {"image_id": 1, "category_id": 1, "bbox": [60, 60, 9, 9], "iscrowd": 0},
        ],
    }
    found = ((1, [5, 5, 9, 9], 0.9), (1, [25, 5, 9, 9], 0.8), (2, [5, 5, 9, 9], 0.7), (1, [60, 60, 9, 9], 0.6))
    entries = [{"image_id": 1, "category_id": label, "bbox": box, "score": score} for label, box, score in found]
    assert match(document, {1: entries}).kinds.tolist() == [IGNORED, IGNORED, "background", RIGHT]
    assert confusion(document, {1: entries}, lambda entry: True).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_average_precision_is_the_official_one_with_crowds_too(recorded, shared):
    truth, results = recorded
    expected = json.loads((shared / "metrics/coco_detection/expected.json").read_text())
    matches = match(truth, results)
    assert mean_precision(matches) == pytest.approx(expected["stats"]["AP50"], abs=1e-9)
    assert (matches.kinds == IGNORED).sum() > 10  # detections on crowds are neither right nor wrong
    scores, right = matches.of_class(0)
    assert average_precision(scores, right, matches.objects(0)) > 0


def one_class(scores, right, objects):
    """Matches of a class in one image: detections with scores, which of them are right, and how many objects."""
    document = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [20 * n, 0, 9, 9]} for n in range(objects)],
    }
    place = iter(range(objects))
    boxes = [[20 * next(place), 0, 9, 9] if good else [0, 60, 9, 9] for good in right]
    entries = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in zip(boxes, scores, strict=True)
    ]
    return match(document, {1: entries})


def test_the_threshold_is_where_f1_is_greatest():
    """Against scikit-learn at all thresholds; equal scores are above one together or not at all."""
    scores, right = [0.9, 0.8, 0.7, 0.7, 0.5, 0.4], [True, False, True, False, True, False]
    matches = one_class(scores, right, objects=4)
    assert matches.kinds.tolist() == [RIGHT, "background", RIGHT, "background", RIGHT, "background"]
    best = best_thresholds(matches)
    truth = [*right, True]  # an object that nothing finds
    values = {limit: f1_score(truth, [*(s > limit for s in scores), False]) for limit in (0.85, 0.75, 0.6, 0.45, 0.2)}
    assert best.thresholds == [pytest.approx(0.45)]
    assert values[0.45] == max(values.values()) == pytest.approx(best.f1[0])
    above = [*(s > 0.45 for s in scores), False]
    precision, recall, _, _ = precision_recall_fscore_support(truth, above, average="binary")
    assert (best.precision, best.recall) == ([pytest.approx(precision)], [pytest.approx(recall)])
    assert errors_by_image(matches, best.thresholds) == {1: 2 + 1}


def test_a_class_that_nothing_finds_has_no_threshold_below_one():
    assert best_thresholds(one_class([0.9], [False], objects=1)).thresholds == [1.0]
    matches = one_class([0.9, 0.3], [True, True], objects=2)
    assert best_thresholds(matches).thresholds == [pytest.approx(0.15)]
    assert best_thresholds(replace(matches, object_labels=matches.object_labels[:0])).thresholds == [1.0]


def test_images_with_most_errors_are_told_by_their_detections_above_the_threshold_and_their_missed_objects():
    matches = one_class([0.9, 0.2], [True, False], objects=3)
    assert errors_by_image(matches, [0.5]) == {1: 2}
    assert errors_by_image(matches, [0.1]) == {1: 3}
    assert errors_by_image(matches, [0.95]) == {1: 3}
