"""DETR's augmentation (Carion et al., 2020, Section 4) with ``torchvision.transforms.v2``.

A transform takes and returns a ``Sample``: the image with the boxes, labels and, where there are any, masks
of its objects, so that all of them go through the same geometry. All randomness comes from the global PyTorch
generator; ``DetectionDataset`` seeds it for each item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, cast

import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dqdet.config import DataConfig

# Of ImageNet, which the backbones were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# The crop branch as published, for images whose shorter side is at most 800. It scales with data.resize.
PUBLISHED_SIZE = 800
BEFORE_CROP = (400, 500, 600)  # shorter side before the crop
CROP = (384, 600)  # least and greatest side of the crop


class Sample(TypedDict):
    """An image and its N objects on the way through the transforms."""

    image: PIL.Image.Image | Tensor  # Tensor [3, H, W] after the last transform
    boxes: tv_tensors.BoundingBoxes  # [N, 4] x0, y0, x1, y1 in pixels
    labels: Tensor  # [N]
    masks: NotRequired[tv_tensors.Mask]  # [N, H, W] uint8


def resized(height: int, width: int, shorter: int, longest: int | None = None) -> tuple[int, int]:
    """Height and width after the shorter side is brought to ``shorter`` pixels, rounded as in official DETR.

    When the longer side would exceed ``longest``, the shorter side becomes smaller instead. It is rounded to a
    whole number first, so that the longer side of a very long image may end up slightly above ``longest``.
    """
    low, high = min(height, width), max(height, width)
    if longest is not None and high / low * shorter > longest:
        shorter = max(1, round(longest * low / high))
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


class RandomShorterSide(v2.Transform):
    """Resize so that the shorter side is one of ``sizes``, drawn uniformly; see ``resized``."""

    def __init__(self, sizes: Sequence[int], longest: int | None = None) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.longest = longest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        shorter = self.sizes[int(torch.randint(len(self.sizes), ()))]
        height, width = v2.query_size(flat_inputs)
        return {"size": resized(height, width, shorter, self.longest)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, size=list(params["size"]))


class RandomSizeCrop(v2.Transform):
    """Crop a rectangle at a random place; its sides are drawn uniformly from ``least`` to ``greatest``."""

    def __init__(self, least: int, greatest: int) -> None:
        super().__init__()
        self.least = least
        self.greatest = greatest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = {}
        for start, side, available in zip(
            ("top", "left"), ("height", "width"), v2.query_size(flat_inputs), strict=True
        ):
            greatest = min(self.greatest, available)
            params[side] = int(torch.randint(min(self.least, greatest), greatest + 1, ()))
            params[start] = int(torch.randint(available - params[side] + 1, ()))
        return params

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class DropVanished(v2.Transform):
    """Drop the objects whose box has no area left.

    ``v2.SanitizeBoundingBoxes`` is not used because it also drops boxes below a pixel, which DETR keeps.
    """

    def forward(self, sample: Sample) -> Sample:
        boxes = sample["boxes"]
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        objects = {name: value for name, value in sample.items() if name != "image"}
        kept = {name: tv_tensors.wrap(value[keep], like=value) for name, value in objects.items()}  # type: ignore[index]
        return cast(Sample, {"image": sample["image"], **kept})


def make_transform(config: DataConfig, train: bool) -> v2.Compose:
    """Everything between a decoded RGB image and the network.

    Training: horizontal flip, then either a multi-scale resize or, with equal chance, a resize, a random crop
    and a multi-scale resize. Otherwise a resize to ``val_resize`` only, which also accepts a bare image.
    """
    steps: list[v2.Transform] = []
    if train:
        if config.flip:
            steps.append(v2.RandomHorizontalFlip(0.5))
        resize: v2.Transform = RandomShorterSide(config.resize, config.max_size)
        if config.crop:
            scale = max(config.resize) / PUBLISHED_SIZE
            before, (least, greatest) = (
                [max(1, round(side * scale)) for side in sides] for sides in (BEFORE_CROP, CROP)
            )
            crop = v2.Compose([RandomShorterSide(before), RandomSizeCrop(least, greatest), DropVanished(), resize])
            resize = v2.RandomChoice([resize, crop])
        steps.append(resize)
    else:
        steps.append(RandomShorterSide([config.val_resize], config.max_size))
    return v2.Compose(
        [
            *steps,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.ToPureTensor(),
        ]
    )
