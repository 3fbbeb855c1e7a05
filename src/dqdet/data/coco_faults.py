"""What cannot be used of a document in COCO's detection format, whatever files it was read from."""

from __future__ import annotations

from typing import Any

from dqdet.errors import value_text
from dqdet.formats.masks import segmentation_fault
from dqdet.formats.records import (
    FARTHEST,
    FINITE,
    LARGEST_AREA,
    are_numbers,
    category_faults,
    crowd_fault,
    image_fault,
    is_id,
    record_faults,
)


def _annotation_fault(annotation: dict[str, Any], image_ids: set[int], category_ids: set[int]) -> str | None:
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        if not (is_id(annotation.get(key)) and annotation[key] in known):
            return f"has the unknown {key} {value_text(annotation.get(key))}"
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and are_numbers(box, FINITE)):
        return f"has a bbox that is not 4 finite numbers: {value_text(box)}"
    if not are_numbers(box):
        return f"has a bbox with numbers beyond {FARTHEST:.0f}: {value_text(box)}"
    area = annotation.get("area", 0)
    if not are_numbers([area], LARGEST_AREA):
        return f"has an area that is not a number of at most {LARGEST_AREA:.0e}: {value_text(area)}"
    return crowd_fault(annotation)


def find_faults(document: dict[str, Any], masks: bool) -> list[str]:
    """All records of a file in the detection format that cannot be used, with the reason."""
    bad_images, image_ids = record_faults("image", document["images"], image_fault)
    bad_categories, category_ids = category_faults(document["categories"])
    sizes = {
        image["id"]: (image["height"], image["width"])
        for image in document["images"]
        if isinstance(image, dict) and is_id(image.get("id")) and image_fault(image) is None
    }

    def fault(annotation: dict[str, Any]) -> str | None:
        reason = _annotation_fault(annotation, image_ids, category_ids)
        if reason is None and masks and annotation["image_id"] in sizes:
            return segmentation_fault(annotation.get("segmentation"), *sizes[annotation["image_id"]])
        return reason

    bad_annotations, _ = record_faults("annotation", document["annotations"], fault)
    return bad_images + bad_categories + bad_annotations
