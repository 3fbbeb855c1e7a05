"""Masks of COCO-format data: against pycocotools, and every kind of mask that cannot be used."""

import copy
import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import opening
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools.coco import COCO
from run_lengths import compressed, uncompressed
from torchvision import tv_tensors

from dqdet.formats import rle
from dqdet.formats.masks import CompressedMasks, compress, segmentation_fault
from dqdet.metrics.detection import DetectionMetric
from dqdet.types import ImageDetections

opened = partial(opening.opened, task="instance")
error_of = partial(opening.error_of, task="instance")

SIZE = (40, 60)
SQUARE = [10, 5, 30, 5, 30, 35, 10, 35]


def square() -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[5:35, 10:30] = 1
    return mask


def write(root: Path, *segmentations, **changes) -> Path:
    """A training split with one image; its annotations are numbered from 1."""
    (root / "train").mkdir(parents=True)
    PIL.Image.new("RGB", SIZE[::-1]).save(root / "train/1.png")
    record = {"image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 30], "iscrowd": 0} | changes
    annotations = [{"id": i, "segmentation": s} | record for i, s in enumerate(segmentations, 1)]
    for annotation in annotations:
        if annotation["segmentation"] is None:
            del annotation["segmentation"]
    document = {
        "images": [{"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "dog"}],
    }
    file = root / "train/_annotations.coco.json"
    file.write_text(json.dumps(document))
    return file


def test_real_masks_as_pycocotools_reads_them(shared, caplog):
    root = shared / "data/coco_real"
    with caplog.at_level(logging.WARNING):
        dataset = opened(root)
    assert [entry.getMessage() for entry in caplog.records] == [
        f"{dataset.annotation_file}: 1 of 1611 masks have no pixel inside their image and are left out of the "
        "targets: annotations 1441425"
    ]
    reference = COCO(dataset.annotation_file)
    for index in range(0, len(dataset), 5):
        annotations = [
            a for a in reference.imgToAnns[dataset.image_ids[index]] if not a["iscrowd"] and a["id"] != 1441425
        ]
        sample = dataset.read(index)
        assert type(sample["masks"]) is tv_tensors.Mask
        assert sample["masks"].shape == (len(annotations), *sample["image"].shape[1:])
        assert sample["masks"].dtype == torch.uint8
        for mask, annotation in zip(sample["masks"], annotations, strict=True):
            assert np.array_equal(mask, reference.annToMask(annotation))
        labels = [dataset.category_ids[label] for label in sample["labels"]]
        assert labels == [a["category_id"] for a in annotations]


def test_detection_reads_no_masks(shared):
    assert "masks" not in opening.opened(shared / "data/coco_real", "val").read(0)


def test_items_have_masks_in_their_boxes(shared):
    """Of the augmented objects: every box is that of the mask, which is of the size of the image."""
    dataset = opened(shared / "data/coco_real", jitter=(0.1, 2.0), window=(128, 128))
    seen = 0
    for index in range(8):
        image, target = dataset[index]
        assert target.masks.dtype == torch.bool
        assert target.masks.shape == (len(target.labels), *image.shape[1:])
        height, width = image.shape[1:]
        for mask, box in zip(target.masks, target.boxes, strict=True):
            rows, columns = torch.where(mask)
            edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            expected = torch.cat([(edges[:2] + edges[2:]) / 2, edges[2:] - edges[:2]])
            torch.testing.assert_close(box * torch.tensor([width, height] * 2), expected, atol=1e-3, rtol=0)
            seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        [[10, 5, 20, 5, 20, 35, 10, 35], [20, 5, 30, 5, 30, 35, 20, 35]],  # its halves
        uncompressed(square()),
        compressed(square()),
    ],
)
def test_all_forms_of_one_mask_are_equal(tmp_path, segmentation):
    write(tmp_path, segmentation)
    dataset = opened(tmp_path)
    assert np.array_equal(dataset.read(0)["masks"], square()[None])
    assert dataset.ground_truth()["annotations"][0]["area"] == 600


@given(arrays(np.uint8, (7, 9), elements=st.integers(0, 1)))
def test_run_lengths_are_valid_as_encoded_and_not_when_changed(mask):
    faults = {segmentation_fault(rle, 7, 9) for rle in (compressed(mask), uncompressed(mask))}
    assert faults == {None if mask.any() else "has an empty mask"}
    if mask.any():
        counts = [compress(rle, 7, 9) for rle in (compressed(mask), uncompressed(mask))]
        masks = CompressedMasks(counts).decode(0, 2, 7, 9)
        assert np.array_equal(masks, np.stack([mask, mask]))
        longer = compressed(np.concatenate([mask, mask]))["counts"]
        assert (
            segmentation_fault({"size": [7, 9], "counts": longer}, 7, 9) == "has an RLE whose counts are not 63 pixels"
        )


def test_crowds_and_images_without_objects(tmp_path):
    file = write(tmp_path, compressed(square()), iscrowd=1)
    dataset = opened(tmp_path)
    assert dataset.read(0)["masks"].shape == (0, *SIZE)
    assert dataset.ground_truth()["annotations"][0]["iscrowd"] == 1
    image, target = dataset[0]
    assert target.masks.shape == (0, *image.shape[1:])
    assert file == dataset.annotation_file


def test_areas_that_are_left_out_are_those_of_masks_also_of_images_that_are(tmp_path):
    """An image with a crowd alone is no part of a training split without empty images, but of its ground truth."""
    write(tmp_path, [SQUARE], compressed(square()), iscrowd=1)
    dataset = opened(tmp_path, skip_empty=True)
    assert len(dataset) == 0
    assert [one["area"] for one in dataset.ground_truth()["annotations"]] == [600, 600]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "has no segmentation"),
        ([], "has no segmentation"),
        ("polygon", "has no segmentation"),
        ([SQUARE, 5], "has a polygon that is not a list of finite numbers"),
        ([[1, 2, float("nan"), 4, 5, 6]], "has a polygon that is not a list of finite numbers"),
        ([SQUARE, [1, 2, 3, 4, 5, 6, 7]], "has a polygon with an odd number of coordinates: 7"),
        ([SQUARE, [1, 2, 30, 40]], "has a polygon of 2 points; at least 3 are needed"),
        ([[]], "has a polygon of 0 points; at least 3 are needed"),
        (compressed(np.ones((60, 40))), "has an RLE of 40 x 60 pixels in an image of 60 x 40"),
        (uncompressed(np.ones((40, 50))), "has an RLE of 50 x 40 pixels in an image of 60 x 40"),
        ({"counts": [2400]}, "has an RLE without size"),
        ({"size": [40, 60], "counts": [100, 200]}, "has an RLE whose counts are not 2400 pixels"),
        ({"size": [40, 60], "counts": [2500, -100]}, "has an RLE whose counts are not 2400 pixels"),
        ({"size": [40, 60], "counts": ""}, "has an RLE whose counts are not 2400 pixels"),
        ({"size": [40, 60], "counts": "eme31V"}, "has an RLE whose counts are not 2400 pixels"),
        ({"size": [40, 60]}, "has an RLE whose counts are not 2400 pixels"),
        (compressed(np.zeros(SIZE)), "has an empty mask"),
        ({"size": [40, 60], "counts": [2400]}, "has an empty mask"),
    ],
)
def test_bad_mask(tmp_path, segmentation, reason):
    file = write(tmp_path, [SQUARE], segmentation)
    assert error_of(tmp_path) == f"{file}: bad entries (1): annotation 2 {reason}; correct or remove them"
    assert len(opening.opened(tmp_path).read(0)["labels"]) == 2  # boxes need no masks


def test_bad_masks_are_reported_with_all_other_faults(tmp_path):
    file = write(tmp_path, [SQUARE], [[1, 2, 3, 4]], [SQUARE], compressed(np.zeros(SIZE)))
    document = json.loads(file.read_text())
    document["images"].append({"id": 2, "file_name": "2.png", "height": 0, "width": 5})
    document["annotations"][0]["bbox"] = None
    document["annotations"][2]["image_id"] = 2
    file.write_text(json.dumps(document))
    assert error_of(tmp_path) == (
        f"{file}: bad entries (4): image 2 has the height 0, which is no whole number in 1..65535; "
        "annotation 1 has a bbox that is not 4 finite numbers: None; "
        "annotation 2 has a polygon of 2 points; at least 3 are needed; annotation 4 has an empty mask; "
        "correct or remove them; "
        f"1 of 2 images are missing in {tmp_path}/train: 2.png; add them or remove their records"
    )


def test_polygons_without_a_pixel_are_left_out_with_one_warning(tmp_path, caplog):
    thin, outside = [[20, 10, 20.2, 10, 20.2, 30]], [[70, 5, 80, 5, 80, 20]]
    file = write(tmp_path, thin, [SQUARE], outside)
    with caplog.at_level(logging.WARNING):
        dataset = opened(tmp_path)
    assert [entry.getMessage() for entry in caplog.records] == [
        f"{file}: 2 of 3 masks have no pixel inside their image and are left out of the targets: annotations 1, 3"
    ]
    assert np.array_equal(dataset.read(0)["masks"], square()[None])
    assert len(dataset.ground_truth()["annotations"]) == 3


def test_masks_read_and_found_again_have_an_average_precision_of_one(shared, capsys):
    """Polygons and crowds of ``ground_truth`` mean to the evaluation what ``read`` gives."""
    dataset = opened(shared / "data/coco_real", "val")
    truth = copy.deepcopy(dataset.ground_truth())
    chosen = dataset.image_ids[:30]
    truth["images"] = [image for image in truth["images"] if image["id"] in chosen]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in chosen]
    metric = DetectionMetric(truth, dataset.category_ids, iou_type="segm")
    for index, image_id in enumerate(chosen):
        sample = dataset.read(index)
        scores = torch.ones(len(sample["labels"]))
        found = ImageDetections(scores, sample["labels"], sample["boxes"], masks=rle.compressed(sample["masks"].bool()))
        metric.update([image_id], [found])
    metrics = metric.compute()
    capsys.readouterr()
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["AR100"] == pytest.approx(1)
