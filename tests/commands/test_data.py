"""`dqdet data`: what is in a data set, what is wrong with it, and the same set in COCO's format."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import own_data
from dqdet.config import DataConfig
from dqdet.data import conversion, open_dataset
from dqdet.data.kinds import kind_of
from dqdet.data.overview import duplicates, overview
from dqdet.errors import DqdetError

KINDS = ["coco", "yolo", "voc", "labelme"]


def rows_of(out: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "│" in line]
    return {name: values for name, *values in lines}


def test_bccd_is_counted_as_its_readme_counts_it(run, shared, tmp_path):
    page = tmp_path / "page.html"
    status, out, err = run("data", "check", shared / "data" / "bccd", "--page", page)
    assert (status, err) == (0, "")
    rows = rows_of(out)
    assert rows["images"] == ["205", "87"]
    assert rows["objects"] == ["2804", "1137"]
    assert rows["class RBC"] == ["2381", "967"]
    text = page.read_text()
    assert text.count('src="data:image/') == 4
    assert not re.search(r'(src|href)="(?!data:)', text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_recognised_and_converted_to_coco(run, shared, tmp_path, kind):
    root = own_data.write(tmp_path / kind, kind, shared, images=3)
    assert kind_of(root) == kind
    out = tmp_path / "out"
    status, printed, err = run("data", "convert", root, "--out", out)
    assert (status, err) == (0, "")
    assert printed == f"{out}: {kind} as COCO, train 3 images, val 3 images, 3 classes\n"
    for split in ("train", "val"):
        before, after = (
            open_dataset(DataConfig(kind=format, root=str(folder)), split)
            for format, folder in ((kind, root), ("coco", out))
        )
        assert [Path(name).name for name in before.images.file_names] == after.images.file_names.tolist()
        assert before.classes == after.classes
        np.testing.assert_array_equal(before.labels, after.labels)
        np.testing.assert_allclose(before.boxes, after.boxes, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(before.images.read(0)), np.asarray(after.images.read(0)))
    assert "has files already" in run("data", "convert", root, "--out", out)[2]


def test_all_that_is_wrong_is_said_in_one_go(run, shared, tmp_path):
    """An image of both splits under two names, one twice in a split, one that is damaged, and a split with faults."""
    root = own_data.write(tmp_path, "coco", shared, images=3)
    train, val = (sorted((root / "images" / split).iterdir()) for split in ("train", "val"))
    shutil.copy(train[0], val[0])
    shutil.copy(train[1], train[2])
    val[1].write_bytes(b"no picture")
    status, _, err = run("data", "check", root)
    assert status == 1
    lines = err.splitlines()
    assert f"error: 1 images are in both splits: {train[0]} = {val[0]}" in lines
    assert f"error: 1 images are more than once in a split: {train[1]} = {train[2]}" in lines
    assert any(line.startswith(f"error: {val[1].parent}: {val[1].name} cannot be read as an image") for line in lines)
    assert len(lines) == 3
    file = root / "annotations" / "instances_train.json"
    file.write_text(file.read_text().replace('"category_id": 1', '"category_id": 77'))
    status, out, err = run("data", "check", root)
    assert status == 1
    assert "has the unknown category_id 77" in err
    assert rows_of(out)["images"] == ["3"]  # of the other split


def test_duplicates_are_files_of_the_same_content(tmp_path):
    for name, content in (("a", b"12"), ("b", b"21"), ("c", b"12"), ("d", b"123")):
        (tmp_path / name).write_bytes(content)
    files = {"train": [tmp_path / "a", tmp_path / "b"], "val": [tmp_path / "c", tmp_path / "d"]}
    assert duplicates(files) == [[("train", tmp_path / "a"), ("val", tmp_path / "c")]]


def test_boxes_are_measured_inside_their_image_and_as_the_model_sees_them():
    """An image of 100 x 50 becomes 400 x 200: areas are 16 times as large. One box is cut, one has nothing left."""
    boxes = [[0, 0, 7, 7], [0, 0, 10, 20], [80, 0, 40, 50], [200, 0, 5, 5], [0, 0, 50, 50]]
    annotations = [{"image_id": 1, "category_id": 3, "bbox": box, "iscrowd": 0} for box in boxes]
    annotations[-1]["iscrowd"] = 1
    document = {
        "images": [{"id": 1, "height": 50, "width": 100}, {"id": 2, "height": 50, "width": 100}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": annotations,
    }
    found = overview(document, DataConfig(val_resize=200))
    assert found.boxes.tolist() == [[7, 7], [20, 10], [50, 20]]
    assert found.resized.tolist() == [[28, 28], [80, 40], [200, 80]]
    assert found.by_size == {"small": 1, "medium": 1, "large": 1}
    assert found.counts.tolist() == [3, 0]
    assert found.classes == {"dog": 0, "cat": 3}
    assert (found.images, found.crowds) == (2, 1)
    assert found.aspect_ratios.tolist() == [1, 0.5, 0.4]


def test_pages_show_names_as_they_are(run, tmp_path):
    name = "<script>alert(1)</script>"
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        PIL.Image.new("RGB", (60, 40), (split == "val" and "teal") or "navy").save(
            tmp_path / "images" / split / "a.png"
        )
        document = {
            "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
            "categories": [{"id": 1, "name": name}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        }
        file = tmp_path / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))
    assert run("data", "check", tmp_path, "--page", tmp_path / "page.html")[0] == 0
    text = (tmp_path / "page.html").read_text()
    assert "class &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text


def data_of(root: Path, size: tuple[int, int], classes: dict[str, list[str]]) -> Path:
    """A data set of COCO with an image and an object in each split, whose classes are ``classes``."""
    for number, split in enumerate(("train", "val")):
        (root / "images" / split).mkdir(parents=True)
        PIL.Image.new("RGB", size, (number, 0, 0)).save(root / "images" / split / f"{split}.png")
        document = {
            "images": [{"id": 1, "file_name": f"{split}.png", "height": size[1], "width": size[0]}],
            "categories": [{"id": label, "name": name} for label, name in enumerate(classes[split], 1)],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, *size]}],
        }
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))
    return root


def test_what_both_splits_are_of_is_said_once(run, shared, tmp_path):
    root = own_data.write(tmp_path, "yolo", shared, images=2)
    (root / "data.yaml").write_text("[")
    status, _, err = run("data", "check", root)
    assert (status, len(err.splitlines())) == (1, 1)


def test_classes_in_another_order_are_named(run, tmp_path):
    root = data_of(tmp_path, (60, 40), {"train": ["cat", "dog"], "val": ["dog", "cat"]})
    status, _, err = run("data", "check", root)
    assert (status, err) == (1, "error: classes are in another order in train (cat, dog) than in val (dog, cat)\n")


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_sheets_have_images_of_any_shape(run, tmp_path, size):
    root = data_of(tmp_path / "data", size, {"train": ["cat"], "val": ["cat"]})
    assert run("data", "check", root, "--page", tmp_path / "page.html")[0] == 0
    status, _, err = run("data", "show", root, "--out", tmp_path / "sheet.png", "data.resize=[64]", "data.max_size=64")
    assert (status, err) == (0, "")
    with PIL.Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height < 2000


def test_converted_images_never_share_a_name():
    for paths in (
        ["cam1/2024/left/1.jpg", "cam2/2024/left/1.jpg"],
        ["a/b.jpg", "c/b.jpg", "a_b.jpg"],
        ["x.jpg", "y.jpg"],
    ):
        names = conversion._names(paths)
        assert len(set(names)) == len(names) == len(paths)
    assert names == ["x.jpg", "y.jpg"]


def test_converted_images_never_leave_their_folder():
    """Lists of YOLO have absolute paths of images beside the data set, and may lead through its parents."""
    names = conversion._names(["/a/x.jpg", "/b/x.jpg", "/x.jpg", "../../x.jpg", "a/../../x.jpg"])
    assert names == ["a_x.jpg", "b_x.jpg", "x.jpg", "x-2.jpg", "a_x-2.jpg"]


def test_images_that_cannot_be_used_are_not_converted(run, tmp_path):
    """The fault is that of the image, not of the folder that is written, which is not begun."""
    root = data_of(tmp_path / "data", (60, 40), {"train": ["cat"], "val": ["cat"]})
    image = root / "images" / "train" / "train.png"
    for make in (lambda: image.symlink_to("nowhere"), lambda: image.write_bytes(b"no picture")):
        image.unlink()
        make()
        for kind in ("coco", "webdataset"):
            status, _, err = run("data", "convert", root, "--to", kind, "--out", tmp_path / "out")
            assert status == 1
            assert f"error: 1 image files cannot be used: {image.parent}: train.png cannot be read" in err
            assert not (tmp_path / "out").exists()


def test_folders_of_no_format_are_named(run, tmp_path):
    status, _, err = run("data", "check", tmp_path)
    assert status == 1
    assert err == (
        f"error: {tmp_path}: no data set of coco, yolo, voc, webdataset, labelme is recognised there; give its "
        "format, such as data.kind=yolo\n"
    )
    with pytest.raises(DqdetError, match="no such folder"):
        kind_of(tmp_path / "gone")
    assert "begin with data." in run("data", "check", tmp_path, "train.epochs=3")[2]
    assert "only boxes" in run("data", "check", tmp_path, "data.kind=scenes")[2]
