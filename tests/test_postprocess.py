"""Detections must be those of the official post-processing, whatever selects them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dqdet.inference.boxes import detections
from dqdet.types import Predictions

CLASSES = 7
CASES = [
    "detr",
    "conditional_detr",
    "conditional_detr_dq",
    "smca_detr",
    "smca_detr_dq",
    "dab_detr",
    "dab_detr_dq",
    "deformable_detr",
    "deformable_detr_refine",
    "deformable_detr_two_stage",
    "deformable_detr_dq",
    "dab_deformable_detr",
    "dab_deformable_detr_dq",
]


@pytest.mark.parametrize("case", CASES)
def test_equals_official_postprocessing(shared, case):
    classification = "cross_entropy" if case == "detr" else "focal"
    # The official SMCA-DETR reports its "no object" like a class.
    classes = CLASSES + 1 if case.startswith("smca_detr") else CLASSES
    folder = shared / "parity" / case
    official = load_file(folder / "io.safetensors")
    rule = json.loads((folder / "config.json").read_text())["postprocess"]
    assert rule.startswith("softmax" if classification == "cross_entropy" else "sigmoid")
    predictions = Predictions(official["logits"], official["boxes"], groups={"static": 16})
    sizes = [(int(h), int(w)) for h, w in official["image_sizes"]]

    found = detections(predictions, sizes, classification, classes, limit=official["post_scores"].shape[1])

    for index, image in enumerate(found):
        # DETR reports in query order, which means nothing: compare best first.
        scores, order = official["post_scores"][index].sort(descending=True)
        torch.testing.assert_close(image.scores, scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(image.labels, official["post_labels"][index][order])
        torch.testing.assert_close(image.boxes, official["post_boxes"][index][order], rtol=0, atol=1e-4)


def test_only_the_first_group_and_the_last_layer_are_reported(shared):
    official = load_file(shared / "parity" / "deformable_detr_dq" / "io.safetensors")
    both = Predictions(
        torch.cat([official["logits"], official["org_logits"] + 100], dim=2),  # the basic queries would win
        torch.cat([official["boxes"], official["org_boxes"]], dim=2),
        groups={"modulated": 16, "basic": 64},
    )
    sizes = [(int(h), int(w)) for h, w in official["image_sizes"]]
    for index, image in enumerate(detections(both, sizes, "focal", CLASSES)):
        torch.testing.assert_close(image.scores, official["post_scores"][index], rtol=0, atol=1e-6)


def random_predictions(batch: int, queries: int, logits: int) -> Predictions:
    return Predictions(
        torch.randn(2, batch, queries, logits), torch.rand(2, batch, queries, 4), groups={"static": queries}
    )


@pytest.mark.parametrize(
    ("classification", "none", "candidates"), [("focal", 0, 5 * 3), ("focal", 1, 5 * 3), ("cross_entropy", 1, 5)]
)
def test_keeps_all_candidates_below_the_limit_but_no_object(classification, none, candidates):
    (image,) = detections(random_predictions(1, 5, 3 + none), [(10, 20)], classification, classes=3)
    assert image.scores.shape == image.labels.shape == (candidates,)
    assert image.labels.max() < 3
    assert image.boxes.shape == (candidates, 4)


@pytest.mark.parametrize("classification", ["focal", "cross_entropy"])
def test_limit_keeps_the_best(classification):
    predictions = random_predictions(2, 40, 6)
    everything = detections(predictions, [(10, 20)] * 2, classification, classes=5, limit=1000)
    best = detections(predictions, [(10, 20)] * 2, classification, classes=5, limit=7)
    for image, full in zip(best, everything, strict=True):
        torch.testing.assert_close(image.scores, full.scores.sort(descending=True).values[:7])
        torch.testing.assert_close(image.boxes, full.boxes[:7])


def test_boxes_are_pixels_of_each_image():
    boxes = torch.tensor([0.5, 0.5, 1.0, 0.5]).expand(1, 2, 1, 4)
    predictions = Predictions(torch.zeros(1, 2, 1, 1), boxes, groups={"static": 1})
    first, second = detections(predictions, [(100, 200), (40, 30)], "focal", classes=1)
    assert first.boxes.tolist() == [[0, 25, 200, 75]]
    assert second.boxes.tolist() == [[0, 10, 30, 30]]
