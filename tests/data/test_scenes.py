"""Generated scenes: what is drawn is what the annotations say."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_dilation
from torchvision.ops import masks_to_boxes

from dqdet.config import DataConfig, ScenesConfig
from dqdet.data import open_dataset
from dqdet.data.scenes.scene import CLASSES, KINDS, STUFF, draw_scene, render
from dqdet.formats.panoptic import segment_faults

numbers = st.integers(0, 10**6)


def scenes(split: str = "train", size: int = 128, seed: int = 0, images: int = 300, **options):
    config = ScenesConfig(size=size, train_images=images, val_images=images, seed=seed)
    return open_dataset(DataConfig(kind="scenes", scenes=config, **options), split)


def pixels(picture: PIL.Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_items_depend_on_seed_split_and_index_alone():
    forwards, backwards = scenes(), scenes()
    expected = [forwards.read(i) for i in range(5)]
    for i in reversed(range(5)):
        again = backwards.read(i)
        assert again["image"].equal(expected[i]["image"])
        assert torch.equal(again["boxes"], expected[i]["boxes"])
    pictures = {
        scenes(split, seed=seed).read(i)["image"].numpy().tobytes()
        for split in ("train", "val")
        for seed in (0, 1)
        for i in range(5)
    }
    assert len(pictures) == 20


@settings(max_examples=30)
@given(numbers)
def test_boxes_enclose_the_visible_pixels(seed):
    dataset = scenes(seed=seed, images=1)
    scene = draw_scene(seed, 0, 0)
    _, segments = render(scene, 128)
    masks = torch.tensor(segments[None] == np.arange(len(scene.regions), 255)[:, None, None])
    visible = masks.any(2).any(1)
    expected = masks_to_boxes(masks[visible]) + torch.tensor([0, 0, 1, 1])
    sample = dataset.read(0)
    assert torch.equal(sample["boxes"], expected)
    things = [thing for thing, seen in zip(scene.objects, visible.tolist(), strict=False) if seen]
    assert [dataset.classes[label] for label in sample["labels"]] == [thing.category for thing in things]


@settings(max_examples=20)
@given(numbers)
def test_masks_of_a_picture_are_what_is_drawn_last(seed):
    """Of things by their number, of stuff by its name."""
    detection, instance, panoptic = (scenes(seed=seed, images=1, task=t) for t in ("detection", "instance", "panoptic"))
    assert "masks" not in detection.read(0)
    scene = draw_scene(seed, 0, 0)
    _, segments = render(scene, 128)
    things = [(thing.category, segments == i) for i, thing in enumerate(scene.objects, start=len(scene.regions))]
    names = [region.name for region in scene.regions]
    numbers = {name: [i for i, other in enumerate(names) if other == name] for name in names}
    stuff = [(name, np.isin(segments, same)) for name, same in numbers.items()]
    for dataset, expected in ((instance, things), (panoptic, stuff + things)):
        sample = dataset.read(0)
        found = [dataset.classes[label] for label in sample["labels"]]
        seen = [(name, mask) for name, mask in expected if mask.any()]
        assert found == [name for name, _ in seen]
        assert np.array_equal(sample["masks"].numpy(), [mask for _, mask in seen])
        assert torch.equal(sample["boxes"], masks_to_boxes(sample["masks"]) + torch.tensor([0, 0, 1, 1]))
        assert sample["image"].equal(detection.read(0)["image"])
    assert panoptic.read(0)["masks"].sum(0).eq(1).all()


def test_panoptic_maps_say_what_the_targets_say():
    dataset = scenes("val", images=20, task="panoptic")
    categories = {category["id"]: category for category in dataset.panoptic_categories}
    assert list(categories) == dataset.category_ids
    assert [category["name"] for category in categories.values()] == dataset.classes
    assert [c["name"] for c in categories.values() if not c["isthing"]] == list(dataset.stuff) == STUFF
    assert len({tuple(category["color"]) for category in categories.values()}) == len(categories)
    for index in range(len(dataset)):
        panoptic, sample = dataset.panoptic(index), dataset.read(index)
        assert not segment_faults(panoptic, categories)
        labels = np.zeros((128, 128), dtype=int)
        for label, mask in zip(sample["labels"].tolist(), sample["masks"].numpy().astype(bool), strict=True):
            labels[mask] = dataset.category_ids[label]
        of_segment = {segment["id"]: segment["category_id"] for segment in panoptic.segments}
        assert np.array_equal(np.vectorize(of_segment.get)(panoptic.ids), labels)
        stuff = [number for number in of_segment.values() if not categories[number]["isthing"]]
        assert len(stuff) == len(set(stuff))


@settings(max_examples=20)
@given(numbers, st.data())
def test_segments_are_where_the_objects_are_drawn(seed, data):
    """Leaving out an object changes the picture there and nowhere else."""
    scene = draw_scene(seed)
    picture, segments = render(scene, 128)
    gone = data.draw(st.integers(0, len(scene.objects) - 1))
    kept = [thing for i, thing in enumerate(scene.objects) if i != gone]
    without, _ = render(replace(scene, objects=kept), 128)
    changed = np.abs(pixels(picture) - pixels(without)).max(2) > 0
    segment = segments == len(scene.regions) + gone
    elsewhere = changed & ~binary_dilation(segment, np.ones((3, 3)))  # smooth edges: a pixel around it
    assert elsewhere.sum() <= 4  # slivers thinner than a pixel, between objects that hide the rest
    if segment.sum() > 20:
        assert changed[segment].mean() > 0.9


def test_a_scene_is_the_same_at_any_size():
    for seed in range(10):
        small, large = scenes(seed=seed).read(0), scenes(seed=seed, size=256).read(0)
        assert torch.equal(small["labels"], large["labels"])
        assert (small["boxes"] * 2 - large["boxes"]).abs().max() <= 4


def test_objects_are_few_and_large_enough_to_be_found():
    dataset = scenes()
    seen = set()
    annotations = dataset.ground_truth()["annotations"]
    for annotation in annotations:
        seen.add(annotation["category_id"])
        assert annotation["area"] >= 40
        assert min(annotation["bbox"][2:]) >= 6
    assert seen == set(dataset.category_ids)
    counts = np.bincount([annotation["image_id"] for annotation in annotations])[1:]
    assert len(counts) == len(dataset)
    assert min(counts) >= 2
    assert max(counts) <= 8


def test_kinds_of_scene_differ_in_what_appears_and_where():
    categories: dict[str, set[str]] = {}
    heights: dict[str, list[float]] = defaultdict(list)
    for kind in KINDS:
        drawn = [thing for seed in range(40) for thing in kind(np.random.default_rng(seed)).objects]
        categories[kind.__name__] = {thing.category for thing in drawn}
        for thing in drawn:
            heights[thing.category].append(thing.y)
    assert len({frozenset(names) for names in categories.values()}) == len(KINDS)
    assert all(len(names) <= 3 for names in categories.values())
    assert set().union(*categories.values()) == set(CLASSES)
    drawn_stuff = [region.name for kind in KINDS for region in kind(np.random.default_rng(0)).regions]
    assert set(drawn_stuff) == set(STUFF)
    for upper in ("kite", "balloon"):
        for lower in ("car", "boat", "sheep", "plate", "cup"):
            assert np.mean(heights[upper]) + 0.1 < np.mean(heights[lower])


def test_the_horizontal_flip_turns_picture_and_boxes():
    dataset = scenes(resize=[128], crop=False)
    plain = scenes(resize=[128], crop=False, flip=False)
    image, target = plain[0]
    for epoch in range(20):
        dataset.set_epoch(epoch)
        flipped, other = dataset[0]
        if not torch.equal(flipped, image):
            break
    assert torch.equal(flipped, image.flip(-1))
    torch.testing.assert_close(other.boxes[:, 0], 1 - target.boxes[:, 0])
    torch.testing.assert_close(other.boxes[:, 1:], target.boxes[:, 1:])


@pytest.mark.parametrize("task", ["detection", "instance", "panoptic"])
def test_ground_truth_fits_the_official_evaluation(capsys, task):
    dataset = scenes("val", images=12, task=task)
    truth = dataset.ground_truth()
    assert [image["id"] for image in truth["images"]] == dataset.image_ids
    assert [category["name"] for category in truth["categories"]] == CLASSES
    reference = COCO()
    reference.dataset = truth
    reference.createIndex()
    results = []
    for index, image_id in enumerate(dataset.image_ids):
        sample = dataset.read(index)
        for i, label in enumerate(sample["labels"].tolist()):
            x0, y0, x1, y1 = sample["boxes"][i].tolist()
            found = {"image_id": image_id, "category_id": dataset.category_ids[label], "score": 0.9}
            if task == "detection":
                found["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            else:
                found["segmentation"] = pycocotools.mask.encode(np.asfortranarray(sample["masks"][i].numpy()))
            results.append(found)
    evaluation = COCOeval(reference, reference.loadRes(results), "bbox" if task == "detection" else "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert evaluation.stats[0] == pytest.approx(1.0)
    assert len(truth["annotations"]) == sum(found["category_id"] <= len(CLASSES) for found in results)
