"""Whatever becomes of a valid annotation file, data set and metrics work or say in one line why they do not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import bounded, damaged, documents, examples, mutated

from dqdet.config import Config, resolve
from dqdet.data import check_files, open_dataset
from dqdet.formats.rle import encode
from dqdet.training.task_metrics import make_metric
from dqdet.types import ImageDetections, RleMasks, Track

SIZE = (40, 60)
RLE = {"size": [40, 60], "counts": [200 + 4, *([6, 34] * 9), 6, 2400 - 204 - 6 * 10 - 34 * 9]}
BOX = {"bbox": [5, 4, 10, 6], "area": 60, "iscrowd": 0}
COCO = {
    "info": {},
    "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in (1, 2)],
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[5, 4, 15, 4, 15, 10, 5, 10]], **BOX},
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": RLE, **BOX},
        {"id": 3, "image_id": 2, "category_id": 7, "segmentation": RLE, **BOX, "iscrowd": 1},
    ],
}
SEGMENTS = [{"id": 9, "category_id": 3, "iscrowd": 0}, {"id": 300, "category_id": 7, "iscrowd": 0}]
PANOPTIC = {
    "images": COCO["images"],
    "categories": [{"id": 7, "name": "cat", "isthing": 1, "color": [1, 2, 3]}, {"id": 3, "name": "sky", "isthing": 0}],
    "annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": SEGMENTS} for i in (1, 2)],
}
VIDEO = {
    "videos": [{"id": 4, "height": 40, "width": 60, "length": 2, "file_names": ["v/1.png", "v/2.png"]}],
    "categories": COCO["categories"],
    "annotations": [
        {"id": 1, "video_id": 4, "category_id": 3, "iscrowd": 0, "segmentations": [RLE, None], "areas": [60, None]},
        {"id": 2, "video_id": 4, "category_id": 7, "segmentations": [None, [[5, 4, 15, 4, 15, 10]]]},
    ],
}
PRESETS = {
    "detection": "scenes_tiny",
    "instance": "scenes_tiny_panoptic",
    "panoptic": "scenes_tiny_panoptic",
    "video": "scenes_tiny_video",
}

FOUND = ImageDetections(
    torch.tensor([0.5]),
    torch.tensor([0]),
    torch.tensor([[5.0, 4, 15, 10]]),
    RleMasks(SIZE, encode(torch.ones(1, *SIZE, dtype=torch.bool))),
)
FOUND_TRACK = Track(0, 0.5, {0: encode(torch.ones(1, *SIZE, dtype=torch.bool))[0]})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All images and maps; only the annotation files change."""
    root = tmp_path_factory.mktemp("data")
    image = PIL.Image.new("RGB", SIZE[::-1])
    for folder in ("train", "train/JPEGImages/v", "annotations/panoptic_train"):
        (root / folder).mkdir(parents=True)
    for number in (1, 2):
        image.save(root / f"train/{number}.png")
        image.save(root / f"train/JPEGImages/v/{number}.png")
        segments = np.full((*SIZE, 3), [9, 0, 0], dtype=np.uint8)
        segments[4:10, 5:15] = [44, 1, 0]
        PIL.Image.fromarray(segments).save(root / f"annotations/panoptic_train/{number}.png")
    return root


def config(root: Path, task: str, kind: str = "coco") -> Config:
    data = {"kind": kind, "task": task, "root": str(root), "val": "train", "workers": 0}
    sizes = {"resize": [32], "val_resize": 32, "max_size": 64, "window": None, "jitter": None, "crop": False}
    return resolve(PRESETS[task], {"data": data | sizes})


def use(config: Config) -> None:
    """What a training and its validation do with a data set, without a model."""
    for split in ("train", "val"):
        dataset = open_dataset(config.data, split)
        check_files([dataset])
        for index in range(min(len(dataset), 4)):
            _ = dataset[index]
    options = {"classes": dataset.classes, "category_ids": dataset.category_ids, "stuff": list(dataset.stuff)}
    metric = make_metric(config.model_copy(update=options), dataset)
    if config.data.task != "panoptic":
        metric.update([dataset.image_ids[0]], [[FOUND_TRACK] if config.data.task == "video" else FOUND])
        metric.compute()


@pytest.mark.parametrize(
    ("kind", "task", "file", "document"),
    [
        ("coco", "detection", "annotations/instances_train.json", COCO),
        ("coco", "instance", "annotations/instances_train.json", COCO),
        ("coco", "panoptic", "annotations/panoptic_train.json", PANOPTIC),
        ("youtube_vis", "video", "train.json", VIDEO),
    ],
)
def test_annotation_files(root, kind, task, file, document):
    options = config(root, task, kind)
    for other in (root / "annotations").glob("*.json"):
        other.unlink()
    (root / file).write_text(json.dumps(document))
    use(options)  # the document itself is right

    @given(content=documents(document))
    @examples(120)
    def fuzz(content):
        (root / file).write_bytes(content)
        with bounded():
            use(options)

    try:
        fuzz()
    finally:
        (root / file).unlink()


def test_instances_beside_panoptic_files(root):
    options = config(root, "panoptic")
    (root / "annotations/panoptic_train.json").write_text(json.dumps(PANOPTIC))
    things = COCO | {"categories": COCO["categories"][:1], "annotations": COCO["annotations"][1:]}

    @given(content=documents(things))
    @examples(60)
    def fuzz(content):
        (root / "annotations/instances_train.json").write_bytes(content)
        with bounded():
            use(options)

    try:
        fuzz()
    finally:
        (root / "annotations/instances_train.json").unlink()


def numbers(change: list[list[int]]) -> np.ndarray:
    ids = np.full(SIZE, 23, dtype=np.uint16)
    ids[4:, :20] = 26001
    for row, column, number in change:
        ids[row:, column:] = number
    return ids


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_cityscapes(tmp_path, task):
    options = config(tmp_path, task, "cityscapes")
    image = tmp_path / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png"
    annotation = tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    for file in (image, annotation):
        file.parent.mkdir(parents=True)
    changes = st.lists(st.tuples(st.integers(0, 39), st.integers(0, 59), st.integers(0, 2**16 - 1)), max_size=3)

    @given(change=changes, turned=st.booleans(), damage=st.data())
    @examples(60)
    def fuzz(change, turned, damage):
        PIL.Image.new("RGB", SIZE[::-1]).save(image)
        ids = numbers(change)
        PIL.Image.fromarray(ids.T if turned else ids).save(annotation)
        for file in (image, annotation):
            if damage.draw(st.integers(0, 3)) == 0:
                file.write_bytes(damage.draw(damaged(file.read_bytes())))
        with bounded():
            use(options)

    fuzz()


def test_a_mutation_changes_the_document():
    seen = []

    @given(document=mutated(COCO))
    @examples(50)
    def fuzz(document):
        seen.append(document != COCO)

    before = copy.deepcopy(COCO)
    fuzz()
    assert sum(seen) > 0.8 * len(seen)
    assert before == COCO
