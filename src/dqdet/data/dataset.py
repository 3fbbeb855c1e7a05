"""What training and evaluation need of a detection data set, whatever its files look like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert
from torchvision.transforms.v2 import query_size

from dqdet.config import DataConfig
from dqdet.data.combining import Combination
from dqdet.data.transforms import Sample, make_transform
from dqdet.types import Target

Split = Literal["train", "val"]

REDRAWS = 100  # of an item, before it stays without objects


class DetectionDataset(Dataset[tuple[Tensor, Target]], ABC):
    """Images with their objects, augmented.

    Items are ``(image, target)``: the image ``[3, h, w]`` of uint8, RGB, and a ``Target``. The augmentation of item
    i is a pure function of (seed, epoch, i), so it depends neither on the worker nor on what was read before. With
    ``config.redraw_empty``, another item of "train", drawn at random, takes the place of one without objects.

    Args:
        config: where the data is and how it is augmented.
        split: "train" items are augmented, "val" items only resized.
        seed: of the augmentation, not negative.
    """

    classes: list[str]  # names in label order
    category_ids: list[int]  # the data set's own id of each label
    stuff: Sequence[str] = ()  # the classes among them that are regions, not objects (panoptic)
    image_ids: list[int]  # of every item
    aspect_ratios: np.ndarray  # width / height of every item before augmentation
    padded_size: tuple[int, int] | None = None  # height, width of batches; None: those of their largest image

    def __init__(self, config: DataConfig, split: Split, seed: int) -> None:
        self.seed = seed
        self.transform = make_transform(config, train=split == "train")
        self.combine = Combination(config.augment) if split == "train" and config.augment.combines else None
        self.padded_size = None if split == "train" else config.val_pad
        self.redraws = REDRAWS if config.redraw_empty and split == "train" else 0
        # In shared memory, because worker processes outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @abstractmethod
    def read(self, index: int) -> Sample:
        """The image (RGB, not augmented) and its objects, without crowds.

        What is random in it comes from the global PyTorch generator, like the augmentation.
        """

    @abstractmethod
    def ground_truth(self) -> dict[str, Any]:
        """The annotations as a COCO dictionary, boxes in pixels of the original images, crowds included."""

    def has_objects(self) -> bool:
        """Whether there is anything to learn or to measure, crowds apart. Those who know better say so."""
        return True

    def file_faults(self) -> list[str]:
        """What is wrong with the image files, as far as their headers tell; nothing where images are generated."""
        return []

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation of the items read from now on, in worker processes too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Raises DqdetError when the file cannot be read."""
        entropy = np.random.SeedSequence([self.seed, int(self._epoch), index])
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would reset the accelerators' generators too.
            torch.default_generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
            image, target = self.draw(index)
            for _ in range(self.redraws):
                if len(target.labels):
                    break
                image, target = self.draw(int(torch.randint(len(self), ())))
        return image, target

    def draw(self, index: int) -> tuple[Tensor, Target]:
        """An item, augmented with what the global PyTorch generator gives."""
        sample = self.read(index)
        height, width = query_size([sample["image"]])
        sample = self.augmented(sample)
        image = sample["image"]
        assert isinstance(image, Tensor)
        return image, self.target(sample, original_size=(height, width), image_id=self.image_ids[index])

    def augmented(self, sample: Sample) -> Sample:
        """A sample of ``read`` after all transforms, with other images in it where ``config.augment`` says so."""
        if self.combine is not None:
            sample = self.combine(sample, lambda: self.read(int(torch.randint(len(self), ()))))
        return self.transform(sample)

    def target(self, sample: Sample, original_size: tuple[int, int], image_id: int) -> Target:
        """The objects of an augmented sample, with boxes relative to its image."""
        height, width = query_size([sample["image"]])
        labels, masks = sample["labels"], sample.get("masks")
        return Target(
            labels=labels,
            boxes=box_convert(sample["boxes"], "xyxy", "cxcywh") / torch.tensor([width, height, width, height]),
            size=(height, width),
            original_size=original_size,
            image_id=image_id,
            masks=None if masks is None else masks.bool(),
        )
