"""COCO-format data: against pycocotools, and every kind of bad input with its whole message."""

import json
import logging
from pathlib import Path

import msgspec
import numpy as np
import PIL.Image
import pytest
import torch
from opening import error_of, opened
from pycocotools.coco import COCO

from dqdet.config import DataConfig
from dqdet.data import open_dataset
from dqdet.errors import DqdetError
from dqdet.formats.records import read_document

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def record(image_id: int, **changes) -> dict:
    return {"id": image_id, "file_name": f"{image_id}.png", "height": 40, "width": 60} | changes


def annotation(annotation_id: int, image_id: int = 1, **changes) -> dict:
    defaults = {"id": annotation_id, "image_id": image_id, "category_id": 3, "bbox": [10, 5, 20, 30]}
    return defaults | {"area": 600, "iscrowd": 0} | changes


def write(root: Path, document, layout: str = "images/train", files: tuple[str, ...] = ("1.png",)) -> Path:
    """A data set with one training split; returns its annotation file."""
    folder = root / layout
    folder.mkdir(parents=True)
    for name in files:
        PIL.Image.new("RGB", (60, 40), "teal").save(folder / name)
    file = folder / "_annotations.coco.json" if layout == "train" else root / "annotations/instances_train.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def document(**parts: list) -> dict:
    return {"images": [record(1)], "annotations": [annotation(1)], "categories": CATEGORIES} | parts


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("coco_real", "train", "instances_train2017.json"),
        ("coco_real", "val", "instances_val2017.json"),
        ("bccd", "train", "instances_train.json"),
        ("bccd", "val", "instances_val.json"),
    ],
)
def test_real_data_as_pycocotools_reads_it(shared, name, split, file):
    dataset = opened(shared / "data" / name, split)
    reference = COCO(shared / "data" / name / "annotations" / file)
    assert dataset.image_ids == sorted(reference.imgs)
    assert dataset.category_ids == sorted(reference.cats)
    assert dataset.classes == [reference.cats[number]["name"] for number in dataset.category_ids]
    for index, image_id in enumerate(dataset.image_ids):
        expected = [a for a in reference.imgToAnns[image_id] if not a["iscrowd"]]
        height, width = reference.imgs[image_id]["height"], reference.imgs[image_id]["width"]
        boxes = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample = dataset.read(index) if index < 5 else None
        start, stop = dataset.starts[index], dataset.starts[index + 1]
        np.testing.assert_allclose(dataset.boxes[start:stop], boxes.clip(0, [width, height] * 2), rtol=1e-6)
        labels = [dataset.category_ids[label] for label in dataset.labels[start:stop]]
        assert labels == [a["category_id"] for a in expected]
        if sample is not None:
            pixels = PIL.Image.open(dataset.images.folder / reference.imgs[image_id]["file_name"]).convert("RGB")
            np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), pixels)
            assert sample["image"].shape == (3, height, width)
            assert torch.equal(sample["boxes"], torch.tensor(dataset.boxes[start:stop]))
    assert dataset.ground_truth()["annotations"] == reference.dataset["annotations"]


def test_images_without_objects_are_kept_and_crowds_are_no_targets(shared):
    dataset = opened(shared / "data/coco_real")
    counts = np.diff(dataset.starts)
    assert len(dataset) == 167
    assert (counts == 0).sum() == 1
    assert counts.sum() == 1627 - 16
    assert sum(a["iscrowd"] for a in dataset.ground_truth()["annotations"]) == 16
    image, target = dataset[int(np.flatnonzero(counts == 0)[0])]
    assert image.shape[0] == 3
    assert target.boxes.shape == (0, 4)
    assert target.labels.shape == (0,)


def test_training_leaves_out_images_without_objects_on_demand(tmp_path):
    """As detectron2 with FILTER_EMPTY_ANNOTATIONS, those that show crowds alone too."""
    images, names = [record(number) for number in (1, 2, 3, 4)], [f"{number}.png" for number in (1, 2, 3, 4)]
    annotations = [annotation(1, 3), annotation(2, 4, iscrowd=1), annotation(3, 2), annotation(4, 2, iscrowd=1)]
    write(tmp_path, document(images=images, annotations=annotations), files=tuple(names))
    ids = {}
    for skip in (False, True):
        for split in ("train", "val"):
            config = DataConfig(root=str(tmp_path), val="train", skip_empty=skip)
            dataset = open_dataset(config, split)
            ids[skip, split] = dataset.image_ids
            assert [len(dataset[index][1].labels) for index in range(len(dataset))].count(1) == 2
    assert ids[True, "train"] == [2, 3]
    assert ids[False, "train"] == ids[False, "val"] == ids[True, "val"] == [1, 2, 3, 4]


def test_item_has_the_boxes_relative_to_the_resized_image(tmp_path):
    write(tmp_path, document())
    dataset = opened(tmp_path, "val", train="train", val="train", val_resize=80)
    image, target = dataset[0]
    assert image.shape == (3, 80, 120)
    assert image.dtype == torch.uint8
    torch.testing.assert_close(target.boxes, torch.tensor([[20 / 60, 20 / 40, 20 / 60, 30 / 40]]))
    assert target.labels.tolist() == [0]  # category 3 comes before 7
    assert (target.size, target.original_size, target.image_id) == ((80, 120), (40, 60), 1)
    assert target.masks is None


@pytest.mark.parametrize("layout", ["train", "images/train2017", "train2017"])
def test_layouts(tmp_path, layout):
    file = write(tmp_path, document(), layout)
    file.rename(file.with_name(file.name.replace("_train.", "_train2017.")))
    assert len(opened(tmp_path)) == 1


def test_the_named_split_is_preferred_to_the_usual_ones(tmp_path):
    write(tmp_path, document())
    other = tmp_path / "part"
    other.mkdir()
    PIL.Image.new("RGB", (60, 40)).save(other / "1.png")
    (other / "_annotations.coco.json").write_text(json.dumps(document(annotations=[])))
    assert len(opened(tmp_path, train="part").labels) == 0
    assert len(opened(tmp_path).labels) == 1


def test_ground_truth_has_what_evaluation_needs(tmp_path):
    bare = annotation(1)
    del bare["area"], bare["iscrowd"]
    write(tmp_path, document(annotations=[bare]))
    assert opened(tmp_path).ground_truth()["annotations"] == [bare | {"area": 600, "iscrowd": 0}]


def test_boxes_without_area_are_left_out_with_one_warning(tmp_path, caplog):
    boxes = {
        1: [10, 5, 20, 30],
        2: [10, 5, 0, 30],
        3: [-10, -10, 15, 15],  # partly outside: clipped
        4: [70, 5, 10, 10],
        5: [10, 5, 20, -3],
        6: [60, 0, 5, 5],
    }
    write(tmp_path, (whole := document(annotations=[annotation(i, bbox=box) for i, box in boxes.items()])))
    file = tmp_path / "annotations/instances_train.json"
    with caplog.at_level(logging.WARNING):
        dataset = opened(tmp_path)
    assert [entry.getMessage() for entry in caplog.records] == [
        f"{file}: 4 of 6 boxes have no area inside their image and are left out of the targets: annotations 2, 4, 5, 6"
    ]
    assert dataset.read(0)["boxes"].tolist() == [[10, 5, 30, 35], [0, 0, 5, 5]]
    assert dataset.ground_truth()["annotations"] == whole["annotations"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    write(tmp_path, document(images=[record(1, file_name=f"1.{suffix}")]))
    PIL.Image.new(mode, (60, 40)).save(tmp_path / f"images/train/1.{suffix}")
    dataset = opened(tmp_path, resize=[40])
    assert dataset.read(0)["image"].shape == (3, 40, 60)
    assert dataset[0][0].shape[0] == 3


def test_exif_orientation_is_not_applied_where_the_recorded_size_is_as_stored(tmp_path):
    write(tmp_path, document(images=[record(1, file_name="1.jpg")]))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    PIL.Image.new("RGB", (60, 40)).save(tmp_path / "images/train/1.jpg", exif=exif)
    assert opened(tmp_path).read(0)["image"].shape == (3, 40, 60)


def turned(root: Path, size: tuple[int, int], images: list[dict]) -> None:
    """Pictures of this size as stored, to be turned by a quarter."""
    write(root, document(images=images))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for image in images:
        PIL.Image.new("RGB", size).save(root / "images/train" / image["file_name"], exif=exif)


def test_exif_orientation_is_applied_where_the_recorded_size_is_that_of_the_turned_picture(tmp_path, caplog):
    turned(tmp_path, (40, 60), [record(1)])
    assert opened(tmp_path).read(0)["image"].shape == (3, 40, 60)
    assert caplog.records == []


def test_where_sizes_do_not_tell_pictures_are_turned_with_one_warning_for_the_data_set(tmp_path, caplog):
    turned(tmp_path, (50, 50), [record(number, width=50, height=50) for number in (1, 2, 3)])
    dataset = opened(tmp_path)
    for index in (0, 1, 2, 0):
        dataset.read(index)
    (warning,) = [entry.getMessage() for entry in caplog.records]
    assert warning.startswith(f"{tmp_path}/annotations/instances_train.json: images such as 1.png are turned upright")


def test_a_picture_that_has_neither_size_is_named(tmp_path):
    turned(tmp_path, (30, 20), [record(1)])
    assert "is 20 x 30 pixels, but image 1 of" in read_error(tmp_path)


def test_root_is_not_set():
    with pytest.raises(DqdetError, match=r"^data.root is not set: give the folder .* data.root=/data/coco$"):
        open_dataset(DataConfig(), "train")


def test_root_is_missing(tmp_path):
    root = tmp_path / "nowhere"
    assert error_of(root) == f"{root}: no such folder; set data.root to the folder of the data set"


def test_root_is_empty(tmp_path):
    assert error_of(tmp_path) == f"{tmp_path}: the folder is empty; set data.root to the folder of the data set"


def test_no_annotations(tmp_path):
    write(tmp_path, document())
    assert error_of(tmp_path, "val", val="holdout") == (
        f"{tmp_path}: no annotations of the val split; looked for annotations/instances_holdout.json, "
        "holdout/_annotations.coco.json; set data.val to the name of the split"
    )


def test_no_image_folder(tmp_path):
    file = write(tmp_path, document())
    (tmp_path / "images/train").rename(tmp_path / "pictures")
    assert error_of(tmp_path) == (
        f"{file}: the folder with its images is missing; looked for {tmp_path}/train, {tmp_path}/images/train"
    )


def test_not_json(tmp_path):
    file = write(tmp_path, '{"images": [')
    assert error_of(tmp_path) == (
        f"{file}: not valid JSON (Expecting value: line 1 column 13 (char 12)); download or export it again"
    )


def test_not_text(tmp_path):
    file = write(tmp_path, "")
    file.write_bytes(b"\xff\x00\xfe")
    message = error_of(tmp_path)
    assert message.startswith(f"{file}: not valid JSON (")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "part"),
    [([], "images"), ({"images": [], "categories": []}, "annotations"), (document() | {"images": {}}, "images")],
)
def test_not_coco(tmp_path, content, part):
    content = {**content, "images": [record(1)], "categories": CATEGORIES} if part == "annotations" else content
    file = write(tmp_path, content)
    assert error_of(tmp_path) == (f"{file}: not in COCO's detection format (no list '{part}'); export it as COCO JSON")


def test_no_images_listed(tmp_path):
    file = write(tmp_path, document(images=[], annotations=[]))
    assert error_of(tmp_path) == f"{file}: the list 'images' is empty; export the annotations again"


def test_all_faults_are_reported_together(tmp_path):
    file = write(
        tmp_path,
        document(
            images=[record(1), record(2, file_name=""), record(3, height=0), record(1), record("x"), record(4)],
            categories=[*CATEGORIES, {"id": 9}],
            annotations=[
                annotation(1),
                annotation(2, image_id=77),
                annotation(3, category_id=5),
                annotation(4, bbox=[1, 2, 3]),
                annotation(5, bbox=[1, 2, float("nan"), 4]),
                annotation(6, bbox=[1, 2, "3", 4]),
                annotation(1),
            ],
        ),
        files=("1.png", "3.png"),
    )
    message = error_of(tmp_path)
    assert message == (
        f"{file}: bad entries (11): image 2 has no file_name; "
        "image 3 has the height 0, which is no whole number in 1..65535; "
        "image 1 has an id that is there already; image number 5 has no whole number as id; category 9 has no name; "
        "and 6 more; correct or remove them; "
        f"2 of 6 images are missing in {tmp_path}/images/train: x.png, 4.png; add them or remove their records"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": 77}, "has the unknown image_id 77"),
        ({"image_id": [1]}, "has the unknown image_id [1]"),
        ({"category_id": 5}, "has the unknown category_id 5"),
        ({"category_id": None}, "has the unknown category_id None"),
        ({"bbox": None}, "has a bbox that is not 4 finite numbers: None"),
        ({"bbox": [1, 2, 3]}, "has a bbox that is not 4 finite numbers: [1, 2, 3]"),
        ({"bbox": [1, 2, float("inf"), 4]}, "has a bbox that is not 4 finite numbers: [1, 2, inf, 4]"),
        ({"bbox": [1, 2, float("nan"), 4]}, "has a bbox that is not 4 finite numbers: [1, 2, nan, 4]"),
    ],
)
def test_bad_annotation(tmp_path, changes, reason):
    file = write(tmp_path, document(annotations=[annotation(1), annotation(8, **changes)]))
    assert error_of(tmp_path) == f"{file}: bad entries (1): annotation 8 {reason}; correct or remove them"


def test_missing_images_are_listed_together(tmp_path):
    file = write(tmp_path, document(images=[record(i) for i in range(1, 9)]))
    assert error_of(tmp_path) == (
        f"{file}: 7 of 8 images are missing in {tmp_path}/images/train: "
        "2.png, 3.png, 4.png, 5.png, 6.png, and 2 more; add them or remove their records"
    )


def test_a_name_that_no_file_can_have_is_that_of_a_missing_image(tmp_path):
    name = "a" * 300 + ".png"
    write(tmp_path, document(images=[record(1, file_name=name)]), files=("1.png",))
    assert "1 of 1 images are missing" in error_of(tmp_path)


def test_images_in_subfolders_are_found(tmp_path):
    write(tmp_path, document(images=[record(1, file_name="day/1.png")]), files=())
    (tmp_path / "images/train/day").mkdir()
    PIL.Image.new("RGB", (60, 40)).save(tmp_path / "images/train/day/1.png")
    assert opened(tmp_path).read(0)["image"].shape == (3, 40, 60)


def read_error(root: Path) -> str:
    dataset = opened(root)
    with pytest.raises(DqdetError) as caught:
        dataset[0]
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(tmp_path, suffix):
    file = write(tmp_path, document(images=[record(1, file_name=f"1.{suffix}")]))
    image = tmp_path / f"images/train/1.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(image)
    image.write_bytes(image.read_bytes()[:900])
    message = read_error(tmp_path)
    assert message.startswith(f"{image}: cannot be read as an image (")
    assert message.endswith(f"; replace the file or remove image 1 from {file}")
    assert "\n" not in message


def test_file_that_is_no_image(tmp_path):
    file = write(tmp_path, document())
    image = tmp_path / "images/train/1.png"
    image.write_text("<html>not found</html>")
    assert read_error(tmp_path) == (
        f"{image}: cannot be read as an image (in no format that is known); "
        f"replace the file or remove image 1 from {file}"
    )


def test_image_of_another_size(tmp_path):
    file = write(tmp_path, document(images=[record(1, height=60, width=40)]))
    assert read_error(tmp_path) == (
        f"{tmp_path}/images/train/1.png: is 60 x 40 pixels, but image 1 of {file} is 40 x 60; correct one of them"
    )


def test_reading_past_what_is_not_needed_changes_nothing(shared, monkeypatch):
    """Of one data set, read with and without the polygons that boxes do not need."""
    quick = opened(shared / "data/coco_real")
    monkeypatch.setattr("dqdet.formats.records.msgspec.json.decode", refuse_to_decode)
    whole = opened(shared / "data/coco_real")
    assert quick.image_ids == whole.image_ids
    assert quick.classes == whole.classes
    for name in ("boxes", "labels", "starts"):
        np.testing.assert_array_equal(getattr(quick, name), getattr(whole, name))


def refuse_to_decode(*args, **kwargs):
    raise msgspec.ValidationError


def test_faults_beside_numbers_that_are_no_strict_json_are_told(tmp_path):
    text = json.dumps(document(annotations=[annotation(1), annotation(2, category_id=9, segmentation=[[2**70]])]))
    write(tmp_path, text.replace(str(2**70), "NaN"))
    with pytest.raises(DqdetError, match="annotation 2 has the unknown category_id 9"):
        opened(tmp_path)


def test_polygons_are_read_past(tmp_path):
    file = write(tmp_path, document(annotations=[annotation(1, segmentation=[[1, 1, 5, 1, 5, 5]], note="x")]))
    (read,) = read_document(file, keys=("id", "bbox"))["annotations"]
    assert set(read) == {"id", "bbox"}
    assert read_document(file)["annotations"][0]["note"] == "x"
