"""Training images that are made of several: mosaic, copy-paste and mixup.

Mosaic is that of YOLOv4 (Bochkovskiy et al., 2020), copy-paste that of Ghiasi et al. (CVPR 2021), mixup as detection
has it (Zhang et al., "Bag of Freebies", 2019): the objects of both images are wanted. All of them keep height and width
of the first image. All randomness comes from the global PyTorch generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import query_size

from dqdet.config import AugmentConfig
from dqdet.data.transforms import DropVanished, RandomSizeCrop, Resize, Sample, uniform

CENTRE = (0.3, 0.7)  # where the four images of a mosaic meet, of height and width
PASTED = 0.5  # chance of each object to be copied
MIXED = (0.4, 0.6)  # share of the first of two mixed images


class Cover(Resize):
    """Resize, with proportions kept, to the least size that ``size`` (height, width) fits into, times a factor."""

    def __init__(self, size: tuple[int, int], factor: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.factor = factor

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = query_size(flat_inputs)
        scale = self.factor * max(wanted / side for wanted, side in zip(self.size, sides, strict=True))
        return {"size": [max(wanted, round(side * scale)) for wanted, side in zip(self.size, sides, strict=True)]}


def filling(sample: Sample, size: tuple[int, int], factor: float = 1.0) -> Sample:
    """A part of a sample, at a random place, that fills ``size``: height, width. Objects outside of it are dropped."""
    return v2.Compose([Cover(size, factor), RandomSizeCrop(size, size), DropVanished()])(sample)


def mosaic(samples: Sequence[Sample]) -> Sample:
    """Four images that meet at a random point, in the size of the first one.

    Each of them would fill the whole picture at most, and its quarter at least: its size is drawn between the two.
    """
    height, width = query_size([samples[0]["image"]])
    y, x = round(height * uniform(*CENTRE)), round(width * uniform(*CENTRE))
    pieces = []
    places = product(pairwise((0, y, height)), pairwise((0, x, width)))
    for sample, ((top, bottom), (left, right)) in zip(samples, places, strict=True):
        quarter = bottom - top, right - left
        if not all(quarter):  # of an image with a side of one pixel
            continue
        whole = min(height / quarter[0], width / quarter[1])
        piece = filling(sample, quarter, uniform(1.0, whole))
        pieces.append(v2.Pad([left, top, width - right, height - bottom])(piece))
    image = torch.stack([piece["image"] for piece in pieces]).sum(0, dtype=torch.uint8)  # each is black around its part
    return _joined(image, pieces)


def pasted(sample: Sample, other: Sample) -> Sample:
    """Some objects of another image, by their masks, on top of those of the first one."""
    other = filling(other, query_size([sample["image"]]))
    chosen = torch.rand(len(other["labels"])) < PASTED  # [M]
    other = _objects(other, chosen)
    pixels = other["masks"].bool().any(0)  # [H, W]
    below = cast(Sample, sample | {"masks": tv_tensors.wrap(sample["masks"] * ~pixels, like=sample["masks"])})
    image = torch.where(pixels, other["image"], sample["image"])
    return DropVanished()(_joined(image, [below, other]))


def mixed(sample: Sample, other: Sample) -> Sample:
    """Two images in one, each half transparent, with the objects of both."""
    other = filling(other, query_size([sample["image"]]))
    share = uniform(*MIXED)
    image = (share * sample["image"] + (1 - share) * other["image"]).round().to(torch.uint8)
    return _joined(image, [sample, other])


class Combination:
    """An image with others, as ``config`` has it; each of the kinds happens by its own chance."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, sample: Sample, another: Callable[[], Sample]) -> Sample:
        """``another`` reads an image that is drawn at random."""
        if _happens(self.config.mosaic):
            sample = mosaic([sample, another(), another(), another()])
        if _happens(self.config.copy_paste):
            sample = pasted(sample, another())
        if _happens(self.config.mixup):
            sample = mixed(sample, another())
        return sample


def _happens(chance: float) -> bool:
    """Nothing is drawn where there is no chance, so that the draws of all others stay what they are."""
    return chance > 0 and bool(torch.rand(()) < chance)


def _objects(sample: Sample, chosen: Tensor) -> Sample:
    kept = {name: tv_tensors.wrap(sample[name][chosen], like=sample[name]) for name in _names(sample)}  # type: ignore[literal-required]
    return cast(Sample, {"image": sample["image"], **kept})


def _joined(image: Tensor, samples: Sequence[Sample]) -> Sample:
    """The objects of several samples in one image of the same size."""
    first = samples[0]
    joined = {
        name: tv_tensors.wrap(torch.cat([sample[name] for sample in samples]), like=first[name])  # type: ignore[literal-required]
        for name in _names(first)
    }
    return cast(Sample, {"image": tv_tensors.Image(image), **joined})


def _names(sample: Sample) -> list[str]:
    return [name for name in sample if name != "image"]
