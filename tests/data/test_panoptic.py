"""COCO's panoptic format: against the official conversion, and every kind of bad input."""

import copy
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import opening
import PIL.Image
import pycocotools.mask
import pytest
import torch

from dqdet.config import resolve
from dqdet.data import panoptic
from dqdet.errors import DqdetError
from dqdet.formats.panoptic import read_ids
from dqdet.metrics.panoptic import PanopticMetric
from dqdet.predict.predictor import Predictor
from dqdet.predict.sources import predict
from dqdet.runs.folder import load_folder
from dqdet.training.engine import train
from dqdet.training.evaluation import evaluate
from dqdet.types import PanopticMap

opened = partial(opening.opened, task="panoptic")
error_of = partial(opening.error_of, task="panoptic")

CATEGORIES = [
    {"id": 9, "name": "sky", "isthing": 0, "supercategory": "outdoor"},
    {"id": 2, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
    {"id": 5, "name": "grass", "isthing": 0},
]
CAT, CROWD, SKY, GRASS, MORE_SKY = 1000, 300, 7, 70000, 16777215


def ids() -> np.ndarray:
    """A map of 30 x 20 pixels: sky above, grass below, two cats (one is a group), a second piece of sky, void."""
    segments = np.full((20, 30), SKY)
    segments[10:] = GRASS
    segments[4:12, 5:9] = CAT
    segments[8:15, 20:28] = CROWD
    segments[16:, :4] = MORE_SKY
    segments[19, 29] = 0
    return segments


def write_map(file: Path, segments: np.ndarray) -> None:
    colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1).astype(np.uint8)
    PIL.Image.fromarray(colours).save(file)


def annotation(image_id: int = 1) -> dict:
    categories = {GRASS: 5, SKY: 9, CAT: 2, MORE_SKY: 9, CROWD: 2}
    segments = [{"id": i, "category_id": c, "iscrowd": int(i == CROWD)} for i, c in categories.items()]
    return {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}


def write(root: Path, images: int = 1, maps: str = "annotations/panoptic_train", **parts: list) -> Path:
    """A training split; returns its annotation file."""
    numbers = range(1, images + 1)
    for folder in ("train", "annotations", maps):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        PIL.Image.new("RGB", (30, 20)).save(root / f"train/{number}.jpg")
        write_map(root / maps / f"{number}.png", ids())
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in numbers],
        "annotations": [annotation(i) for i in numbers],
        "categories": CATEGORIES,
    }
    file = root / "annotations/panoptic_train.json"
    file.write_text(json.dumps(document | parts))
    return file


@pytest.fixture
def sample(shared, tmp_path) -> Path:
    """The official sample in the layout of the downloaded data set."""
    source = shared / "data/panoptic_sample"
    shutil.copytree(source / "images", tmp_path / "val2017")
    shutil.copytree(source / "annotations/panoptic", tmp_path / "annotations/panoptic_val2017")
    shutil.copy(source / "annotations/panoptic.json", tmp_path / "annotations/panoptic_val2017.json")
    return tmp_path


def test_official_sample(sample, shared):
    dataset = opened(sample, "val")
    categories = json.loads((shared / "data/panoptic_sample/categories.json").read_text())
    assert dataset.image_ids == [142238, 439180]
    assert dataset.classes == [category["name"] for category in categories]
    assert dataset.category_ids == [category["id"] for category in categories]
    assert dataset.stuff == [category["name"] for category in categories if not category["isthing"]]
    assert [c["color"] for c in dataset.panoptic_categories] == [c["color"] for c in categories]
    assert len(dataset.stuff) == 53


def test_masks_of_the_sample_are_those_of_the_official_conversion(sample, shared):
    """The same objects, crowds apart, with the same masks and boxes, in the same order."""
    document = json.loads((shared / "data/panoptic_sample/annotations/detection_format.json").read_text())
    dataset = opened(sample, "val")
    for index, image_id in enumerate(dataset.image_ids):
        expected = [a for a in document["annotations"] if a["image_id"] == image_id and not a["iscrowd"]]
        read = dataset.read(index)
        assert [dataset.category_ids[label] for label in read["labels"]] == [a["category_id"] for a in expected]
        masks = pycocotools.mask.decode([a["segmentation"] for a in expected]).transpose(2, 0, 1)
        assert np.array_equal(read["masks"], masks)
        boxes = torch.tensor([a["bbox"] for a in expected], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        assert torch.equal(read["boxes"], boxes)


def test_ground_truth_of_the_sample_is_the_official_conversion_of_its_things(sample, shared):
    document = json.loads((shared / "data/panoptic_sample/annotations/detection_format.json").read_text())
    truth = opened(sample, "val").ground_truth()
    things = {category["id"] for category in truth["categories"]}
    assert len(things) == 80
    keys = ("image_id", "category_id", "area", "iscrowd", "bbox", "segmentation")
    expected = [{key: a[key] for key in keys} for a in document["annotations"] if a["category_id"] in things]
    found = [{key: a[key] for key in keys} for a in truth["annotations"]]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert sum(a["iscrowd"] for a in found) == 3


@pytest.mark.parametrize("predictions", ["ground_truth_as_prediction", "predictions"])
def test_the_maps_of_the_sample_give_the_official_quality(sample, shared, predictions):
    folder = shared / "data/panoptic_sample"
    folder = folder / ("predictions" if predictions == "predictions" else "annotations")
    segments = {
        a["image_id"]: PanopticMap(read_ids(folder / "panoptic" / a["file_name"]), a["segments_info"])
        for a in json.loads((folder / "panoptic.json").read_text())["annotations"]
    }
    dataset = opened(sample, "val")
    metric = PanopticMetric(dataset.panoptic_categories)
    for index, image_id in enumerate(dataset.image_ids):
        metric.update([image_id], [dataset.panoptic(index)], [segments[image_id]])
    metrics = metric.compute()
    expected = json.loads((shared / "data/panoptic_sample/expected.json").read_text())[predictions]
    for kind, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for name in ("PQ", "SQ", "RQ"):
            assert metrics[name + suffix] == pytest.approx(expected[kind][name], abs=1e-9)


def test_items_go_through_the_augmentation(sample):
    (sample / "train2017").symlink_to(sample / "val2017")
    for name in ("panoptic_{}.json", "panoptic_{}"):
        (sample / "annotations" / name.format("train2017")).symlink_to(sample / "annotations" / name.format("val2017"))
    dataset = opened(sample, jitter=(0.5, 1.5), window=(160, 160))
    for epoch in range(3):
        dataset.set_epoch(epoch)
        image, target = dataset[0]
        assert target.masks.shape == (len(target.labels), *image.shape[1:])
        assert target.masks.flatten(1).any(1).all()
        assert target.masks.sum(0).max() == 1  # segments do not overlap
        stuff = [label for label in target.labels.tolist() if dataset.classes[label] in dataset.stuff]
        assert len(stuff) == len(set(stuff))


@pytest.mark.parametrize("maps", ["annotations/panoptic_train", "panoptic_train"])
def test_things_stuff_and_crowds(tmp_path, maps):
    write(tmp_path, maps=maps)
    dataset = opened(tmp_path)
    assert dataset.classes == ["cat", "grass", "sky"]
    assert dataset.category_ids == [2, 5, 9]
    assert dataset.stuff == ["grass", "sky"]
    assert dataset.panoptic_categories[0] == {"id": 2, "name": "cat", "isthing": 1, "color": [1, 2, 3]}
    read = dataset.read(0)
    segments = ids()
    assert read["labels"].tolist() == [1, 2, 0]
    expected = [segments == GRASS, (segments == SKY) | (segments == MORE_SKY), segments == CAT]
    assert np.array_equal(read["masks"].bool(), np.stack(expected))
    assert read["boxes"].tolist() == [[0, 10, 30, 20], [0, 0, 30, 20], [5, 4, 9, 12]]


def test_the_two_pieces_of_sky_are_one_segment_of_the_map(tmp_path):
    write(tmp_path)
    found = opened(tmp_path).panoptic(0)
    assert [(s["id"], s["category_id"], s["iscrowd"]) for s in found.segments] == [
        (GRASS, 5, 0),
        (SKY, 9, 0),
        (CAT, 2, 0),
        (CROWD, 2, 1),
    ]
    assert np.array_equal(found.ids, np.where(ids() == MORE_SKY, SKY, ids()))


def test_the_official_file_of_instances_is_the_ground_truth_of_things(tmp_path):
    write(tmp_path)
    assert [a["iscrowd"] for a in opened(tmp_path).ground_truth()["annotations"]] == [0, 1]
    size = {"height": 20, "width": 30}
    box = {"bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0, "category_id": 2, "segmentation": [[0, 0, 3, 0, 3, 3]]}
    instances = {
        "images": [{"id": 1, "file_name": "1.jpg", **size}, {"id": 8, "file_name": "8.jpg", **size}],
        "annotations": [{"id": 11, "image_id": 1, **box}, {"id": 12, "image_id": 8, **box}],
        "categories": [{"id": 2, "name": "cat"}],
    }
    file = tmp_path / "annotations/instances_train.json"
    file.write_text(json.dumps(instances))
    truth = opened(tmp_path).ground_truth()
    assert truth["images"] == instances["images"][:1]
    assert truth["annotations"] == instances["annotations"][:1]
    bare = {key: value for key, value in instances["annotations"][0].items() if key not in ("area", "iscrowd")}
    file.write_text(json.dumps(instances | {"annotations": [bare]}))
    assert opened(tmp_path).ground_truth()["annotations"] == [bare | {"area": 3, "iscrowd": 0}]  # pixels of the mask

    file.write_text(json.dumps(instances | {"categories": [{"id": 2, "name": "cats"}, {"id": 4, "name": "dog"}]}))
    with pytest.raises(DqdetError) as caught:
        opened(tmp_path).ground_truth()
    assert str(caught.value) == (
        f"{file}: its 2 categories are not the 1 things of {tmp_path}/annotations/panoptic_train.json "
        "(differing ids: 2, 4); correct or remove it"
    )
    of_others = {name: instances[name][1:] for name in ("images", "annotations")}
    file.write_text(json.dumps(instances | of_others))
    with pytest.raises(DqdetError, match=r"lacks 1 of 1 images of .*: 1; download it again or remove it$"):
        opened(tmp_path).ground_truth()


def test_no_maps(tmp_path):
    file = write(tmp_path)
    shutil.rmtree(tmp_path / "annotations/panoptic_train")
    assert error_of(tmp_path) == (
        f"{file}: the folder with its PNG maps is missing (unpack panoptic_train.zip); "
        f"looked for {tmp_path}/annotations/panoptic_train, {tmp_path}/panoptic_train"
    )


def test_annotations_of_boxes_are_no_panoptic_ones(tmp_path):
    file = write(tmp_path)
    file.rename(file.with_name("instances_train.json"))
    assert error_of(tmp_path).startswith(
        f"{tmp_path}: no annotations of the train split; looked for annotations/panoptic_train2017.json, "
    )


def test_missing_files_are_listed_together(tmp_path):
    file = write(tmp_path, images=3)
    (tmp_path / "train/2.jpg").unlink()
    (tmp_path / "annotations/panoptic_train/1.png").unlink()
    (tmp_path / "annotations/panoptic_train/3.png").unlink()
    advice = "add them or remove their records"
    assert error_of(tmp_path) == (
        f"{file}: 1 of 3 images are missing in {tmp_path}/train: 2.jpg; {advice}; "
        f"2 of 3 maps are missing in {tmp_path}/annotations/panoptic_train: 1.png, 3.png; {advice}"
    )


def changed(**changes) -> dict:
    return annotation() | changes


def with_segment(**segment) -> dict:
    return changed(segments_info=[*annotation()["segments_info"], {"id": 44, "category_id": 2, **segment}])


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"annotations": [changed(file_name=None)]}, "annotation of image 1 has no file_name"),
        ({"annotations": []}, "image 1 has no annotation"),
        (
            {"annotations": [annotation(), annotation()]},
            "annotation of image 1 has an image_id that is there already",
        ),
        ({"annotations": [annotation(), annotation(5)]}, "annotation of image 5 is of no listed image"),
        (
            {"annotations": [changed(segments_info=None)]},
            "annotation of image 1 has no segments_info, a list of segments with ids",
        ),
        (
            {"annotations": [with_segment(category_id=77)]},
            "annotation of image 1 has segment 44 of the unknown category_id 77",
        ),
        ({"annotations": [with_segment(id=CAT)]}, f"annotation of image 1 has segment {CAT} twice"),
        (
            {"annotations": [with_segment(id=0)]},
            "annotation of image 1 has segment 0, whose id is not in 1..16777215",
        ),
        (
            {"categories": [*CATEGORIES, {"id": 4, "name": "dog"}]},
            "category 4 has no isthing, which is 0 or 1",
        ),
        (
            {"categories": [*CATEGORIES[1:], {"id": 9, "name": "grass", "isthing": 1}]},
            "category 5 has the name of another one: 'grass'; category 9 has the name of another one: 'grass'",
        ),
    ],
)
def test_bad_entry(tmp_path, parts, fault):
    file = write(tmp_path, **copy.deepcopy(parts))
    if "annotation of image 5" in fault:
        write_map(tmp_path / "annotations/panoptic_train/5.png", ids())
    count = fault.count(" has ") if "categories" in parts else 1
    assert error_of(tmp_path) == f"{file}: bad entries ({count}): {fault}; correct or remove them"


def test_faults_of_maps_are_listed_together(tmp_path):
    """Too many segments in the PNG of the first image, too few in that of the second, another size, no PNG."""
    file = write(tmp_path, images=4)
    maps = tmp_path / "annotations/panoptic_train"
    more, fewer = ids(), ids()
    more[0, :5] = 5
    fewer[fewer == CAT] = SKY
    write_map(maps / "1.png", more)
    write_map(maps / "2.png", fewer)
    write_map(maps / "3.png", ids().T)
    (maps / "4.png").write_text("no picture")
    advice = f"correct the PNG or {file}"
    message = error_of(tmp_path)
    assert message.startswith(
        f"{maps}/1.png: image 1: segment 5 is in the PNG but not in the JSON; {advice}; "
        f"{maps}/2.png: image 2: segment {CAT} is in the JSON but not in the PNG; {advice}; "
        f"{maps}/3.png: image 3: the PNG has 20 x 30 pixels, the image 30 x 20; {advice}; "
        f"{maps}/4.png: cannot be read as a panoptic PNG ("
    )


def test_maps_of_large_data_sets_are_checked_when_they_are_read(tmp_path, monkeypatch):
    file = write(tmp_path, images=2)
    write_map(tmp_path / "annotations/panoptic_train/2.png", ids().T)
    monkeypatch.setattr(panoptic, "SMALL", 1)
    dataset = opened(tmp_path)
    assert len(dataset.read(0)["labels"]) == 3
    for read in (dataset.read, dataset.panoptic, dataset.__getitem__):
        with pytest.raises(DqdetError) as caught:
            read(1)
        assert str(caught.value) == (
            f"{tmp_path}/annotations/panoptic_train/2.png: image 2: the PNG has 20 x 30 pixels, the image 30 x 20; "
            f"correct the PNG or {file}"
        )


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (
            [*CATEGORIES[:2], {"id": 5, "name": "road", "isthing": 0}],
            "its 3 classes are not the 3 of the model (only in the data: road; only in the model: grass)",
        ),
        (
            [*CATEGORIES[:2], {"id": 5, "name": "grass", "isthing": 1}],
            "grass: stuff in this or the training split, but not in both",
        ),
    ],
)
def test_splits_that_disagree_about_categories_are_not_trained_on(tmp_path, categories, message):
    write(tmp_path)
    for name in ("train", "annotations/panoptic_train"):
        shutil.copytree(tmp_path / name, tmp_path / name.replace("train", "val"))
    document = json.loads((tmp_path / "annotations/panoptic_train.json").read_text())
    (tmp_path / "annotations/panoptic_val.json").write_text(json.dumps(document | {"categories": categories}))
    config = resolve("scenes_tiny_panoptic", {"data.kind": "coco", "data.root": str(tmp_path), "train.batch": 1})
    with pytest.raises(DqdetError) as caught:
        train(config, tmp_path / "run")
    assert str(caught.value) == f"data.root={tmp_path}, validation split: {message}"


def test_maps_are_written_and_read_without_change(tmp_path):
    write(tmp_path)
    assert np.array_equal(read_ids(tmp_path / "annotations/panoptic_train/1.png"), ids())


@pytest.mark.parametrize("instances", [False, True], ids=["maps alone", "with a file of instances"])
@pytest.mark.parametrize("isthing", [0, 1], ids=["stuff", "things"])
def test_data_of_stuff_or_of_things_alone_is_learned_measured_and_found(isthing, instances, tmp_path):
    write(tmp_path, images=2, categories=[category | {"isthing": isthing} for category in CATEGORIES])
    for name in ("train", "annotations/panoptic_train"):
        shutil.copytree(tmp_path / name, tmp_path / name.replace("train", "val"))
    shutil.copy(tmp_path / "annotations/panoptic_train.json", tmp_path / "annotations/panoptic_val.json")
    if instances:
        things = [{"id": category["id"], "name": category["name"]} for category in CATEGORIES if isthing]
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (1, 2)]
        document = {"images": images, "annotations": [], "categories": things}
        (tmp_path / "annotations/instances_val.json").write_text(json.dumps(document))
    small = {"model.hidden": 32, "model.heads": 2, "queries.count": 5, "loss.points": 64, "data.workers": 0}
    data = {"data.kind": "coco", "data.root": str(tmp_path), "data.resize": [32], "data.val_resize": 32}
    train(resolve("scenes_tiny_panoptic", small | data | {"train.batch": 2, "train.steps": 2}), tmp_path / "run")
    metrics = evaluate(tmp_path / "run")
    assert metrics["PQ"] >= 0
    assert (metrics["PQ_things"] >= 0, metrics["PQ_stuff"] >= 0) == (isthing == 1, isthing == 0)
    assert (metrics["AP_things"] >= 0) == (isthing == 1 and not instances)
    assert metrics["mIoU"] >= 0
    assert predict(Predictor(*load_folder(tmp_path / "run")), [tmp_path / "val"], tmp_path / "out") == []
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert bool(results) == bool(isthing)
