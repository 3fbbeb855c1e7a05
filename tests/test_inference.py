"""Properties of what is made of predicted masks; the numbers are compared in parity/test_segmentation_inference.py."""

import numpy as np
import pytest
import torch
from torchvision.ops import masks_to_boxes

from dqdet.config import Config
from dqdet.inference import infer
from dqdet.inference import masks as mask_inference
from dqdet.inference.masks import boxes_of_masks, semantic_scores
from dqdet.nn.product_masks import ProductMasks
from dqdet.types import Predictions

CLASSES = ["person", "car", "grass", "sky"]
SIZES = ([(30, 44), (32, 40)], [(45, 60), (40, 33)])  # in the batch, of the files


def config_of(task: str, **inference) -> Config:
    family = {"video": "video_mask2former", "detection": "smca_detr"}.get(task, "mask2former")
    return Config.model_validate(
        {
            "preset": "",
            "model": {"family": family},
            "loss": {"kind": "boxes" if task == "detection" else "masks"},
            "data": {"kind": "scenes", "task": task},
            "inference": inference,
            "classes": CLASSES,
            "category_ids": [7, 3, 5, 11],
            "stuff": CLASSES[2:] if task == "panoptic" else [],
        }
    )


def predictions_of(logits: torch.Tensor, masks: torch.Tensor) -> Predictions:
    """One image with class logits ``[Q, C + 1]`` and mask logits ``[Q, (T,) h, w]``."""
    queries = len(masks)
    features = masks if masks.ndim == 3 else masks.transpose(0, 1)
    masks = ProductMasks(torch.eye(queries)[None, None], features[None])
    return Predictions(logits[None, None], None, {"static": queries}, masks)


def random_predictions(seed: int, frames: tuple[int, ...] = ()) -> Predictions:
    """Of two images: ten queries, twelve channels."""
    random = torch.Generator().manual_seed(seed)
    return Predictions(
        3 * torch.randn(2, 2, 10, len(CLASSES) + 1, generator=random),
        None,
        {"static": 10},
        ProductMasks(
            torch.randn(2, 2, 10, 12, generator=random),
            torch.randn(2, *frames, 12, 8, 11, generator=random),
        ),
    )


def confident(*labels: int) -> torch.Tensor:
    return 20 * torch.eye(len(CLASSES) + 1)[list(labels)]


def halves(*spans: tuple[int, int]) -> torch.Tensor:
    """Mask logits [Q, 4, 8]: high in some columns, low elsewhere."""
    masks = torch.full((len(spans), 4, 8), -20.0)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[:, start:end] = 20
    return masks


def panoptic(predictions: Predictions, **inference):
    (found,) = infer(predictions, [(16, 32)], [(16, 32)], config_of("panoptic", **inference))
    return found.panoptic


def test_boxes_are_those_of_torchvision_and_reach_around_the_last_pixel():
    masks = torch.rand(20, 9, 13, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[3] = masks[7] = False
    empty = ~masks.flatten(1).any(1)
    boxes = boxes_of_masks(masks)
    assert torch.equal(boxes[~empty], masks_to_boxes(masks[~empty]) + torch.tensor([0, 0, 1, 1]))
    assert not boxes[empty].any()
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("task", ["instance", "panoptic", "video"])
def test_results_do_not_depend_on_how_many_masks_are_enlarged_together(task, monkeypatch):
    predictions = random_predictions(1, frames=(3,) if task == "video" else ())
    config = config_of(task, object_threshold=0.3, overlap_threshold=0.1, limit=12)
    whole = infer(predictions, *SIZES, config)
    monkeypatch.setattr(mask_inference, "PIXELS_AT_ONCE", 3 * 45 * 60)
    for found, expected in zip(infer(predictions, *SIZES, config), whole, strict=True):
        if task == "panoptic":
            assert np.array_equal(found.panoptic.ids, expected.panoptic.ids)
            assert found.panoptic.segments == expected.panoptic.segments
            assert (found.semantic == expected.semantic).mean() > 0.999  # sums in another order
            found, expected = found.instances, expected.instances
        assert len(found.scores)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.labels, expected.labels)
        if task == "video":
            assert torch.equal(found.masks, expected.masks)
        else:
            np.testing.assert_array_equal(found.masks.decoded(), expected.masks.decoded())


def test_instances_are_sorted_and_their_masks_have_the_size_of_the_file():
    found = infer(random_predictions(2), *SIZES, config_of("instance", limit=7))
    for image, size in zip(found, SIZES[1], strict=True):
        masks = torch.from_numpy(image.masks.decoded())
        assert masks.shape == (7, *size)
        assert torch.equal(image.scores, image.scores.sort(descending=True).values)
        assert torch.equal(image.boxes, boxes_of_masks(masks))


def test_a_score_is_that_of_the_class_times_the_certainty_of_the_mask():
    masks = halves((0, 4), (0, 4)) / torch.tensor([1, 20])[:, None, None]  # logits of 20, and of 1
    (found,) = infer(predictions_of(confident(0, 1), masks), [(16, 32)], [(16, 32)], config_of("instance", limit=2))
    assert found.labels.tolist() == [0, 1]
    inside = torch.nn.functional.interpolate(masks[None], scale_factor=4, mode="bilinear")[0, 1].sigmoid()
    torch.testing.assert_close(found.scores, torch.tensor([1, inside[inside > 0.5].mean()]), rtol=0.01, atol=0)


@pytest.mark.parametrize("task", ["detection", "instance", "video"])
def test_no_more_than_the_limit_is_found(task):
    predictions = random_predictions(4, frames=(2,) if task == "video" else ())
    config = config_of(task)
    if task == "detection":
        predictions.boxes = torch.rand(2, 2, 10, 4)
    for limit in (3, 30):
        config.inference.limit = limit
        for found in infer(predictions, *SIZES, config):
            assert len(found.scores) == min(limit, len(CLASSES) * 10)


def test_stuff_is_no_instance_but_takes_its_places():
    predictions = random_predictions(3)
    every = infer(predictions, *SIZES, config_of("instance", limit=12))
    things = infer(predictions, *SIZES, config_of("panoptic", limit=12))
    for image, expected in zip(things, every, strict=True):
        kept = expected.labels < 2
        assert 0 < kept.sum() < 12
        torch.testing.assert_close(image.instances.scores, expected.scores[kept])


def test_segments_of_one_stuff_class_become_one_and_those_of_things_do_not():
    masks = halves((0, 2), (2, 4), (4, 6), (6, 8))
    found = panoptic(predictions_of(confident(2, 2, 0, 0), masks))
    assert [segment["category_id"] for segment in found.segments] == [5, 7, 7]
    assert [found.ids[8, column] for column in (4, 12, 20, 28)] == [1, 1, 2, 3]


def test_uncertain_and_hidden_segments_are_left_out():
    logits = confident(0, 1, 2, len(CLASSES))
    logits[1] /= 4  # the certain one wins where both are
    masks = halves((0, 4), (2, 6), (6, 7), (7, 8))
    found = panoptic(predictions_of(logits, masks), object_threshold=0.5, overlap_threshold=0.4)
    assert [segment["category_id"] for segment in found.segments] == [7, 3, 5]
    assert not found.ids[:, 30:].any()  # no object
    found = panoptic(predictions_of(logits, masks), object_threshold=0.5, overlap_threshold=0.6)
    assert [segment["category_id"] for segment in found.segments] == [7, 5]  # half of the second one is hidden
    found = panoptic(predictions_of(logits, masks), object_threshold=0.99, overlap_threshold=0.4)
    assert [segment["category_id"] for segment in found.segments] == [7, 5]


def test_an_image_without_objects_is_void():
    found = panoptic(predictions_of(confident(*[len(CLASSES)] * 2), halves((0, 4), (4, 8))))
    assert not found.segments
    assert not found.ids.any()
    assert found.ids.shape == (16, 32)


def test_the_semantic_map_adds_queries():
    logits = torch.zeros(3, len(CLASSES) + 1)
    logits[:2, 1] = 2  # two queries that are weaker than the third, each for itself
    logits[2, 3] = 2.5
    predictions = predictions_of(logits, halves((0, 8), (0, 8), (0, 8)))
    config = config_of("panoptic")
    assert (
        semantic_scores(predictions.final, 0, (16, 32), (16, 32), slice(0, len(config.classes))).argmax(0) == 1
    ).all()
    (found,) = infer(predictions, [(16, 32)], [(10, 20)], config)
    assert np.array_equal(found.semantic, np.ones((10, 20)))


def test_tracks_that_are_never_seen_are_left_out():
    masks = torch.stack([halves((0, 4), (4, 8)), torch.full((2, 4, 8), -20.0)])  # two queries of two frames
    config = config_of("video", limit=2)
    (found,) = infer(predictions_of(confident(1, 0), masks), [(16, 32)], [(16, 32)], config)
    assert found.labels.tolist() == [1]
    assert found.masks.shape == (1, 2, 16, 32)
    assert found.masks[0, :, 8, 4].tolist() == [True, False]
