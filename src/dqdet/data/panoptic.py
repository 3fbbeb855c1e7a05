"""Data sets in COCO's panoptic format.

Under the root folder lie ``annotations/panoptic_{split}.json``, its PNG maps in ``annotations/panoptic_{split}`` (where
the archives of COCO unpack to) or ``panoptic_{split}``, and the images in ``{split}`` or ``images/{split}``.

What cannot be used is an error. All faults of the JSON file and all missing files are listed when the data set is
opened. To look into all maps of COCO would take many minutes, so that only small data sets are checked like this;
the maps of larger ones are checked as they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dqdet.config import DataConfig
from dqdet.data.annotations import completed
from dqdet.data.coco_faults import find_faults
from dqdet.data.coco_files import CocoImages, find_split, first_folder, refuse
from dqdet.data.dataset import Split
from dqdet.data.segments import SegmentsDataset, as_sample
from dqdet.data.transforms import Sample
from dqdet.errors import DqdetError, listed, value_text
from dqdet.formats.image_headers import header_faults
from dqdet.formats.panoptic import VOID, read_ids, segment_faults
from dqdet.formats.records import (
    category_faults,
    crowd_fault,
    image_fault,
    is_flag,
    is_id,
    read_document,
    record_faults,
    text_fault,
)
from dqdet.types import PanopticMap

SMALL = 200  # maps, which are all checked when the data set is opened
LARGEST_ID = 256**3 - 1  # of a segment, in a PNG map


def _layouts(root: Path, name: str) -> Iterator[tuple[Path, list[Path]]]:
    yield root / "annotations" / f"panoptic_{name}.json", [root / name, root / "images" / name]


def _segments_fault(segments: object, category_ids: set[int]) -> str | None:
    if not isinstance(segments, list) or not all(isinstance(s, dict) and is_id(s.get("id")) for s in segments):
        return "has no segments_info, a list of segments with ids"
    faults = [f"segment {number} twice" for number, count in Counter(s["id"] for s in segments).items() if count > 1]
    for segment in segments:
        if not VOID < segment["id"] <= LARGEST_ID:
            faults.append(f"segment {segment['id']}, whose id is not in 1..{LARGEST_ID}")
        if not (is_id(segment.get("category_id")) and segment["category_id"] in category_ids):
            category_id = value_text(segment.get("category_id"))
            faults.append(f"segment {segment['id']} of the unknown category_id {category_id}")
        if reason := crowd_fault(segment):
            faults.append(f"segment {segment['id']}, which {reason}")
    return f"has {listed(faults)}" if faults else None


def _find_faults(document: dict[str, Any]) -> list[str]:
    """All records that cannot be used, with the reason."""

    def class_fault(category: dict[str, Any]) -> str | None:
        if not is_flag(category.get("isthing")):
            return "has no isthing, which is 0 or 1"
        color = category.get("color", [0, 0, 0])
        if not (isinstance(color, list) and len(color) == 3 and all(is_id(c) and 0 <= c <= 255 for c in color)):
            return f"has a color that is not 3 numbers in 0..255: {value_text(color)}"
        return None

    def annotation_fault(annotation: dict[str, Any]) -> str | None:
        if annotation["image_id"] not in image_ids:
            return "is of no listed image"
        return text_fault(annotation, "file_name") or _segments_fault(annotation.get("segments_info"), category_ids)

    bad_images, image_ids = record_faults("image", document["images"], image_fault)
    bad_categories, category_ids = category_faults(document["categories"], class_fault)
    kind = "annotation of image"
    bad_annotations, annotated = record_faults(kind, document["annotations"], annotation_fault, key="image_id")
    without = [f"image {image_id} has no annotation" for image_id in sorted(image_ids - annotated)]
    return bad_images + bad_categories + bad_annotations + without


class CocoPanopticDataset(SegmentsDataset):
    """A split of a data set in COCO's panoptic format; see the module's docstring.

    Items are in the order of the image ids, labels in the order of the category ids, things and stuff together.
    All segments of one class of stuff in an image are one object. Crowds are no targets.

    Raises:
        DqdetError: the data is missing or faulty.
    """

    def __init__(self, config: DataConfig, split: Split, seed: int = 0) -> None:
        super().__init__(config, split, seed)
        self.annotation_file, image_folder = find_split(config, split, _layouts)
        name = self.annotation_file.stem
        self.map_folder = first_folder(
            [self.annotation_file.with_suffix(""), self.annotation_file.parent.parent / name],
            f"{self.annotation_file}: the folder with its PNG maps is missing (unpack {name}.zip)",
        )
        document = read_document(self.annotation_file, "panoptic")
        refuse(
            self.annotation_file,
            _find_faults(document),
            {"images": (image_folder, document["images"]), "maps": (self.map_folder, document["annotations"])},
        )

        categories = sorted(document["categories"], key=lambda category: category["id"])
        keys = ("id", "name", "isthing", "color")
        self.panoptic_categories = [{key: c[key] for key in keys if key in c} for c in categories]
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        self.stuff = [category["name"] for category in categories if not category["isthing"]]
        self.images = CocoImages(document["images"], self.annotation_file, image_folder)
        self.image_ids = self.images.ids
        self.file_names = self.images.file_names
        self.aspect_ratios = self.images.aspect_ratios
        self._set_segments(sorted(document["annotations"], key=lambda annotation: annotation["image_id"]))
        if len(self) <= SMALL:
            self._check_maps()

    def _set_segments(self, annotations: list[dict[str, Any]]) -> None:
        """Arrays, because worker processes would copy lists, see CocoImages."""
        self.map_names = np.array([annotation["file_name"] for annotation in annotations])
        self.segments = np.array(  # [segments, 3] id, category_id, iscrowd
            [
                (segment["id"], segment["category_id"], bool(segment.get("iscrowd")))
                for annotation in annotations
                for segment in annotation["segments_info"]
            ],
            dtype=np.int64,
        ).reshape(-1, 3)
        # Segments of image i: starts[i] .. starts[i + 1] - 1
        self.starts = np.cumsum([0, *(len(annotation["segments_info"]) for annotation in annotations)])

    def _check_maps(self) -> None:
        faults = []
        for index in range(len(self)):
            try:
                self.panoptic(index)
            except DqdetError as fault:
                faults.append(fault)
        if faults:
            raise DqdetError(listed(faults, "; "))

    def file_faults(self) -> list[str]:
        sizes = [(height, width) for height, width in self.images.sizes.tolist()]
        maps = header_faults(self.map_folder, self.map_names.tolist(), sizes)
        return self.images.file_faults() + [f"{self.map_folder}: {fault}" for fault in maps]

    def read(self, index: int) -> Sample:
        return as_sample(self.images.read(index), self.panoptic(index), self.category_ids)

    def panoptic(self, index: int) -> PanopticMap:
        """The segments of an image in its original size, crowds included, those of one class of stuff as one.

        Raises:
            DqdetError: the PNG cannot be read, has another size than the image, or other segments than the JSON.
        """
        file = self.map_folder / self.map_names[index]
        rows = self.segments[self.starts[index] : self.starts[index + 1]].tolist()
        panoptic = PanopticMap(
            read_ids(file), [dict(zip(("id", "category_id", "iscrowd"), r, strict=True)) for r in rows]
        )
        faults = segment_faults(panoptic, self.category_ids)
        height, width = self.images.sizes[index]
        if panoptic.ids.shape != (height, width):
            sides = panoptic.ids.shape
            faults.insert(0, f"the PNG has {sides[1]} x {sides[0]} pixels, the image {width} x {height}")
        if faults:
            raise DqdetError(
                f"{file}: image {self.image_ids[index]}: {listed(faults, '; ')}; "
                f"correct the PNG or {self.annotation_file}"
            )
        return self._merged(panoptic)

    def _merged(self, panoptic: PanopticMap) -> PanopticMap:
        stuff = {category["id"] for category in self.panoptic_categories if not category["isthing"]}
        first: dict[int, int] = {}  # category -> its first segment
        segments = []
        for segment in panoptic.segments:
            if segment["category_id"] in stuff and not segment["iscrowd"]:
                merged_id = first.setdefault(segment["category_id"], segment["id"])
                if merged_id != segment["id"]:
                    panoptic.ids[panoptic.ids == segment["id"]] = merged_id
                    continue
            segments.append(segment)
        return PanopticMap(panoptic.ids, segments)

    def has_objects(self) -> bool:
        return not self.segments[:, 2].all()  # some are no crowds

    def ground_truth(self) -> dict[str, Any]:
        """The things as a COCO dictionary with masks, crowds included.

        It is the official file of instances where there are things and that lies beside the panoptic one, since
        published instance AP is measured against it (objects may overlap there); otherwise it is made from the maps.

        Raises:
            DqdetError: the file lacks images or has other things; or maps cannot be read or used.
        """
        file = self.annotation_file.with_name(self.annotation_file.name.replace("panoptic", "instances", 1))
        things = {category["id"]: category["name"] for category in self.panoptic_categories if category["isthing"]}
        if not (things and file.is_file()):
            return super().ground_truth()
        document = read_document(file)
        refuse(file, find_faults(document, masks=True), {})
        found = {category["id"]: category["name"] for category in document["categories"]}
        if found != things:
            raise DqdetError(
                f"{file}: its {len(found)} categories are not the {len(things)} things of {self.annotation_file} "
                f"(differing ids: {listed(sorted(dict(found.items() ^ things.items())))}); correct or remove it"
            )
        wanted = set(self.image_ids)
        missing = wanted - {image["id"] for image in document["images"]}
        if missing:
            raise DqdetError(
                f"{file}: lacks {len(missing)} of {len(wanted)} images of {self.annotation_file}: "
                f"{listed(sorted(missing))}; download it again or remove it"
            )
        images = [image for image in document["images"] if image["id"] in wanted]
        annotations = [annotation for annotation in document["annotations"] if annotation["image_id"] in wanted]
        return completed({"info": {}, **document, "images": images, "annotations": annotations}, masks=True)
