"""The blood cells of BCCD in the formats of other tools, written by the supervision package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import supervision as sv
import yaml


def _split(shared: Path, split: str, images: int | None) -> sv.DetectionDataset:
    bccd = shared / "data" / "bccd"
    dataset = sv.DetectionDataset.from_coco(
        str(bccd / "images" / split), str(bccd / "annotations" / f"instances_{split}.json")
    )
    if images is None:
        return dataset
    paths = sorted(dataset.image_paths)[:images]
    return sv.DetectionDataset(dataset.classes, paths, {path: dataset.annotations[path] for path in paths})


def write(root: Path, kind: str, shared: Path, images: int | None = None) -> Path:
    """BCCD as a data set of a kind, with all images of its splits or the first ones by name."""
    for split in ("train", "val"):
        dataset = _split(shared, split, images)
        match kind:
            case "yolo":
                dataset.as_yolo(annotations_directory_path=str(root / split / "labels"))
                pictures = root / split / "images"
            case "voc":
                dataset.as_pascal_voc(annotations_directory_path=str(root / "Annotations"))
                lists = root / "ImageSets" / "Main"
                lists.mkdir(parents=True, exist_ok=True)
                (lists / f"{split}.txt").write_text("\n".join(Path(path).stem for path in dataset.image_paths))
                pictures = root / "JPEGImages"
            case "labelme":
                dataset.as_labelme(annotations_directory_path=str(root / split))
                pictures = root / split
            case _:
                dataset.as_coco(annotations_path=str(root / "annotations" / f"instances_{split}.json"))
                pictures = root / "images" / split
        pictures.mkdir(parents=True, exist_ok=True)
        for path in dataset.image_paths:
            shutil.copy(path, pictures)
    if kind == "yolo":  # as Roboflow writes it
        described = {"train": "../train/images", "val": "../valid/images", "nc": 3, "names": dataset.classes}
        (root / "data.yaml").write_text(yaml.safe_dump(described | {"val": "../val/images"}))
    return root


def undivided(root: Path, tool: str, shared: Path, images: int) -> Path:
    """Some images of BCCD as CVAT or Label Studio export them, in one set without splits."""
    bccd = shared / "data" / "bccd"
    document = json.loads((bccd / "annotations" / "instances_val.json").read_text())
    records = document["images"][:images]
    ids = {record["id"] for record in records}
    annotations = [one for one in document["annotations"] if one["image_id"] in ids]
    pictures = root / "images" / ("default" if tool == "cvat" else "")
    pictures.mkdir(parents=True)
    for record in records:
        shutil.copy(bccd / "images" / "val" / record["file_name"], pictures)
    if tool == "cvat":
        file = root / "annotations" / "instances_default.json"
        records = [one | {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0} for one in records]
        annotations = [one | {"attributes": {"occluded": False}} for one in annotations]
    else:
        file = root / "result.json"  # ids from 0, and backslashes from Windows
        numbers = {record["id"]: number for number, record in enumerate(records)}
        records = [{**one, "id": numbers[one["id"]], "file_name": f"images\\{one['file_name']}"} for one in records]
        annotations = [
            {**one, "id": n, "image_id": numbers[one["image_id"]], "category_id": one["category_id"] - 1, "ignore": 0}
            for n, one in enumerate(annotations)
        ]
        document["categories"] = [{"id": c["id"] - 1, "name": c["name"]} for c in document["categories"]]
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document | {"images": records, "annotations": annotations}))
    return root
