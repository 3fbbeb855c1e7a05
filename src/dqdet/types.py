"""What passes between the parts of dqdet. Every field says its shape; a name means one thing everywhere.

Letters: B images, T frames, N objects of one image, Q queries (all groups together), L decoder layers, K found objects,
C classes, H and W image pixels, h and w feature cells. Boxes are ``(cx, cy, w, h)``, relative to the
*unpadded* image. ``padding`` is True where there is no image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypedDict

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

from dqdet.errors import UnfitImage


def _mapped(value, change: Callable[[Tensor], Tensor]):
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, _OfTensors):
        return value.map(change)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return value


class _OfTensors:
    """What a dataclass of tensors can do like a tensor."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same of what ``change`` makes of each tensor."""
        changed = {f.name: _mapped(getattr(self, f.name), change) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """In memory that copies to the device do not wait for; ``DataLoader(pin_memory=True)`` calls it."""
        return self.map(Tensor.pin_memory)


@dataclass
class Target(_OfTensors):
    """The objects of one image (or of one video clip, with the shapes in brackets); crowds are none."""

    labels: Tensor  # [N] int64, index into the class list
    boxes: Tensor  # [N, 4] cx, cy, w, h in 0..1 of the unpadded image   (video: [N, T, 4], zero where not visible)
    size: tuple[int, int]  # height, width in the batch, before padding
    original_size: tuple[int, int]  # height, width of the file
    image_id: int = 0
    masks: Tensor | None = None  # [N, H, W] bool, unpadded   (video: [N, T, H, W], empty where not visible)


@dataclass
class Batch(_OfTensors):
    """The only form in which images travel."""

    images: Tensor  # [B, 3, H, W] uint8, RGB, zero where padded   (video: [B, T, 3, H, W])
    padding: Tensor  # [B, H, W] bool, True = padded
    targets: list[Target] = field(default_factory=list)  # B entries; empty when there is nothing to learn
    counts: list[int] = field(default_factory=list)  # objects of each image of the whole step, see losses/whole_step.py

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True)
class Sight:
    """Which queries those of a group see in self-attention, where these are not simply all of their own group."""

    size: int  # queries of the group
    copies: int = 1  # equal parts of the group, which do not see each other
    first: int = 0  # so many of the first queries of all are seen too; they do not see back


Sights: TypeAlias = Iterable[int | Sight]  # of all groups in order; a size alone is that of a group that sees itself


@dataclass
class Denoised(_OfTensors):
    """Which queries of the group ``denoising`` are to become which objects: P pairs. All others are background."""

    copies: int  # of all objects
    image: Tensor  # [P] int64, number in the batch
    query: Tensor  # [P], number in the group
    object: Tensor  # [P], index into the image's objects
    row: Tensor  # [P], of the object among those of all images


@dataclass
class VideoStream:
    """A whole video to be looked at once, frame by frame: a long one would not fit into the memory."""

    frames: Iterator[Tensor]  # of [3, H, W] uint8, RGB, all of one size
    targets: list[Target]  # one, without objects

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Itself: frames go to the device when a model takes them."""
        return self


@dataclass
class Queries:
    """Input queries of a decoder: made by ``queries.py``, read by the decoders.

    A query consists of named parts, for example ``position`` and ``content``, or ``content`` and
    ``anchor`` (a box before the sigmoid).
    """

    parts: dict[str, Tensor]  # name -> [B, Q, width]
    groups: dict[str, int]  # name -> size, in query order; the first group is the one used at inference
    coefficients: Tensor | None = None  # [B, m, r], of shared queries [B, m, K]
    sights: dict[str, Sight] = field(default_factory=dict)  # of groups that see other queries than their own
    denoised: Denoised | None = None  # of the last group, where it is one of denoising queries

    def __getitem__(self, part: str) -> Tensor:
        return self.parts[part]

    @property
    def seen(self) -> list[int | Sight]:
        """What self-attention needs to know of the groups."""
        return [self.sights.get(name, size) for name, size in self.groups.items()]


@dataclass
class Masks(ABC):
    """Masks of queries, as what they are made of; logits exist of those queries only that are asked for."""

    stride: ClassVar[int] = 4  # pixels of the padded image along the side of a cell

    embeddings: Tensor  # [L, B, Q, c]
    features: Tensor  # [B, d, h, w]   (video: [B, T, d, h, w])

    @abstractmethod
    def of(self, layer: int | Tensor, image: int, queries: Tensor) -> Tensor:
        """Logits of some queries of one image: ``[M, h, w]`` (video: ``[M, T, h, w]``), at :attr:`stride`.

        Args:
            layer: one for all queries, or one each ``[M]``.
            image: number of the image in the batch.
            queries: ``[M]``.
        """

    @abstractmethod
    def chosen(self, queries: Tensor) -> Tensor:
        """Logits of K queries of every image, of the first layer: ``[B, K, h, w]`` (video: ``[B, K, T, h, w]``).

        Args:
            queries: ``[B, K]``.
        """

    def all(self) -> Tensor:
        """Logits ``[L, B, Q, h, w]`` (video: ``[L, B, Q, T, h, w]``): large, so best asked of few layers."""
        layers, images, count = self.embeddings.shape[:3]
        queries = torch.arange(count, device=self.embeddings.device)
        masks = [[self.of(layer, image, queries) for image in range(images)] for layer in range(layers)]
        return torch.stack([torch.stack(of_images) for of_images in masks])

    def narrow(self, axis: int, start: int, size: int) -> Self:
        """Those of some layers (axis 0) or queries (axis 2): views."""
        return replace(self, embeddings=self.embeddings.narrow(axis, start, size))


@dataclass
class Predictions:
    """Outputs of all decoder layers, stacked; absent outputs are None."""

    logits: Tensor  # [L, B, Q, C]
    boxes: Tensor | None  # [L, B, Q, 4] cx, cy, w, h in 0..1   (video: [L, B, Q, T, 4])
    groups: dict[str, int]  # name -> size, in query order
    masks: Masks | None = None
    coefficients: Tensor | None = None  # [B, m, r], the coefficients that made the queries
    proposals: Predictions | None = None  # two-stage: the encoder's, L = 1
    class_agnostic: bool = False  # logit 0 stands for any object, the others for nothing
    denoised: Denoised | None = None  # of the last group, where it is one of denoising queries

    def group(self, name: str) -> Predictions:
        """The predictions of one group of queries: views, nothing is copied."""
        start = sum(list(self.groups.values())[: list(self.groups).index(name)])
        size = self.groups[name]
        return replace(self._narrow(2, start, size), groups={name: size}, proposals=None, denoised=None)

    @property
    def matched(self) -> Predictions:
        """Those of the groups that are matched with the objects, which denoising queries are made of: views."""
        if self.denoised is None:
            return self
        groups = dict(list(self.groups.items())[:-1])
        return replace(self._narrow(2, 0, sum(groups.values())), groups=groups, denoised=None)

    @property
    def final(self) -> Predictions:
        """The last layer's predictions of the group that inference uses (L = 1): views."""
        first = self.group(next(iter(self.groups)))
        return first._narrow(0, len(first.logits) - 1, 1)

    def _narrow(self, axis: int, start: int, size: int) -> Predictions:
        """Those of some layers (axis 0) or queries (axis 2)."""
        boxes, masks = self.boxes, self.masks
        return replace(
            self,
            logits=self.logits.narrow(axis, start, size),
            boxes=None if boxes is None else boxes.narrow(axis, start, size),
            masks=None if masks is None else masks.narrow(axis, start, size),
        )


@dataclass
class Candidates:
    """The best pairs of a query and a class in B images, best first, as exported models select them."""

    scores: Tensor  # [B, K] of the class, in 0..1
    labels: Tensor  # [B, K] int64, index into the class list
    boxes: Tensor | None  # [1, B, K, 4] cx, cy, w, h in 0..1
    masks: Masks | None  # of pair k as those of query k


class BatchModel(Protocol):
    """What predicts a batch: a network of a family, or a file that one was exported to."""

    def __call__(self, images: Tensor, padding: Tensor) -> Predictions | Candidates:
        """``images [B, 3, H, W]`` uint8 (video: ``[B, T, 3, H, W]``) and ``padding [B, H, W]``, True = padded."""


class Rle(TypedDict):
    """A mask in the compressed run-length encoding of COCO's files."""

    size: list[int]  # height, width
    counts: str


@dataclass
class RleMasks:
    """K masks of one size, compressed: those of a photograph would not fit into the memory. Each is ``[H, W]`` bool."""

    size: tuple[int, int]  # height, width
    rles: list[Rle]

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[np.ndarray]:
        for rle in self.rles:
            yield pycocotools.mask.decode(rle).view(bool)

    def __getitem__(self, rows: Sequence[int]) -> Self:
        return replace(self, rles=[self.rles[row] for row in rows])

    def decoded(self) -> np.ndarray:
        """All together, ``[K, H, W]`` bool."""
        masks = np.zeros((len(self), *self.size), dtype=bool)
        for mask, decoded in zip(masks, self, strict=True):
            mask[:] = decoded
        return masks


@dataclass
class ImageDetections:
    """What was found in one image, best score first."""

    scores: Tensor  # [K] in 0..1, descending
    labels: Tensor  # [K] int64, index into the class list
    boxes: Tensor  # [K, 4] x1, y1, x2, y2 in pixels; may reach beyond the image
    masks: RleMasks | None = None
    track_ids: Tensor | None = None  # [K] int64, of frames that are tracked: from 1, or 0 for none


@dataclass
class PanopticMap:
    """The segments of one image, without overlap."""

    ids: np.ndarray  # [H, W] id of the segment that each pixel belongs to, 0 (void) for none
    segments: list[dict[str, Any]]  # COCO's segments_info: id, category_id, and iscrowd in ground truth


@dataclass
class Segmentation:
    """What was found in one image by a panoptic model."""

    instances: ImageDetections  # things only, with masks
    panoptic: PanopticMap
    label_map: Callable[[], np.ndarray]  # makes the semantic map, which takes long for photographs

    @cached_property
    def semantic(self) -> np.ndarray:
        """The label of each pixel, ``[H, W]``."""
        return self.label_map()


@dataclass
class ClipTracks:
    """What was found in the frames of one clip, best score first."""

    scores: Tensor  # [K] in 0..1
    labels: Tensor  # [K] int64, index into the class list
    masks: Tensor  # [K, T, H, W] bool, empty where a track is not visible


@dataclass
class Track:
    """An object of a whole video. Masks are compressed: those of long videos would not fit into the memory."""

    label: int  # index into the class list
    score: float
    masks: dict[int, Rle]  # frame -> mask, where it is visible


Outcome: TypeAlias = ImageDetections | Segmentation | ClipTracks  # of one image or clip, whatever the task


def rows(x: Tensor, numbers: Tensor) -> Tensor:
    """Some rows of every image, such as those of queries: ``x [B, Q, f]`` and ``numbers [B, K]`` -> ``[B, K, f]``."""
    return x.gather(1, numbers[..., None].expand(-1, -1, x.shape[-1]))


def pad_images(
    images: Sequence[Tensor], divisor: int = 1, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Stack images of different sizes, padded with zeros at the right and bottom.

    Where the channels of a pixel lie side by side, as decoders leave them, they do so in the result, too: bringing them
    apart would take a worker longer than all else here.

    Args:
        images: B tensors ``[3, h, w]`` (video: ``[T, 3, h, w]``, all of the same T).
        divisor: the common height and width are rounded up to a multiple of it.
        size: height and width to pad to, instead of those of the largest image.

    Returns:
        images ``[B, 3, H, W]`` (video: ``[B, T, 3, H, W]``) and padding ``[B, H, W]`` (bool, True = padded).

    Raises:
        UnfitImage: an image is larger than ``size``.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    if size is not None:
        if height > size[0] or width > size[1]:
            raise UnfitImage(
                f"images of up to {height}x{width} pixels cannot be padded to {size[0]}x{size[1]}; make them smaller "
                "(data.val_resize), or data.val_pad greater"
            )
        height, width = size
    height, width = (-(-side // divisor) * divisor for side in (height, width))
    layout = torch.contiguous_format
    if all(image.dim() == 3 and image.stride(0) == 1 for image in images):
        layout = torch.channels_last
    shape = (len(images), *images[0].shape[:-2], height, width)
    stacked = torch.empty(shape, dtype=images[0].dtype, device=images[0].device, memory_format=layout).zero_()
    padding = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for image, slot, mask in zip(images, stacked, padding, strict=True):
        h, w = image.shape[-2:]
        slot[..., :h, :w] = image
        mask[:h, :w] = False
    return stacked, padding
