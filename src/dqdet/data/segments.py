"""Data sets whose annotation of an image is a map of segments, from which masks, boxes and COCO's records follow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import Tensor
from torchvision import tv_tensors

from dqdet.data.dataset import DetectionDataset
from dqdet.data.transforms import Sample
from dqdet.errors import DqdetError, listed
from dqdet.formats.rle import encode
from dqdet.types import PanopticMap


def _objects(panoptic: PanopticMap, segments: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Masks ``[N, H, W]`` (bool) of some of the segments, and the boxes ``[N, 4]`` (x0, y0, x1, y1) around them.

    Raises:
        ValueError: a segment has no pixel.
    """
    ids = [segment["id"] for segment in segments]
    # Numbered from 1 to N, because find_objects makes room for all numbers up to the largest.
    numbers = np.zeros(max([panoptic.ids.max(), *ids]) + 1, dtype=np.int32)
    numbers[ids] = np.arange(1, len(ids) + 1)
    numbered = numbers[panoptic.ids]  # [H, W]
    boxes = []
    for segment_id, place in zip(ids, find_objects(numbered, max_label=len(ids)) if ids else [], strict=True):
        if place is None:
            raise ValueError(f"segment {segment_id} has no pixel")
        rows, columns = place
        boxes.append((columns.start, rows.start, columns.stop, rows.stop))
    masks = torch.from_numpy(numbered) == torch.arange(1, len(ids) + 1)[:, None, None]
    return masks, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def as_sample(image: tv_tensors.Image, panoptic: PanopticMap, category_ids: Sequence[int]) -> Sample:
    """An image with the segments of the given categories as its objects, with masks; crowds are none.

    Args:
        image: ``[3, H, W]`` uint8, of the size of the map.
        panoptic: every segment of the list has a pixel in the map.
        category_ids: the category of each label.
    """
    label = {category_id: label for label, category_id in enumerate(category_ids)}
    segments = [s for s in panoptic.segments if s["category_id"] in label and not s.get("iscrowd")]
    masks, boxes = _objects(panoptic, segments)
    return {
        "image": image,
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=panoptic.ids.shape),
        "labels": torch.tensor([label[segment["category_id"]] for segment in segments], dtype=torch.int64),
        "masks": tv_tensors.Mask(masks.view(torch.uint8)),
    }


def as_annotations(panoptic: PanopticMap, category_ids: Sequence[int], image_id: int) -> list[dict[str, Any]]:
    """COCO's instance records of the segments of the given categories, crowds included; without their own ids."""
    segments = [segment for segment in panoptic.segments if segment["category_id"] in category_ids]
    masks, boxes = _objects(panoptic, segments)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": segment["category_id"],
            "bbox": box,
            "area": int(mask.sum()),
            "iscrowd": int(segment.get("iscrowd", 0)),
            "segmentation": encode(mask[None])[0],
        }
        for segment, box, mask in zip(segments, boxes.tolist(), masks, strict=True)
    ]


class SegmentsDataset(DetectionDataset):
    """A data set with a panoptic map for each image, whatever part of it the task uses."""

    file_names: Sequence[str] | np.ndarray  # of the images
    panoptic_categories: list[dict[str, Any]]  # of the maps: COCO's records with id, name, isthing and color

    @abstractmethod
    def panoptic(self, index: int) -> PanopticMap:
        """The segments of an image in its original size, crowds included.

        Raises:
            DqdetError: the map cannot be read or used.
        """

    def ground_truth(self) -> dict[str, Any]:
        """The things of all maps as a COCO dictionary with masks, crowds included.

        Raises:
            DqdetError: maps cannot be read or used; names all of them.
        """
        things = {category["id"]: category["name"] for category in self.panoptic_categories if category["isthing"]}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        faults = []
        for index, image_id in enumerate(self.image_ids):
            try:
                panoptic = self.panoptic(index)
            except DqdetError as fault:
                faults.append(fault)
                continue
            height, width = panoptic.ids.shape
            name = str(self.file_names[index])
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for annotation in as_annotations(panoptic, list(things), image_id):
                annotations.append({"id": len(annotations) + 1} | annotation)
        if faults:
            raise DqdetError(listed(faults, "; "))
        categories = [{"id": number, "name": name} for number, name in things.items()]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}
