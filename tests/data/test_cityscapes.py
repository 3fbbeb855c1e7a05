"""Cityscapes from folders as downloaded."""

import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
import torch
from torchvision.datasets import Cityscapes

from dqdet.config import DataConfig
from dqdet.data import open_dataset
from dqdet.errors import DqdetError
from dqdet.formats.rle import compressed
from dqdet.metrics.cityscapes import CityscapesInstanceMetric
from dqdet.metrics.panoptic import VOID
from dqdet.types import ImageDetections

THINGS = [24, 25, 26, 27, 28, 31, 32, 33]
STUFF = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23]
SKY, CAR, CARAVAN, OUT_OF_ROI = 23, 26, 29, 3
SIZE = (12, 24)


def random_map(seed: int) -> np.ndarray:
    """Pixels of all labels and of objects."""
    objects = [label * 1000 + number for label in [*THINGS, 29, 30] for number in (0, 1, 17)]
    numbers = np.array([*range(34), *objects], dtype=np.uint16)
    return np.random.default_rng(seed).permuted(np.resize(numbers, (20, 30)))


def add(root: Path, split: str, name: str, ids: np.ndarray) -> None:
    """An image of noise and its annotation; ``name`` is city/city_number_number."""
    image = root / "leftImg8bit" / split / f"{name}_leftImg8bit.png"
    annotation = root / "gtFine" / split / f"{name}_gtFine_instanceIds.png"
    for file in (image, annotation):
        file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name)).integers(0, 256, (*ids.shape, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(image)
    PIL.Image.fromarray(ids.astype(np.uint16)).save(annotation)


def scene(*parts: tuple[slice, int]) -> np.ndarray:
    """A map of sky with columns of other numbers."""
    ids = np.full(SIZE, SKY, dtype=np.uint16)
    for columns, number in parts:
        ids[2:, columns] = number
    return ids


def small(root: Path) -> Path:
    """Two images to train with, one to validate."""
    add(root, "train", "ulm/ulm_000001_000019", scene((slice(0, 6), CAR * 1000), (slice(4, 9), CAR * 1000 + 1)))
    add(root, "train", "aachen/aachen_000000_000019", scene((slice(3, 12), 24001), (slice(12, 14), CAR)))
    add(root, "val", "lindau/lindau_000000_000019", scene((slice(5, 10), 24000)))
    return root


def opened(root: Path, task: str = "panoptic", split: str = "train", **options):
    return open_dataset(DataConfig(kind="cityscapes", task=task, root=str(root), **options), split)


def with_images(shared: Path, root: Path) -> Path:
    """The official maps of the metric's fixture, and black images to them."""
    for file in sorted((shared / "metrics" / "cityscapes").glob("gtFine/val/*/*.png")):
        folder = root / "gtFine" / "val" / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
        if file.name.endswith("_instanceIds.png"):
            image = root / "leftImg8bit" / "val" / file.parent.name
            image.mkdir(parents=True, exist_ok=True)
            with PIL.Image.open(file) as annotation:
                name = file.name.replace("_gtFine_instanceIds", "_leftImg8bit")
                PIL.Image.new("RGB", annotation.size).save(image / name)
    return root


def test_files_are_found_as_torchvision_finds_them(tmp_path):
    dataset = opened(small(tmp_path))
    theirs = Cityscapes(str(tmp_path), split="train", target_type="instance")
    expected = sorted((Path(file), number) for number, file in enumerate(theirs.images))
    assert [dataset.image_folder / name for name in dataset.file_names] == [file for file, _ in expected]
    for index, (file, number) in enumerate(expected):
        image, ids = theirs[number]
        assert np.array_equal(dataset.instance_ids(index), np.array(ids))
        assert np.array_equal(dataset.read(index)["image"].permute(1, 2, 0), np.array(image)), file
    assert dataset.image_ids == [1, 2]
    assert dataset.aspect_ratios.tolist() == [2.0, 2.0]


def test_classes_of_the_two_tasks(tmp_path):
    instance, panoptic = (opened(small(tmp_path), task) for task in ("instance", "panoptic"))
    assert instance.category_ids == THINGS
    assert not list(instance.stuff)
    assert panoptic.category_ids == STUFF + THINGS
    assert set(panoptic.classes) - set(panoptic.stuff) == set(instance.classes)
    for dataset in (instance, panoptic):
        things = {category["name"]: category["id"] for category in dataset.panoptic_categories if category["isthing"]}
        assert things == dict(zip(instance.classes, THINGS, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_segments_partition_what_is_not_void(tmp_path, seed):
    ids = random_map(seed)
    add(tmp_path, "val", "bonn/bonn_000000_000019", ids)
    panoptic = opened(tmp_path, split="val").panoptic(0)
    segments = {segment["id"]: segment for segment in panoptic.segments}
    assert set(np.unique(panoptic.ids).tolist()) == {VOID, *segments}
    for number in np.unique(ids).tolist():
        label = int(str(number)[:2]) if number > 999 else number
        (found,) = np.unique(panoptic.ids[ids == number]).tolist()
        if label not in STUFF + THINGS:
            assert found == VOID
        else:
            assert np.array_equal(panoptic.ids == found, ids == number)
            assert segments[found]["category_id"] == label
            assert segments[found]["iscrowd"] == (label in THINGS and number < 1000)


def test_categories_of_segments_are_those_of_the_official_label_maps(shared, tmp_path):
    dataset = opened(with_images(shared, tmp_path), split="val")
    assert len(dataset) == 5
    for index, name in enumerate(dataset.file_names):
        file = tmp_path / "gtFine" / "val" / name.replace("_leftImg8bit", "_gtFine_labelIds")
        with PIL.Image.open(file) as image:
            label_ids = np.array(image)
        panoptic = dataset.panoptic(index)
        categories = np.zeros(2**16, dtype=int)
        categories[[s["id"] for s in panoptic.segments]] = [s["category_id"] for s in panoptic.segments]
        assert np.array_equal(categories[panoptic.ids], np.where(np.isin(label_ids, STUFF + THINGS), label_ids, 0))


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_targets_are_the_segments_that_are_no_crowd(tmp_path, task):
    dataset = opened(small(tmp_path), task)
    for index in range(len(dataset)):
        ids, sample = dataset.instance_ids(index), dataset.read(index)
        objects = {int(number): int(number) // 1000 for number in np.unique(ids) if number >= 1000}
        if task == "panoptic":
            objects[SKY] = SKY
        masks = {mask.numpy().astype(bool).tobytes(): number for number, mask in enumerate(sample["masks"])}
        assert len(masks) == len(sample["labels"]) == len(sample["boxes"]) == len(objects)
        for number, label in objects.items():
            which = masks[(ids == number).tobytes()]
            assert dataset.category_ids[sample["labels"][which]] == label
            rows, columns = np.nonzero(ids == number)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert sample["boxes"][which].tolist() == box


def test_ground_truth_has_things_and_groups_with_their_masks(tmp_path):
    root = small(tmp_path)
    add(root, "train", "ulm/ulm_000002_000019", scene((slice(0, 3), CARAVAN * 1000), (slice(3, 6), OUT_OF_ROI)))
    dataset = opened(root)
    truth = dataset.ground_truth()
    assert [image["file_name"] for image in truth["images"]] == dataset.file_names.tolist()
    assert [category["id"] for category in truth["categories"]] == THINGS
    found = [(a["image_id"], a["category_id"], a["iscrowd"]) for a in truth["annotations"]]
    assert sorted(found) == [(1, 24, 0), (1, CAR, 1), (2, CAR, 0), (2, CAR, 0)]  # none in the third image
    for annotation in truth["annotations"]:
        ids = dataset.instance_ids(dataset.image_ids.index(annotation["image_id"]))
        mask = pycocotools.mask.decode(annotation["segmentation"]).astype(bool)
        (number,) = np.unique(ids[mask]).tolist()
        assert np.array_equal(ids == number, mask)
        assert annotation["area"] == mask.sum()
        rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert annotation["bbox"] == pycocotools.mask.toBbox(rle).tolist()


def test_the_targets_as_detections_are_perfect(shared, tmp_path):
    dataset = opened(with_images(shared, tmp_path), "instance", "val")
    metric = CityscapesInstanceMetric(dataset.category_ids)
    for index, image_id in enumerate(dataset.image_ids):
        sample = dataset.read(index)
        scores = torch.ones(len(sample["labels"]))
        found = ImageDetections(scores, sample["labels"], sample["boxes"], compressed(sample["masks"].bool()))
        metric.update([image_id], [dataset.instance_ids(index)], [found])
    assert metric.compute()["AP"] == 1


def test_items_are_augmented_with_their_masks(tmp_path):
    dataset = opened(small(tmp_path), "panoptic", "val", val_resize=24, max_size=48)
    image, target = dataset[0]
    assert image.shape == (3, 24, 48)
    assert target.masks is not None
    assert target.masks.shape == (2, 24, 48)
    assert target.masks.sum(0).eq(1).all()
    assert target.original_size == SIZE


def test_splits_of_another_name(tmp_path):
    dataset = opened(small(tmp_path), split="val", val="train")
    assert len(dataset) == 2


def test_opening_reads_no_annotation(tmp_path):
    root = small(tmp_path)
    for file in root.glob("gtFine/*/*/*.png"):
        file.write_bytes(b"")
    dataset = opened(root)
    with pytest.raises(DqdetError, match=r"aachen_000000_000019_gtFine_instanceIds.png: cannot be read as an image"):
        dataset.read(0)


def fault(root: Path, **options) -> str:
    with pytest.raises(DqdetError) as raised:
        opened(root, **options)
    return str(raised.value)


def test_missing_folders_are_named_together(tmp_path):
    with pytest.raises(DqdetError, match=r"data\.root is not set"):
        open_dataset(DataConfig(kind="cityscapes", task="instance"), "train")
    message = fault(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "no folder leftImg8bit (" in message
    assert "no folder gtFine (" in message
    small(tmp_path)
    shutil.rmtree(tmp_path / "gtFine" / "val")
    message = fault(tmp_path, split="val")
    assert "no folder gtFine/val (" in message
    assert "leftImg8bit" not in message
    assert "no folder leftImg8bit/dev (" in fault(tmp_path, train="dev")
    shutil.rmtree(tmp_path / "gtFine")
    assert "no folder gtFine (unpack gtFine_trainvaltest.zip" in fault(tmp_path)


def test_missing_files_are_named_together(tmp_path):
    root = small(tmp_path)
    (root / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png").unlink()
    (root / "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png").unlink()
    message = fault(root)
    assert "1 of 2 images are missing: ulm/ulm_000001_000019_leftImg8bit.png" in message
    assert "1 of 2 annotations are missing: aachen/aachen_000000_000019_gtFine_instanceIds.png" in message
    for file in [*root.glob("*/val/*/*.png")]:
        file.unlink()
    assert "has no files */*_leftImg8bit.png" in fault(root, split="val")


def test_maps_that_cannot_be_used_are_named_together(tmp_path):
    root = small(tmp_path)
    annotations = root / "gtFine/train"
    stuff_object = 7001
    wrong = np.array([[0, 34, stuff_object, 34000, CAR * 1000]], dtype=np.uint16)
    PIL.Image.fromarray(wrong).save(annotations / "aachen/aachen_000000_000019_gtFine_instanceIds.png")
    PIL.Image.new("RGB", SIZE[::-1]).save(annotations / "ulm/ulm_000001_000019_gtFine_instanceIds.png")
    dataset = opened(root)
    for call in (dataset.panoptic, dataset.read, dataset.instance_ids):
        with pytest.raises(DqdetError, match=r"5 x 1 not 24 x 12 pixels .* ids 34, 7001, 34000;"):
            call(0)
    with pytest.raises(DqdetError) as raised:
        dataset.ground_truth()
    message = str(raised.value)
    assert "aachen_000000_000019_gtFine_instanceIds.png: has 5 x 1 not 24 x 12" in message
    assert "ulm_000001_000019_gtFine_instanceIds.png: is a picture (RGB)" in message


def test_a_damaged_image_is_named(tmp_path):
    root = small(tmp_path)
    dataset = opened(root)
    file = root / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DqdetError, match=r"ulm_000001_000019_leftImg8bit.png: cannot be read as an image"):
        dataset.read(1)
