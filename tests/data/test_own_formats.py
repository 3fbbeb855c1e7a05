"""YOLO, Pascal VOC and LabelMe: the targets of the same set in COCO's format, and every kind of bad input together."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from opening import error_of, opened
from torchvision.transforms.v2 import query_size

import own_data
from dqdet.data.annotations import part
from dqdet.data.kinds import kind_of

# Of the places of boxes in pixels: as many digits as the formats have, and those that supervision writes.
PRECISION = {"yolo": 5e-3, "voc": 1e-4, "labelme": 1e-4}


def picture(file: Path, size: tuple[int, int] = (60, 40)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, "teal").save(file)


@pytest.mark.parametrize("kind", ["yolo", "voc", "labelme"])
def test_bccd_has_the_targets_of_its_coco_form(shared, tmp_path, kind):
    root = own_data.write(tmp_path, kind, shared, images=50)  # supervision takes long for all of them
    if kind in ("voc", "labelme"):
        (root / "classes.txt").write_text("RBC\nWBC\nPlatelets\n")
    for split in ("train", "val"):
        expected, found = opened(shared / "data" / "bccd", split), opened(root, split, kind=kind)
        assert found.classes == expected.classes == ["RBC", "WBC", "Platelets"]
        names = [Path(name).name for name in found.images.file_names]
        order = np.argsort(expected.images.file_names)[:50]
        assert names == expected.images.file_names[order].tolist()
        assert len(names) == 50
        for index, other in enumerate(order):
            mine, its = (slice(d.starts[i], d.starts[i + 1]) for d, i in ((found, index), (expected, other)))
            assert found.labels[mine].tolist() == expected.labels[its].tolist()
            np.testing.assert_allclose(found.boxes[mine], expected.boxes[its], atol=PRECISION[kind])
        image, target = found[3]
        other_image, other_target = expected[int(order[3])]
        if split == "val":  # without augmentation
            assert torch.equal(image, other_image)
            torch.testing.assert_close(target.boxes, other_target.boxes, atol=1e-5, rtol=0)
        truth = found.ground_truth()
        assert len(truth["annotations"]) == len(found.labels)
        assert all(one.keys() >= {"area", "iscrowd"} and "place" not in one for one in truth["annotations"])


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_classes_without_a_list_are_those_of_both_splits_by_name(shared, tmp_path, kind):
    root = own_data.write(tmp_path, kind, shared, images=4)
    for split in ("train", "val"):
        assert opened(root, split, kind=kind).classes == ["Platelets", "RBC", "WBC"]


@pytest.mark.parametrize("tool", ["cvat", "label_studio"])
def test_exports_without_splits_are_divided_by_the_names_of_the_images(shared, tmp_path, tool):
    root = own_data.undivided(tmp_path, tool, shared, images=10)
    splits = [opened(root, split, val_share=0.3) for split in ("train", "val")]
    names = [{Path(name).name for name in split.images.file_names} for split in splits]
    assert [len(of_split) for of_split in names] == [7, 3]
    assert not names[0] & names[1]
    whole = opened(shared / "data" / "bccd", "val")
    for split in splits:
        assert split.classes == ["RBC", "WBC", "Platelets"]
        for index, name in enumerate(split.images.file_names):
            other = whole.images.file_names.tolist().index(Path(name).name)
            mine, its = (d.boxes[d.starts[i] : d.starts[i + 1]] for d, i in ((split, index), (whole, other)))
            np.testing.assert_array_equal(mine, its)
    assert {one["image_id"] for one in splits[1].ground_truth()["annotations"]} <= set(splits[1].image_ids)
    assert len(splits[1].ground_truth()["images"]) == 3


def test_few_images_change_sides_when_others_are_added():
    names = [f"{number}.jpg" for number in range(100)]
    before, after = part(names[:90], "val", 0.2), part(names, "val", 0.2)
    assert len(before) == 18
    assert len(before - after) <= 3
    assert part(names, "train", 0.2) == set(names) - after
    assert len(part(names[:2], "train", 0.01)) == len(part(names[:2], "val", 0.01)) == 1


def test_faults_of_yolo_are_told_together_with_file_and_line(tmp_path):
    for name in "abc":
        picture(tmp_path / f"images/train/{name}.png")
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n\n2 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2\n")
    (labels / "b.txt").write_text("1 300 200 50 40\n1 0.5 nan 0.1 0.1\n-1 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: {0: cat, 1: dog}\n")
    (tmp_path / "images/train/c.png").write_bytes(b"no picture")
    assert error_of(tmp_path, kind="yolo") == (
        f"{tmp_path}/data.yaml: bad entries (6): {tmp_path}/images/train/c.png: cannot be read as an image (in no "
        "format that is known); "
        f"{labels}/a.txt:3 has the class '2', which is no whole number in 0..1; "
        f"{labels}/a.txt:4 has 4 values; a box has 5 (class, x, y, width, height), a polygon 7, 9, ...; "
        f"{labels}/b.txt:1 has the value '300', which is not relative to the image, in 0..1; "
        f"{labels}/b.txt:2 has the value 'nan', which is not relative to the image, in 0..1; and 1 more; "
        "correct or remove them"
    )


def test_faults_of_voc_are_told_together_with_file_and_line(tmp_path):
    size = "<size><width>60</width><height>40</height></size>"
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    content = {
        "a": f"<annotation>\n{size}\n<object>\n<name>cat</name></object>\n<object>{box.format(9)}"
        "</object></annotation>",
        "b": f"<annotation>{size}<object>\n<name>cat</name>{box.format('wide')}</object></annotation>",
        "c": "<annotation>\n<size></annotation>",
        "d": f"<annotation>{size}</annotation>",
    }
    for name, text in content.items():
        if name != "d":
            picture(tmp_path / f"JPEGImages/{name}.png")
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\nc\nd\n")
    xml = f"{tmp_path}/Annotations"
    assert error_of(tmp_path, kind="voc") == (
        f"{tmp_path}: bad entries (5): {xml}/a.xml:3 (cat) has no bndbox; {xml}/a.xml:5 has no name of a class; "
        f"{xml}/b.xml:1 (cat) has corners that are not numbers within 1000000: xmin='1', ymin='1', xmax='wide', "
        f"ymax='9'; {xml}/c.xml is no XML (mismatched tag: line 2, column 8); {xml}/d.xml has no image; looked for "
        f"{tmp_path}/JPEGImages; correct or remove them"
    )


def test_faults_of_labelme_are_told_together_with_file_and_shape(tmp_path):
    def write(name: str, *shapes: dict, **changes) -> None:
        picture(tmp_path / f"train/{name}.png")
        document = {"shapes": shapes, "imagePath": f"{name}.png", "imageHeight": 40, "imageWidth": 60} | changes
        (tmp_path / f"train/{name}.json").write_text(json.dumps(document))

    write("a", {"label": "cat", "shape_type": "line", "points": [[0, 0], [9, 9]]}, {"points": []})
    write("b", {"label": "cat", "shape_type": "rectangle", "points": [[0, 0]]}, imagePath="gone.png")
    write("c", imageHeight=None)
    (tmp_path / "train/d.json").write_text("{")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncat\n")
    train = tmp_path / "train"
    assert error_of(tmp_path, kind="labelme") == (
        f"{tmp_path}: bad entries (6): {train}/a.json: shape 1 (cat, line) is no object; draw rectangles, circles, "
        f"polygons or masks, or remove it; {train}/a.json: shape 2 has no label; {train}/b.json: shape 1 (cat, "
        f"rectangle) has 1 points; {train}/c.json has no height; {train}/d.json is no JSON (Expecting property name "
        "enclosed in double quotes: line 1 column 2 (char 1)); and 1 more; correct or remove them"
    )


@pytest.mark.parametrize("encoding", ["gbk", "unheard-of"])
def test_an_encoding_of_voc_that_cannot_be_read_is_named(tmp_path, encoding):
    """Of several bytes a character, and of no such name."""
    annotated(tmp_path, "voc", "train/a")
    xml = tmp_path / "train/a.xml"
    xml.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{xml.read_text()}')
    assert f"{xml} is no XML (" in error_of(tmp_path, kind="voc")


def test_sizes_of_labelme_may_be_fractions_without_a_remainder(tmp_path):
    picture(tmp_path / "train/a.png")
    buffer = io.BytesIO()
    PIL.Image.new("1", (2, 3), 1).save(buffer, "PNG")
    shape = {"label": "cat", "shape_type": "mask", "points": [[1, 1], [2, 3]]}
    shape["mask"] = base64.b64encode(buffer.getvalue()).decode()
    document = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 40.0, "imageWidth": 60.0}
    (tmp_path / "train/a.json").write_text(json.dumps(document))
    assert opened(tmp_path, kind="labelme", task="instance").ground_truth()["annotations"][0]["area"] == 6


def test_odd_lines_and_values_of_yolo_are_named(tmp_path):
    picture(tmp_path / "images/train/a.png")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    for line in ("images/train/a.png\0", "/", "."):
        (tmp_path / "list.txt").write_text(f"{line}\n")
        assert error_of(tmp_path, kind="yolo").startswith(str(tmp_path)), line
    (tmp_path / "data.yaml").write_text("names: [cat]\ndate: 2024-02-30\n")
    assert f"{tmp_path}/data.yaml: cannot be read as YAML (day is out of range" in error_of(tmp_path, kind="yolo")


def test_a_set_without_classes_or_splits_is_named(tmp_path):
    picture(tmp_path / "pictures/a.png")
    assert error_of(tmp_path, kind="yolo") == (
        f"{tmp_path}: no names of the classes; add data.yaml with names, or classes.txt with one in each line"
    )
    assert "no annotations of the train split; looked for ImageSets/Main/NAME.txt" in error_of(tmp_path, kind="voc")
    assert "no annotations of the train split; looked for NAME/*.json" in error_of(tmp_path, kind="labelme")


def test_polygons_become_masks_and_parts_of_a_group_one_object(tmp_path):
    """In all three formats, a rectangle of 10 x 20 pixels, exactly."""
    corners = [[10, 5], [20, 5], [20, 25], [10, 25]]
    for root in ("yolo/images/train", "voc/train", "labelme/train"):
        picture(tmp_path / root / "a.png")
    (tmp_path / "yolo/labels/train").mkdir(parents=True)
    relative = " ".join(f"{x / 60} {y / 40}" for x, y in corners)
    (tmp_path / "yolo/labels/train/a.txt").write_text(f"0 {relative}\n")
    (tmp_path / "yolo/classes.txt").write_text("cat\n")
    points = "".join(f"<x{n}>{x + 1}</x{n}><y{n}>{y + 1}</y{n}>" for n, (x, y) in enumerate(corners, 1))
    (tmp_path / "voc/train/a.xml").write_text(
        "<annotation><size><width>60</width><height>40</height></size><object><name>cat</name><bndbox><xmin>11</xmin>"
        f"<ymin>6</ymin><xmax>20</xmax><ymax>25</ymax></bndbox><polygon>{points}</polygon></object></annotation>"
    )
    halves = [[corners[0], [20, 15]], [[10, 15], corners[2]]]
    shapes = [{"label": "cat", "shape_type": "rectangle", "points": half, "group_id": 1} for half in halves]
    buffer = io.BytesIO()
    PIL.Image.new("1", (10, 20), 1).save(buffer, "PNG")
    drawn = {"label": "cat", "shape_type": "mask", "points": [[10, 5], [19, 24]]}
    drawn["mask"] = base64.b64encode(buffer.getvalue()).decode()
    labelme = {"imagePath": "..\\train\\a.png", "imageHeight": 40, "imageWidth": 60}
    (tmp_path / "labelme/train/a.json").write_text(json.dumps({"shapes": [*shapes, drawn], **labelme}))
    expected = torch.zeros(40, 60, dtype=torch.uint8)
    expected[5:25, 10:20] = 1
    for kind, count in ("yolo", 1), ("voc", 1), ("labelme", 2):
        dataset = opened(tmp_path / kind, kind=kind, task="instance", val="train")
        sample = dataset.read(0)
        assert sample["masks"].shape[0] == len(sample["boxes"]) == count
        assert all(torch.equal(mask, expected) for mask in sample["masks"])
        torch.testing.assert_close(sample["boxes"][0].as_subclass(torch.Tensor), torch.tensor([10.0, 5, 20, 25]))
        assert dataset.ground_truth()["annotations"][0]["area"] == 200


@pytest.mark.parametrize(("easy", "difficult"), [("0", "1"), ("", "1.0"), ("False", "True"), ("Unspecified", "yes")])
def test_difficult_objects_of_voc_are_crowds(tmp_path, easy, difficult):
    picture(tmp_path / "train/a.png")
    objects = "".join(
        f"<object><name>cat</name><difficult>{flag}</difficult><bndbox><xmin>{left}</xmin><ymin>1</ymin>"
        f"<xmax>{left + 9}</xmax><ymax>9</ymax></bndbox></object>\n"
        for left, flag in ((1, easy), (20, difficult))
    )
    text = f"<annotation><size><width>60</width><height>40</height></size>\n{objects}</annotation>"
    (tmp_path / "train/a.xml").write_text(text)
    dataset = opened(tmp_path, kind="voc", val="train")
    assert dataset.boxes.tolist() == [[0, 0, 10, 9]]
    assert [one["iscrowd"] for one in dataset.ground_truth()["annotations"]] == [0, 1]
    (tmp_path / "train/a.xml").write_text(text.replace(f"<difficult>{difficult}<", "<difficult>perhaps<"))
    assert f"{tmp_path}/train/a.xml:3 has the difficult 'perhaps', which is neither 0 nor 1" in error_of(
        tmp_path, kind="voc"
    )


def test_yolo_pictures_turned_by_exif_have_the_size_that_people_see(tmp_path):
    """As Ultralytics reads them; labels are relative to the picture that is upright."""
    file = tmp_path / "images/train/a.jpg"
    file.parent.mkdir(parents=True)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (60, 40), "teal").save(file, exif=exif)
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 1 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    sample = opened(tmp_path, kind="yolo", val="train").read(0)
    assert query_size([sample["image"]]) == (60, 40)
    assert sample["boxes"].tolist() == [[0, 15, 40, 45]]


@pytest.mark.parametrize("text", ["names: [cat, cat]", "names: {0: cat, 2: dog}", "train: x", "[", "names: 3"])
def test_a_bad_description_of_yolo_is_named(tmp_path, text):
    picture(tmp_path / "images/train/a.png")
    (tmp_path / "data.yaml").write_text(text)
    message = error_of(tmp_path, kind="yolo")
    assert message.startswith(f"{tmp_path}/data.yaml: ") or "no names of the classes" in message


@pytest.mark.parametrize(("text", "name"), [("[yes, no]", "True"), ("[cat, null]", "None"), ("[cat, 0.5]", "0.5")])
def test_names_of_yolo_that_are_no_text_are_named(tmp_path, text, name):
    picture(tmp_path / "images/train/a.png")
    (tmp_path / "data.yaml").write_text(f"names: {text}")
    assert error_of(tmp_path, kind="yolo") == (
        f"{tmp_path}/data.yaml: among the names of the classes is {name}, which is no text; put it in quotes"
    )


def yolo_split(root: Path, *labels: str) -> None:
    """Training images and, beside them, label files."""
    for number in range(2):
        picture(root / f"images/train/{number}.png")
    (root / "data.yaml").write_text("names: [0, 1]")
    for name in labels:
        (root / "labels/train").mkdir(parents=True, exist_ok=True)
        (root / "labels/train" / name).write_text("1 0.5 0.5 0.2 0.2\n")


def test_classes_of_yolo_may_be_numbers(tmp_path):
    yolo_split(tmp_path, "0.txt")
    assert opened(tmp_path, kind="yolo").classes == ["0", "1"]


@pytest.mark.parametrize("labels", [(), ("0.TXT",), ("image_0.txt", "image_1.txt")])
def test_a_split_of_yolo_without_any_label_has_these_elsewhere(tmp_path, labels):
    """It would be one of pictures without objects."""
    yolo_split(tmp_path, *labels)
    message = error_of(tmp_path, kind="yolo")
    assert message.startswith(f"{tmp_path}: none of the 2 images of the train split has labels; looked for {tmp_path}/")
    yolo_split(tmp_path, "1.txt")
    assert len(opened(tmp_path, kind="yolo")) == 2


def test_text_files_of_windows_begin_with_a_mark(tmp_path):
    """Else it would be part of the first class, number or name."""
    mark = b"\xef\xbb\xbf"
    yolo, voc, labelme = (tmp_path / kind for kind in ("yolo", "voc", "labelme"))
    picture(yolo / "pictures/a.png")
    for name, content in {
        "data.yaml": b"train: train.txt\r\nnames: [cat, dog]\r\n",
        "train.txt": b"pictures/a.png\r\n",
        "pictures/a.txt": b"1 0.5 0.5 0.2 0.2\r\n",
    }.items():
        (yolo / name).write_bytes(mark + content)
    dataset = opened(yolo, kind="yolo")
    assert (dataset.classes, dataset[0][1].labels.tolist()) == (["cat", "dog"], [1])
    picture(voc / "JPEGImages/a b.png")
    for name, content in {
        "ImageSets/Main/train.txt": b"a b  1\r\n",
        "Annotations/a b.xml": b"<annotation><size><width>60</width><height>40</height></size></annotation>",
        "classes.txt": b"cat\r\ndog\r\n",
    }.items():
        (voc / name).parent.mkdir(parents=True, exist_ok=True)
        (voc / name).write_bytes(mark + content)
    assert (opened(voc, kind="voc").classes, len(opened(voc, kind="voc"))) == (["cat", "dog"], 1)
    picture(labelme / "train/a.png")
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}
    document = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 40, "imageWidth": 60}
    (labelme / "train/a.json").write_bytes(mark + json.dumps(document).encode())
    (labelme / "labels.txt").write_bytes(mark + b"__ignore__\r\ncat\r\n")
    assert opened(labelme, kind="labelme").classes == ["cat"]


@pytest.mark.parametrize("name", ["a b", "a 1", "a"])
@pytest.mark.parametrize("column", ["", " -1", "  1"])
def test_a_list_of_voc_may_have_names_with_spaces_and_a_second_column(tmp_path, name, column):
    picture(tmp_path / f"JPEGImages/{name}.png")
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    text = "<annotation><size><width>60</width><height>40</height></size></annotation>"
    (tmp_path / f"Annotations/{name}.xml").write_text(text)
    (tmp_path / "classes.txt").write_text("cat\n")
    listed = tmp_path / "ImageSets/Main/train.txt"
    listed.write_text(f"{name}{column}\n")
    assert opened(tmp_path, kind="voc").images.file_names.tolist() == [f"{name}.png"]
    listed.write_text("\n")
    assert error_of(tmp_path, kind="voc") == f"{listed}: lists no images; write the name of one in each line"


def annotated_of_voc(image: Path, xml: Path, size: tuple[int, int] = (60, 40)) -> None:
    picture(image, size)
    xml.parent.mkdir(parents=True, exist_ok=True)
    xml.write_text(f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size></annotation>")


def annotated(root: Path, kind: str, name: str, suffix: str = "") -> None:
    """An image without objects and its file: for one of Pascal VOC without splits these are in folders of their own."""
    if kind == "voc":
        folders = ("", "") if "train" in name else ("JPEGImages", "Annotations")
        annotated_of_voc(root / folders[0] / f"{name}.png", root / folders[1] / f"{name}{suffix or '.xml'}")
    else:
        picture(root / f"{name}.png")
        document = {"shapes": [], "imagePath": f"{Path(name).name}.png", "imageHeight": 40, "imageWidth": 60}
        (root / f"{name}{suffix or '.json'}").write_text(json.dumps(document))


def test_images_of_voc_are_those_of_the_subfolder_of_their_annotations(tmp_path):
    for name, size in (("x", (60, 40)), ("sub/x", (30, 20))):
        annotated_of_voc(tmp_path / f"JPEGImages/{name}.png", tmp_path / f"Annotations/{name}.xml", size)
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("sub/x\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    dataset = opened(tmp_path, kind="voc")
    assert dataset.images.file_names.tolist() == ["sub/x.png"]
    assert dataset.file_faults() == []
    (tmp_path / "Annotations/x.xml").unlink()
    assert kind_of(tmp_path) == "voc"


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_a_split_may_be_a_link_to_another(tmp_path, kind):
    for number in range(2):
        annotated(tmp_path, kind, f"train/{number}")
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "valid").symlink_to("train")
    for split, folder in (("train", "train"), ("val", "valid")):
        dataset = opened(tmp_path, split, kind=kind)
        assert dataset.images.file_names.tolist() == [f"{folder}/0.png", f"{folder}/1.png"]


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_annotations_without_splits_are_found_in_subfolders_and_whatever_their_letters(tmp_path, kind):
    suffix = {"voc": ".XML", "labelme": ".JSON"}[kind]
    for name, of_file in (("a", ""), ("b", suffix), ("sub/c", ""), ("sub/deeper/d", suffix)):
        annotated(tmp_path, kind, name, of_file)
    hidden = tmp_path / {"voc": "Annotations/._a.xml", "labelme": "._a.json"}[kind]
    hidden.write_bytes(b"\0")
    (tmp_path / "classes.txt").write_text("cat\n")
    splits = [opened(tmp_path, split, kind=kind).images.file_names.tolist() for split in ("train", "val")]
    assert sorted(splits[0] + splits[1]) == ["a.png", "b.png", "sub/c.png", "sub/deeper/d.png"]
    assert [len(names) for names in splits] == [3, 1]


def test_a_set_with_one_split_is_not_divided(tmp_path):
    """Its other annotations are those of a split with another name."""
    for name in ("train/a", "validation/b", "validation/c"):
        annotated(tmp_path, "labelme", name)
    (tmp_path / "classes.txt").write_text("cat\n")
    assert len(opened(tmp_path, kind="labelme")) == 1
    assert "no annotations of the val split; looked for NAME/*.json" in error_of(tmp_path, "val", kind="labelme")
    assert len(opened(tmp_path, "val", kind="labelme", val="validation")) == 2


def test_entities_of_voc_are_not_expanded(tmp_path):
    """Nine times a hundred of each other are 10^18 characters."""
    entities = '<!ENTITY e0 "x">' + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 100}">' for n in range(1, 10))
    picture(tmp_path / "train/a.png")
    xml = tmp_path / "train/a.xml"
    xml.write_text(f"<!DOCTYPE a [{entities}]><annotation><object><name>&e9;</name></object></annotation>")
    assert f"{xml} is no XML (it declares entities" in error_of(tmp_path, kind="voc")


def test_yolo_takes_lists_of_images_and_divides_what_has_no_splits(tmp_path):
    for number in range(5):
        picture(tmp_path / f"images/{number}.png")
    (tmp_path / "labels").mkdir()
    for number in range(5):
        (tmp_path / f"labels/{number}.txt").touch()
    (tmp_path / "classes.txt").write_text("cat\n")
    assert [len(opened(tmp_path, split, kind="yolo")) for split in ("train", "val")] == [4, 1]
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: [val.txt]\nnames: [cat]\n")
    (tmp_path / "train.txt").write_text("./images/0.png\ndata/images/1.png\n")
    (tmp_path / "val.txt").write_text("images/2.png\n")
    assert [len(opened(tmp_path, split, kind="yolo")) for split in ("train", "val")] == [2, 1]
    (tmp_path / "val.txt").write_text("images/gone.png\n")
    assert f"{tmp_path}/images/gone.png: no such file" in error_of(tmp_path, "val", kind="yolo")


def yolo_folders(root: Path, described: str, **images: int) -> None:
    """Folders with so many images, and their labels."""
    for name, count in images.items():
        for number in range(count):
            picture(root / f"images/{name}/{number}.png")
            labels = root / f"labels/{name}/{number}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.touch()
    (root / "data.yaml").write_text(f"{described}\nnames: [cat]\n")


def test_places_of_yolo_that_are_not_there_are_named(tmp_path, caplog):
    """Several of them; for one that may be of another machine the folder of the split is taken, with a warning."""
    yolo_folders(tmp_path, "train: [images/a, images/B, images/C]", a=2, b=1)
    assert error_of(tmp_path, kind="yolo") == (
        f"{tmp_path}: data.yaml has places that are not there (train: images/B, train: images/C); correct it"
    )
    yolo_folders(tmp_path, "train: /elsewhere/train\nval: images/a\ntest: images/b", train=3)
    assert len(opened(tmp_path, kind="yolo")) == 3
    assert [entry.getMessage() for entry in caplog.records] == [
        f"{tmp_path}: data.yaml has train: /elsewhere/train, which is not there; {tmp_path}/images/train is taken "
        "instead"
    ]
    caplog.clear()
    assert len(opened(tmp_path, "val", kind="yolo")) == 2
    assert not caplog.records
    yolo_folders(tmp_path, "val: images/gone\ntest: images/b")
    assert len(opened(tmp_path, "val", kind="yolo")) == 1
    assert [entry.getMessage() for entry in caplog.records] == [
        f"{tmp_path}: data.yaml has val: images/gone, which is not there; {tmp_path}/images/b is taken instead"
    ]


def test_what_the_description_of_yolo_says_is_before_other_names_of_a_split(tmp_path):
    yolo_folders(tmp_path, "train: images/few", train2017=3, few=1)
    assert len(opened(tmp_path, kind="yolo")) == 1


def test_keypoints_of_yolo_are_no_corners_of_polygons(tmp_path):
    """Those that are not seen are at 0, 0; a third number says whether they are."""
    yolo_folders(tmp_path, "train: images/train\nkpt_shape: [2, 3]", train=1)
    label = tmp_path / "labels/train/0.txt"
    label.write_text("0 0.5 0.5 0.2 0.2 0.45 0.45 2 0 0 0\n")
    assert opened(tmp_path, kind="yolo").boxes.tolist() == [[24, 16, 36, 24]]
    assert error_of(tmp_path, kind="yolo", task="instance") == (
        f"{tmp_path}/data.yaml: objects have keypoints (kpt_shape) but no polygons; set data.task=detection"
    )
    label.write_text("0 0.5 0.5 0.2 0.2 0.45 0.45\n")
    assert f"{label}:1 has 7 values; a box with keypoints has 11 (class, " in error_of(tmp_path, kind="yolo")
    yolo_folders(tmp_path, "train: images/train\nkpt_shape: 2")
    assert "data.yaml: kpt_shape is 2, not how many keypoints and" in error_of(tmp_path, kind="yolo")


def test_images_of_yolo_that_links_lead_to_in_vain_are_faults(tmp_path):
    yolo_folders(tmp_path, "train: images/train", train=2)
    (tmp_path / "images/train/1.png").unlink()
    (tmp_path / "images/train/1.png").symlink_to("gone.png")
    assert f"{tmp_path}/images/train/1.png: no such file" in error_of(tmp_path, kind="yolo")


def test_images_of_yolo_may_have_any_suffix_of_images(tmp_path):
    yolo_folders(tmp_path, "train: images/train", train=1)
    for number, suffix in enumerate((".avif", ".gif", ".jfif", ".jp2", ".JPE", ".mpo", ".webp"), 1):
        picture(tmp_path / f"images/train/{number}{suffix}")
    dataset = opened(tmp_path, kind="yolo")
    assert len(dataset) == 8
    assert dataset.file_faults() == []


def test_labels_of_yolo_without_an_image_are_told(tmp_path, caplog):
    yolo_folders(tmp_path, "train: images/train", train=3)
    (tmp_path / "images/train/2.png").rename(tmp_path / "images/train/2.heic")
    (tmp_path / "labels/train/classes.txt").write_text("cat")
    assert len(opened(tmp_path, kind="yolo")) == 2
    assert [entry.getMessage() for entry in caplog.records] == [
        f"{tmp_path}/labels/train: 1 label files have no image in {tmp_path}/images/train: 2.txt"
    ]
