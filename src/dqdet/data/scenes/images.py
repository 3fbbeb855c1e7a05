"""Scenes (``scenes.py``) as a data set of boxes, instance masks or panoptic maps."""

from __future__ import annotations

import colorsys

import numpy as np
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_image

from dqdet.config import DataConfig
from dqdet.data.dataset import Split
from dqdet.data.scenes.scene import CLASSES, STUFF, draw_scene, render, scene_kind
from dqdet.data.segments import SegmentsDataset, as_sample
from dqdet.data.transforms import Sample
from dqdet.types import PanopticMap

CATEGORY_IDS = {name: number for number, name in enumerate([*CLASSES, *STUFF], start=1)}
CATEGORIES = [
    {
        "id": number,
        "name": name,
        "isthing": int(name in CLASSES),
        "color": [round(255 * channel) for channel in colorsys.hsv_to_rgb(number / len(CATEGORY_IDS), 0.7, 0.9)],
    }
    for name, number in CATEGORY_IDS.items()
]
# Of the scenes that a data set keeps, at 11 bytes each: to draw one takes as long as a tiny model takes to look at it.
KEPT_PIXELS = 2**24


class ScenesDataset(SegmentsDataset):
    """Scenes with their objects. Item i of a split is a pure function of (``config.scenes.seed``, split, i).

    Masks and boxes are those of the visible pixels. Objects that others hide completely are no objects. In the
    panoptic task, the regions of one name in a picture are one object more.
    """

    panoptic_categories = CATEGORIES

    def __init__(self, config: DataConfig, split: Split, seed: int = 0) -> None:
        super().__init__(config, split, seed)
        self.scenes = config.scenes
        self.task = config.task
        self.split_number = ("train", "val").index(split)
        count = self.scenes.train_images if split == "train" else self.scenes.val_images
        self.stuff = STUFF if self.task == "panoptic" else []
        self.classes = [*CLASSES, *self.stuff]
        self.category_ids = [CATEGORY_IDS[name] for name in self.classes]
        self.image_ids = list(range(1, count + 1))
        self.file_names = [f"{image_id}.png" for image_id in self.image_ids]
        self.aspect_ratios = np.ones(count)
        self.kept: dict[int, tuple[tv_tensors.Image, PanopticMap]] = {}

    def kind(self, index: int) -> str:
        """Of the scene: ``open_air``, ``street``, ``meadow``, ``lake`` or ``table``."""
        return scene_kind(self.scenes.seed, self.split_number, index)

    def _drawn(self, index: int) -> tuple[tv_tensors.Image, PanopticMap]:
        """What :meth:`_draw` gives, kept for the next epoch while there is room."""
        drawn = self.kept.get(index) or self._draw(index)
        if len(self.kept) < KEPT_PIXELS // self.scenes.size**2:
            self.kept[index] = drawn
        return drawn

    def _draw(self, index: int) -> tuple[tv_tensors.Image, PanopticMap]:
        """The picture, and all that is visible in it: stuff first, then things from the farthest to the nearest."""
        scene = draw_scene(self.scenes.seed, self.split_number, index)
        image, segments = render(scene, self.scenes.size)
        names = [region.name for region in scene.regions]
        # A region goes by the number of the first one of its name; 0 is void.
        ids = [names.index(name) + 1 for name in names]
        ids += range(len(names) + 1, len(names) + len(scene.objects) + 1)
        names += [thing.category for thing in scene.objects]
        merged = np.array(ids)[segments]  # [size, size]
        return to_image(image), PanopticMap(
            merged,
            [{"id": number, "category_id": CATEGORY_IDS[names[number - 1]]} for number in np.unique(merged).tolist()],
        )

    def read(self, index: int) -> Sample:
        sample = as_sample(*self._drawn(index), self.category_ids)
        if self.task == "detection":
            del sample["masks"]
        return sample

    def panoptic(self, index: int) -> PanopticMap:
        """What is visible at each pixel; none is void."""
        return self._drawn(index)[1]
