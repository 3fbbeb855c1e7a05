"""Images as clips: SeqFormer's joint training (Wu et al., 2022) learns from videos and from images of COCO.

A pseudo-clip is one image several times. One frame is the image as it is; in each of the others it is lit, distorted,
shifted and rotated in its own way, as if the camera had moved, and some are blurred.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from dqdet.config import DataConfig
from dqdet.data.clips import Clip, VideoDataset, clip_target
from dqdet.data.coco import CocoDataset
from dqdet.data.dataset import DetectionDataset
from dqdet.data.transforms import Sample
from dqdet.errors import DqdetError
from dqdet.types import Target

# COCO's category -> that of YouTube-VIS, as published, bicycles among the motorbikes included. Left out is the one
# pair of the published list that is a mistake: the computer mouse, which it counts among the foxes.
VIDEO_NAMES = {
    "person": "person",
    "bicycle": "motorbike",
    "car": "sedan",
    "motorcycle": "motorbike",
    "airplane": "airplane",
    "train": "train",
    "truck": "truck",
    "boat": "boat",
    "cat": "cat",
    "dog": "dog",
    "horse": "horse",
    "cow": "cow",
    "elephant": "elephant",
    "bear": "bear",
    "zebra": "zebra",
    "giraffe": "giraffe",
    "snowboard": "snowboard",
    "skateboard": "skateboard",
    "surfboard": "surfboard",
    "tennis racket": "tennis_racket",
}
MOST_OBJECTS = 25  # of an image that is used, as published

# Ranges as published; where the operation of torchvision is another one, such that the effect is about as strong.
CAMERA = v2.Compose(
    [
        v2.ColorJitter(brightness=0.3, saturation=0.05, hue=0.02),
        v2.RandomPerspective(distortion_scale=0.16, p=1.0),
        v2.RandomAffine(degrees=20, translate=(0.1, 0.1), interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(1.0, 3.0))], p=0.25),
    ]
)


def pseudo_clip(image: tv_tensors.Image, masks: tv_tensors.Mask, labels: torch.Tensor, count: int) -> Clip:
    """A clip of ``count`` frames of an image ``[3, H, W]`` and its objects with masks ``[N, H, W]``."""
    moved = [CAMERA({"image": image, "masks": masks}) for _ in range(count - 1)]
    moved.insert(int(torch.randint(count, ())), {"image": image, "masks": masks})
    all_masks = torch.stack([frame["masks"] for frame in moved])  # [T, N, H, W]
    frames, objects = all_masks.flatten(2).any(2).nonzero(as_tuple=True)  # [M]
    visible = all_masks[frames, objects]  # [M, H, W]
    boxes = masks_to_boxes(visible) + torch.tensor([0, 0, 1, 1])
    return {
        "image": tv_tensors.Video(torch.stack([frame["image"] for frame in moved])),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=visible.shape[1:]),
        "labels": labels[objects],
        "masks": tv_tensors.Mask(visible),
        "tracks": objects,
        "frames": frames,
    }


class PseudoClips(DetectionDataset):
    """One pseudo-clip of each usable image of COCO, for training.

    An image is usable if it has objects of the videos' classes, and not too many. Its other objects are no objects.
    The colours of pseudo-clips are not distorted, as published: the camera has done so already.

    Args:
        videos: whose labels are used.
        config: says where the images are (``config.clips.images``), and how clips are augmented.
        seed: of the augmentation, not negative.

    Raises:
        DqdetError: the images are missing or faulty, or none of them shows what the videos are annotated with.
    """

    def __init__(self, videos: VideoDataset, config: DataConfig, seed: int) -> None:
        super().__init__(config.model_copy(update={"colour": False}), "train", seed)
        self.count = config.clips.frames
        changes = {"kind": "coco", "task": "instance", "root": config.clips.images, "train": None}
        self.images = CocoDataset(config.model_copy(update=changes), "train", seed)
        self.classes, self.category_ids = videos.classes, videos.category_ids
        numbers = {name: label for label, name in enumerate(videos.classes)}
        # Label of the videos for each label of the images; -1: none of their classes
        self.labels = np.array([numbers.get(VIDEO_NAMES.get(name, ""), -1) for name in self.images.classes])
        image_of = np.repeat(np.arange(len(self.images)), np.diff(self.images.starts))  # [objects]
        known = self.labels[self.images.labels] >= 0
        objects = np.bincount(image_of[known], minlength=len(self.images))  # [images]
        self.usable = np.flatnonzero((objects > 0) & (objects <= MOST_OBJECTS))
        if not len(self.usable):
            raise DqdetError(
                f"{self.images.annotation_file}: no image shows an object of a class of the videos; "
                "set data.clips.images to a folder of COCO, or leave it out"
            )
        self.image_ids = [self.images.image_ids[index] for index in self.usable]
        self.aspect_ratios = self.images.aspect_ratios[self.usable]

    def file_faults(self) -> list[str]:
        return self.images.file_faults()

    def read(self, index: int) -> Sample:
        sample = self.images.read(int(self.usable[index]))
        labels = torch.from_numpy(self.labels)[sample["labels"]]
        known = labels >= 0
        return pseudo_clip(sample["image"], tv_tensors.Mask(sample["masks"][known]), labels[known], self.count)

    def target(self, sample: Sample, original_size: tuple[int, int], image_id: int) -> Target:
        return clip_target(super().target(sample, original_size, image_id), sample)  # type: ignore[arg-type]

    def ground_truth(self) -> dict[str, Any]:
        """That of the images, whose classes are others."""
        return self.images.ground_truth()


class JointDataset(DetectionDataset):
    """The training clips of a data set of videos, followed by pseudo-clips of images of COCO."""

    def __init__(self, videos: VideoDataset, pseudo: PseudoClips) -> None:
        self.videos, self.pseudo = videos, pseudo
        self.classes, self.category_ids = videos.classes, videos.category_ids
        self.image_ids = videos.image_ids + pseudo.image_ids
        self.aspect_ratios = np.concatenate([videos.aspect_ratios, pseudo.aspect_ratios])

    def file_faults(self) -> list[str]:
        return self.videos.file_faults() + self.pseudo.file_faults()

    def set_epoch(self, epoch: int) -> None:
        self.videos.set_epoch(epoch)
        self.pseudo.set_epoch(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        part, index = self._part(index)
        return part[index]

    def read(self, index: int) -> Sample:
        part, index = self._part(index)
        return part.read(index)

    def has_objects(self) -> bool:
        return True  # an image is usable for its objects

    def _part(self, index: int) -> tuple[DetectionDataset, int]:
        videos = len(self.videos)
        return (self.videos, index) if index < videos else (self.pseudo, index - videos)

    def ground_truth(self) -> dict[str, Any]:
        """That of the videos."""
        return self.videos.ground_truth()
