"""Options of data sets, of how their images are prepared, and of augmentation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dqdet.config.section import (
    Count,
    Frames,
    Pixels,
    Positive,
    Rate,
    Real,
    Scale,
    Section,
    Seed,
    Share,
    Task,
    Text,
    Whole,
)
from dqdet.errors import listed


class ScenesConfig(Section):
    """The built-in generated data set (``data/scenes/``)."""

    size: Pixels = 128
    """Height and width of pictures, in pixels."""
    train_images: Count = 2000
    """Images, or videos, of the training split."""
    val_images: Count = 200
    """Images, or videos, of the validation split."""
    frames: Frames = 8
    """Frames of each video."""
    seed: Seed = 0
    """Seed of the generated pictures; another one gives another data set."""


class ClipsConfig(Section):
    """How videos are cut into clips for training."""

    frames: Frames = 2
    """Frames of a clip."""
    reach: Frames = 20
    """Greatest distance of the other frames from the first chosen one, in frames, on both sides."""
    neighbours: Annotated[Whole, Field(ge=0, le=10_000)] = 0
    """SeqFormer's clips: one frame before and one after the first chosen one, at most this many frames away, and the
    others from beyond these two; 0: all are drawn evenly.
    """
    every_frame: bool = False
    """An epoch has a clip around every frame; false: one clip of every video."""
    images: Text | None = None
    """COCO folder whose images become clips of their own (pseudo-videos); null: none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.neighbours and self.frames < 3:
            raise ValueError(
                f"data.clips.neighbours={self.neighbours} needs clips of 3 frames or more, not data.clips.frames="
                f"{self.frames}; set data.clips.neighbours=0"
            )
        return self


TASKS_OF_DATA: dict[str, tuple[Task, ...]] = {
    "coco": ("detection", "instance", "panoptic"),
    "yolo": ("detection", "instance"),
    "voc": ("detection", "instance"),
    "labelme": ("detection", "instance"),
    "webdataset": ("detection", "instance"),
    "cityscapes": ("instance", "panoptic"),
    "youtube_vis": ("video",),
    "scenes": ("detection", "instance", "panoptic", "video"),
}


class AugmentConfig(Section):
    """Augmentation beyond the published recipes, each kind off at 0 (``data/combining.py``, ``data/transforms.py``)."""

    mosaic: Share = 0.0
    """Chance that a training image becomes a mosaic of four; for detection and instance."""
    mixup: Share = 0.0
    """Chance that another image is blended in, with its objects; for detection and instance."""
    copy_paste: Share = 0.0
    """Chance that objects of another image are pasted in, by their masks; for instance."""
    rotate: Annotated[Real, Field(ge=0, le=180)] = 0.0
    """Greatest rotation in degrees, in both directions; for detection and instance."""
    translate: Share = 0.0
    """Greatest shift, as a share of height and width; for detection and instance."""
    scale: Rate = 0.0
    """Greatest change of scale: 0.5 gives 0.5 to 1.5 times the size; for detection and instance."""
    shear: Annotated[Real, Field(ge=0, le=60)] = 0.0
    """Greatest shear in degrees; for detection and instance."""
    colour: Annotated[Real, Field(ge=0, le=2)] = 0.0
    """Strength of changes of brightness, contrast, saturation (by up to 0.4 at 1) and hue (0.05 turns at 1)."""
    blur: Share = 0.0
    """Chance of a Gaussian blur of 0.3 to 2 pixels."""
    jpeg: Share = 0.0
    """Chance of JPEG compression with a quality of 30 to 90."""

    @property
    def combines(self) -> bool:
        """Whether images are made of several."""
        return bool(self.mosaic or self.mixup or self.copy_paste)

    @property
    def moves(self) -> bool:
        """Whether images go through an affine map."""
        return bool(self.rotate or self.translate or self.scale or self.shear)


class DataConfig(Section):
    kind: Literal["coco", "yolo", "voc", "labelme", "webdataset", "cityscapes", "youtube_vis", "scenes"] = "coco"
    """Format of the data set; scenes is generated."""
    task: Task = "detection"
    """What is annotated, learned and measured: boxes, masks, panoptic maps or tracks."""
    root: Text | None = None
    """Folder of the data set; for webdataset also its http address; scenes need none."""
    train: Text | None = None
    """Name of the training split; null: train2017 or train, whichever there is."""
    val: Text | None = None
    """Name of the validation split; null: val2017, val, valid or test, whichever there is."""
    val_share: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    """Share of the images, chosen by their names, that a data set without splits keeps for validation."""
    cache: Annotated[Real, Field(ge=0)] = 10.0
    """GiB of images that the user's cache keeps, at most, of each split behind an http address; 0: none."""
    resize: Annotated[list[Pixels], Field(min_length=1)] = list(range(480, 801, 32))
    """Shorter sides of training images in pixels; one is drawn for each image."""
    square: bool = False
    """Resize to squares with the sides of resize, and of val_resize with val_fit=shorter, ignoring proportions."""
    max_size: Pixels = 1333
    """Greatest length of the longer side in pixels; images that would exceed it are resized to it."""
    val_resize: Pixels = 800
    """Shorter side of images in validation and prediction, in pixels."""
    val_max_size: Annotated[Whole, Field(ge=0, le=2**14)] | None = None
    """Greatest length of the longer side in validation and prediction, in pixels; null: max_size; 0: any."""
    val_fit: Literal["shorter", "exact", "inside", "stretch", "original"] = "shorter"
    """Resize in validation and prediction: shorter: to val_resize, rounded as in official DETR; exact: the same,
    rounded as in transformers; inside: as large as fits into val_size; stretch: to val_size; original: not at all.
    """
    val_size: tuple[Pixels, Pixels] | None = None
    """Height and width in pixels of val_fit=inside and stretch; null: none."""
    val_divisor: Pixels = 1
    """In validation and prediction, sides are stretched up to multiples of this after the resize; 1: not at all."""
    val_pad: tuple[Pixels, Pixels] | None = None
    """Height and width in pixels of padded batches in validation and prediction; null: those of the largest image."""
    mean: tuple[Real, Real, Real] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue, in 0..1, that is subtracted from images; ImageNet's."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue, in 0..1, by which images are divided; ImageNet's."""
    crop: bool = True
    """DETR's second branch in half of all images: resize to 400-600, crop 384-600, resize again."""
    jitter: tuple[Scale, Scale] | None = None
    """Large-scale jitter: least and greatest factor of the window; replaces resize; null: none."""
    window: tuple[Pixels, Pixels] | None = None
    """Height and width of a random crop at the end; with jitter, smaller images are padded to it, and the padding is
    part of the image. null: none.
    """
    flip: bool = True
    """Mirror half of all training images."""
    colour: bool = False
    """SSD's photometric distortion, applied to every frame on its own."""
    hue: Annotated[Real, Field(ge=0, le=0.5)] = 0.05
    """Greatest shift of the hue by colour=true, in turns of the colour circle."""
    permute_channels: bool = False
    """With colour=true, shuffle the colour channels of half of all images."""
    augment: AugmentConfig = AugmentConfig()
    """Further augmentation, none of it in a published recipe."""
    shrink: bool = False
    """Decode training JPEGs at a half, a quarter or an eighth of their size, where no resize needs more: faster, with
    slightly different pixels; for detection.
    """
    skip_empty: bool = False
    """Leave out training images without objects, or with crowds only; for boxes, masks and clips of images."""
    redraw_empty: bool = False
    """Replace a training item that augmentation leaves without objects by another one."""
    clips: ClipsConfig = ClipsConfig()
    """How videos are cut into clips."""
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 2
    """Worker processes that read images, for each training process; 0: that process reads them itself."""
    scenes: ScenesConfig = ScenesConfig()
    """The generated data set."""
    check: bool = True
    """Before training or evaluation, read the headers of all images: each exists, is an image, and has its size."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.jitter is not None and self.window is None:
            raise ValueError("data.jitter is relative to data.window, which is not set; set data.window=[1024, 1024]")
        if self.jitter is not None and self.jitter[0] > self.jitter[1]:
            least, greatest = self.jitter
            raise ValueError(f"data.jitter=[{least}, {greatest}]: the least factor is above the greatest; swap them")
        sized = self.val_fit in ("inside", "stretch")
        if sized and self.val_size is None:
            raise ValueError(f"data.val_fit={self.val_fit} needs a size; set data.val_size=[640, 640]")
        if self.val_size is not None and not sized:
            raise ValueError(
                f"data.val_size has no effect on data.val_fit={self.val_fit}; set data.val_fit=stretch, or inside"
            )
        of_boxes = ("mosaic", "mixup", "copy_paste", "rotate", "translate", "scale", "shear")
        used = [f"data.augment.{name}" for name in of_boxes if getattr(self.augment, name)]
        if used and self.task not in ("detection", "instance"):
            raise ValueError(
                f"{listed(used)}: of data.task=detection and instance alone, not {self.task}; leave it out"
            )
        if self.augment.copy_paste and self.task != "instance":
            raise ValueError(
                "data.augment.copy_paste copies objects by their masks, which data.task=detection has not; set "
                "data.task=instance, or leave it out"
            )
        return self
