"""The published augmentations with ``torchvision.transforms.v2``.

Those of DETR (Carion et al., 2020, Section 4), large-scale jitter (Ghiasi et al., "Simple Copy-Paste", CVPR 2021)
and, for Cityscapes, multi-scale crops with the photometric distortion of SSD (Liu et al., ECCV 2016).

A transform takes and returns a ``Sample``: the image with the boxes, labels and, where there are any, masks
of its objects, so that all of them go through the same geometry. The frames of a clip go through it together. All
randomness comes from the global PyTorch generator; ``DetectionDataset`` seeds it for each item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from dqdet.config import AugmentConfig, DataConfig

# The crop branch as published, for images whose shorter side is at most 800. It scales with data.resize.
PUBLISHED_SIZE = 800
BEFORE_CROP = (400, 500, 600)  # shorter side before the crop
CROP = (384, 600)  # least and greatest side of the crop

BLUR = (0.3, 2.0)  # standard deviation in pixels, of data.augment.blur
QUALITY = (30, 90)  # of data.augment.jpeg


class Sample(TypedDict):
    """An image and its N objects on the way through the transforms.

    Of a clip the image is a ``tv_tensors.Video [T, 3, H, W]``, and an object counts once in each frame it is in.
    """

    image: tv_tensors.Image | tv_tensors.Video | Tensor  # [3, H, W] uint8; a plain tensor after the last transform
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


def resized_exactly(height: int, width: int, shorter: int, longest: int | None = None) -> tuple[int, int]:
    """As ``resized``, but the longer side follows from the shorter one before it is rounded, as in ``transformers``."""
    low, high = min(height, width), max(height, width)
    side = float(shorter)
    if longest is not None and high / low * shorter > longest:
        side = longest * low / high
    if round(side) == low:
        return height, width
    sides = max(1, round(side)), int(side * high / low)
    return sides if height <= width else sides[::-1]


def input_size(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    """Height and width that ``config`` gives to an image in validation and prediction."""
    longest = config.max_size if config.val_max_size is None else config.val_max_size or None
    size = height, width
    match config.val_fit:
        case "shorter" if config.square:
            size = config.val_resize, config.val_resize
        case "shorter":
            size = resized(height, width, config.val_resize, longest)
        case "exact":
            size = resized_exactly(height, width, config.val_resize, longest)
        case "inside":
            assert config.val_size is not None, "the configuration has checked it"
            scale = min(config.val_size[0] / height, config.val_size[1] / width)
            size = max(1, int(height * scale)), max(1, int(width * scale))
        case "stretch":
            assert config.val_size is not None, "the configuration has checked it"
            size = config.val_size
    height, width = (-(-side // config.val_divisor) * config.val_divisor for side in size)
    return height, width


class Resize(v2.Transform):
    """Resize to the height and width that ``make_params`` returns as ``size``."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            # torchvision takes the first pixel of each cell, which would shift masks by up to half a pixel against
            # their image; this is the one in the middle, as Pillow and the published code do.
            nearest = F.resize_image(inpt, params["size"], InterpolationMode.NEAREST_EXACT)
            return tv_tensors.wrap(nearest, like=inpt)
        return self._call_kernel(F.resize, inpt, size=params["size"])


class RandomSquare(Resize):
    """Resize to a square with one of ``sizes`` as its side, drawn uniformly; proportions are not kept."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        side = self.sizes[int(torch.randint(len(self.sizes), ()))]
        return {"size": [side, side]}


class RandomShorterSide(Resize):
    """Resize so that the shorter side is one of ``sizes``, drawn uniformly; see ``resized``."""

    def __init__(self, sizes: Sequence[int], longest: int | None = None) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.longest = longest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        shorter = self.sizes[int(torch.randint(len(self.sizes), ()))]
        height, width = v2.query_size(flat_inputs)
        return {"size": list(resized(height, width, shorter, self.longest))}


class ToInputSize(Resize):
    """Resize as ``config`` says for validation and prediction; see ``input_size``.

    Pillow resizes images here, as in the published evaluations. PyTorch, which does it in training, is six times as
    fast, but rounds otherwise: values differ by up to 1.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.config = config

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return {"size": list(input_size(height, width, self.config))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Image):
            return F.to_image(F.resize(F.to_pil_image(inpt), params["size"]))
        return super().transform(inpt, params)


class RandomScale(Resize):
    """Resize to the largest size that fits into ``window`` times a factor drawn uniformly from ``factors``.

    Args:
        window: height, width.
        factors: least and greatest.
    """

    def __init__(self, window: tuple[int, int], factors: tuple[float, float]) -> None:
        super().__init__()
        self.window = window
        self.factors = factors

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = float(torch.empty(()).uniform_(*self.factors))
        sides = v2.query_size(flat_inputs)
        scale = min(factor * greatest / side for greatest, side in zip(self.window, sides, strict=True))
        return {"size": [max(1, round(side * scale)) for side in sides]}


class RandomSizeCrop(v2.Transform):
    """Crop a rectangle of random size at a random place, both drawn uniformly.

    Args:
        least: height, width of the smallest rectangle.
        greatest: height, width of the largest one; none is larger than the image.
    """

    def __init__(self, least: tuple[int, int], greatest: tuple[int, int]) -> None:
        super().__init__()
        self.least = least
        self.greatest = greatest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        params = {}
        for start, side, available, least, greatest in (
            ("top", "height", height, self.least[0], self.greatest[0]),
            ("left", "width", width, self.least[1], self.greatest[1]),
        ):
            greatest = min(greatest, available)
            params[side] = int(torch.randint(min(least, greatest), greatest + 1, ()))
            params[start] = int(torch.randint(available - params[side] + 1, ()))
        return params

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        cropped = self._call_kernel(F.crop, inpt, **params)
        if isinstance(inpt, tv_tensors.Image):
            # With the bytes side by side the next resize is twice as fast.
            return tv_tensors.wrap(cropped[None].contiguous(memory_format=torch.channels_last)[0], like=inpt)
        return cropped


class PadTo(v2.Transform):
    """Pad at the right and bottom what is smaller than ``size`` (height, width), with grey as published."""

    GREY = 128

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = (max(0, size - side) for size, side in zip(self.size, v2.query_size(flat_inputs), strict=True))
        return {"padding": [0, 0, width, height]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        fill = 0 if isinstance(inpt, tv_tensors.Mask) else self.GREY
        return self._call_kernel(F.pad, inpt, **params, fill=fill)


class DropVanished(v2.Transform):
    """Drop the objects of which nothing is left: no area of the box, or no pixel of the mask.

    Where there are masks, boxes become those around what is left of them.

    ``v2.SanitizeBoundingBoxes`` is not used because it also drops boxes below a pixel, which DETR keeps.
    """

    def forward(self, sample: Sample) -> Sample:
        objects: dict[str, Tensor] = {name: value for name, value in sample.items() if name != "image"}  # type: ignore[misc]
        if "masks" in sample:
            boxes = masks_to_boxes(sample["masks"])  # [N, 4] of the outermost pixels, zero without pixels
            boxes[:, 2:] += sample["masks"].flatten(1).any(1, keepdim=True)
            objects["boxes"] = tv_tensors.wrap(boxes, like=sample["boxes"])
        keep = (objects["boxes"][:, 2:] > objects["boxes"][:, :2]).all(1)
        kept = {name: tv_tensors.wrap(value[keep], like=value) for name, value in objects.items()}
        return cast(Sample, {"image": sample["image"], **kept})


class PhotometricDistortion(v2.Transform):
    """That of SSD (Liu et al., ECCV 2016), of each frame of a clip on its own.

    Brightness, contrast, saturation and hue change with a chance of one half each, brightness first, contrast before
    or after the other two. ``v2.RandomPhotometricDistort`` is not used, because its operations are others: the
    published ones add to the channels (brightness), multiply them (contrast) and scale the saturation of HSV.

    Args:
        hue: greatest shift, in turns of the colour circle. SSD: 18 of 360 degrees. Mask2Former: 18 of OpenCV's 180.
        permute: let the channels change places at last, with a chance of one half, as SSD does and Mask2Former not.
    """

    BRIGHTNESS = 32 / 255  # greatest shift
    FACTORS = (0.5, 1.5)  # of contrast and saturation

    def __init__(self, hue: float, permute: bool) -> None:
        super().__init__()
        self.hue = hue
        self.permute = permute

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Video):
            frames = [self.distorted(frame) for frame in inpt.as_subclass(Tensor)]
            return tv_tensors.wrap(torch.stack(frames), like=inpt)
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.Image(self.distorted(inpt.as_subclass(Tensor)))
        return inpt

    def distorted(self, image: Tensor) -> Tensor:
        """A picture ``[3, H, W]`` (uint8) in other colours."""
        pixels = F.to_dtype(image, torch.float32, scale=True)
        if _half():
            pixels = (pixels + uniform(-self.BRIGHTNESS, self.BRIGHTNESS)).clamp(0, 1)
        contrast_first = _half()
        if contrast_first:
            pixels = self._contrast(pixels)
        if _half():
            pixels = _saturated(pixels, uniform(*self.FACTORS))
        if _half():
            pixels = F.adjust_hue(pixels, uniform(-self.hue, self.hue))
        if not contrast_first:
            pixels = self._contrast(pixels)
        if self.permute and _half():
            pixels = pixels[torch.randperm(3)]
        return F.to_dtype(pixels, torch.uint8, scale=True)

    def _contrast(self, pixels: Tensor) -> Tensor:
        return (pixels * uniform(*self.FACTORS)).clamp(0, 1) if _half() else pixels


class Blur(v2.GaussianBlur):
    """Leaves pictures alone that are too narrow to be mirrored at their borders."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        picture = isinstance(inpt, tv_tensors.Image | tv_tensors.Video)
        if picture and min(inpt.shape[-2:]) <= self.kernel_size[0] // 2:
            return inpt
        return super().transform(inpt, params)


def _half() -> bool:
    """True with a chance of one half."""
    return bool(torch.rand(()) < 0.5)


def uniform(least: float, greatest: float) -> float:
    """A number drawn evenly between two."""
    return float(torch.empty(()).uniform_(least, greatest))


def _saturated(pixels: Tensor, factor: float) -> Tensor:
    """The saturation of HSV times ``factor``, at most 1; hue and value stay: ``[3, H, W] -> [3, H, W]`` in 0..1."""
    value, least = pixels.amax(0), pixels.amin(0)  # [H, W]
    most = value / (value - least).clamp(min=1e-6)  # the factor that makes the saturation 1
    return value - (value - pixels) * most.clamp(max=factor)


def make_transform(config: DataConfig, train: bool) -> v2.Compose:
    """Everything between the pixels of an image, or a clip, and the network.

    Training: the affine map of ``augment``; horizontal flip; large-scale jitter, or a multi-scale resize, which with
    ``crop`` has an equal chance to come after another resize and a crop; a crop of at most ``window``; with jitter,
    grey up to the window, which is image to the model; distortion of the colours; colours, blur and compression of
    ``augment``.
    Otherwise a resize to ``input_size`` only, which also accepts a bare image of Pillow's. All resizes but that before
    the crop are to squares with ``square``.
    """
    steps: list[v2.Transform] = []
    if train:
        if config.augment.moves:
            steps += [_affine(config.augment), DropVanished()]
        if config.flip:
            steps.append(v2.RandomHorizontalFlip(0.5))
        if config.jitter is not None:
            assert config.window is not None, "jitter is relative to the window"
            steps.append(RandomScale(config.window, config.jitter))
        else:
            steps.append(_multi_scale(config))
        if config.window is not None:
            steps.append(RandomSizeCrop(config.window, config.window))
            if config.jitter is not None:
                steps.append(PadTo(config.window))
        steps.append(DropVanished())
        if config.colour:
            steps.append(PhotometricDistortion(config.hue, config.permute_channels))
        steps += _taken(config.augment)
    else:
        steps.append(ToInputSize(config))
    return v2.Compose([*steps, v2.ToImage(), v2.ToPureTensor()])


def least_side(config: DataConfig) -> int:
    """The shorter side, in pixels, that a training image must have so that no resize has to make it larger."""
    if config.jitter is not None:
        assert config.window is not None, "jitter is relative to the window"
        side = max(config.window) * config.jitter[1]
    else:
        side = max(config.resize)  # of an image that is resized before the crop, too
    return math.ceil(side * (1 + config.augment.scale))


def _multi_scale(config: DataConfig) -> v2.Transform:
    resize = RandomSquare(config.resize) if config.square else RandomShorterSide(config.resize, config.max_size)
    if not config.crop:
        return resize
    scale = max(config.resize) / PUBLISHED_SIZE
    before, (least, greatest) = ([max(1, round(side * scale)) for side in sides] for sides in (BEFORE_CROP, CROP))
    crop = RandomSizeCrop((least, least), (greatest, greatest))
    return v2.RandomChoice([resize, v2.Compose([RandomShorterSide(before), crop, resize])])


def _affine(config: AugmentConfig) -> v2.Transform:
    """What it leaves free is grey. A turned box becomes the box around it, unless there is a mask."""
    return v2.RandomAffine(
        degrees=config.rotate,
        translate=(config.translate, config.translate),
        scale=(1 - config.scale, 1 + config.scale),
        shear=config.shear,
        interpolation=InterpolationMode.BILINEAR,
        fill={tv_tensors.Image: PadTo.GREY, tv_tensors.Mask: 0},
    )


def _taken(config: AugmentConfig) -> list[v2.Transform]:
    """How else the picture might have been taken: its colours, its sharpness, its compression. A clip has one draw."""
    steps: list[v2.Transform] = []
    if config.colour:
        strength = 0.4 * config.colour
        steps.append(v2.ColorJitter(strength, strength, strength, hue=strength / 8))
    if config.blur:
        steps.append(v2.RandomApply([Blur(kernel_size=9, sigma=BLUR)], config.blur))
    if config.jpeg:
        steps.append(v2.RandomApply([v2.JPEG(QUALITY)], config.jpeg))
    return steps
