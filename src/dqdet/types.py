"""What passes between the parts of dqdet. Every field says its shape; a name means one thing everywhere.

Letters: B images, T frames, N objects of one image, Q queries (all groups together), L decoder layers,
C classes, H and W image pixels, h and w feature cells. Boxes are ``(cx, cy, w, h)``, relative to the
*unpadded* image. ``padding`` is True where there is no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from dqdet.nn.dynamic_masks import dynamic_masks


def _moved(value, device: torch.device | str, non_blocking: bool):
    if isinstance(value, Tensor | Target):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, list):
        return [_moved(item, device, non_blocking) for item in value]
    return value


class _Movable:
    """``to(device)`` for a dataclass of tensors."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = {f.name: _moved(getattr(self, f.name), device, non_blocking) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass
class Target(_Movable):
    """The objects of one image (or of one video clip, with the shapes in brackets)."""

    labels: Tensor  # [N] int64, index into the class list
    boxes: Tensor  # [N, 4] cx, cy, w, h in 0..1 of the unpadded image   (video: [N, T, 4])
    crowd: Tensor  # [N] bool; training targets hold no crowd objects
    size: tuple[int, int]  # height, width in the batch, before padding
    original_size: tuple[int, int]  # height, width of the file
    image_id: int = 0
    masks: Tensor | None = None  # [N, H, W] bool, unpadded   (video: [N, T, H, W])
    visible: Tensor | None = None  # video only: [N, T] bool


@dataclass
class Batch(_Movable):
    """The only form in which images travel."""

    images: Tensor  # [B, 3, H, W] normalised   (video: [B, T, 3, H, W])
    padding: Tensor  # [B, H, W] bool, True = padded
    targets: list[Target] = field(default_factory=list)  # B entries; empty when there is nothing to learn

    def __len__(self) -> int:
        return self.images.shape[0]

    def pin_memory(self) -> Batch:
        """Called by ``DataLoader(pin_memory=True)``; the images are what is worth pinning."""
        return replace(self, images=self.images.pin_memory(), padding=self.padding.pin_memory())


@dataclass
class Queries:
    """Input queries of a decoder: made by ``queries.py``, read by the decoders.

    A query consists of named parts, for example ``position`` and ``content``, or ``content`` and
    ``anchor`` (a box before the sigmoid).
    """

    parts: dict[str, Tensor]  # name -> [B, Q, width]
    groups: dict[str, int]  # name -> size, in query order; the first group is the one used at inference
    coefficients: Tensor | None = None  # [B, m, r]

    def __getitem__(self, part: str) -> Tensor:
        return self.parts[part]


@dataclass
class Predictions:
    """Outputs of all decoder layers, stacked; absent outputs are None."""

    logits: Tensor  # [L, B, Q, C]
    boxes: Tensor | None  # [L, B, Q, 4] cx, cy, w, h in 0..1   (video: [L, B, Q, T, 4])
    groups: dict[str, int]  # name -> size, in query order
    mask_embeddings: Tensor | None = None  # [L, B, Q, c]; with mask_centres, parameters of dynamic convolutions
    mask_features: Tensor | None = None  # [B, c, h, w]   (video: [B, T, c, h, w])
    mask_centres: Tensor | None = None  # [L, B, Q, T, 2] x, y in pixels: masks are made by dynamic convolutions
    coefficients: Tensor | None = None  # [B, m, r], the coefficients that made the queries
    proposals: Predictions | None = None  # two-stage: the encoder's, L = 1, one query a memory position

    @property
    def masks(self) -> Tensor | None:
        """Mask logits ``[L, B, Q, h, w]`` (video: ``[L, B, Q, T, h, w]``): large, so best asked of few layers."""
        if self.mask_embeddings is None:
            return None
        layers, images, count = self.mask_embeddings.shape[:3]
        queries = torch.arange(count, device=self.mask_embeddings.device)
        masks = [[self.masks_of(layer, image, queries) for image in range(images)] for layer in range(layers)]
        return torch.stack([torch.stack(of_images) for of_images in masks])

    def masks_of(self, layer: int | Tensor, image: int, queries: Tensor) -> Tensor:
        """Mask logits of some queries ``[M]`` of one image: ``[M, h, w]`` (video: ``[M, T, h, w]``), at stride 4.

        Args:
            layer: one for all queries, or one each ``[M]``.
            image: number of the image in the batch.
            queries: ``[M]``.
        """
        assert self.mask_embeddings is not None, "these predictions have no masks"
        assert self.mask_features is not None, "these predictions have no masks"
        embeddings, features = self.mask_embeddings[layer, image, queries], self.mask_features[image]
        if self.mask_centres is not None:
            return dynamic_masks(embeddings, features, self.mask_centres[layer, image, queries])
        return torch.einsum("mc,...chw->m...hw", embeddings, features)

    def group(self, name: str) -> Predictions:
        """The predictions of one group of queries: views, nothing is copied."""
        start = sum(list(self.groups.values())[: list(self.groups).index(name)])
        size = self.groups[name]
        return replace(self._narrow(2, start, size), groups={name: size}, proposals=None)

    @property
    def final(self) -> Predictions:
        """The last layer's predictions of the group that inference uses (L = 1): views."""
        first = self.group(next(iter(self.groups)))
        return first._narrow(0, len(first.logits) - 1, 1)

    def _narrow(self, axis: int, start: int, size: int) -> Predictions:
        """Some of the layers (axis 0) or queries (axis 2)."""
        of_queries = ("logits", "boxes", "mask_embeddings", "mask_centres")
        whole = {name: getattr(self, name) for name in of_queries}
        parts: dict[str, Any] = {k: None if x is None else x.narrow(axis, start, size) for k, x in whole.items()}
        return replace(self, **parts)


def pad_images(images: Sequence[Tensor], divisor: int = 1) -> tuple[Tensor, Tensor]:
    """Stack images of different sizes, padded with zeros at the right and bottom.

    Args:
        images: B tensors ``[3, h, w]`` (video: ``[T, 3, h, w]``, all of the same T).
        divisor: the common height and width are rounded up to a multiple of it.

    Returns:
        images ``[B, 3, H, W]`` (video: ``[B, T, 3, H, W]``) and padding ``[B, H, W]`` (bool, True = padded).
    """
    height = -(-max(image.shape[-2] for image in images) // divisor) * divisor
    width = -(-max(image.shape[-1] for image in images) // divisor) * divisor
    stacked = images[0].new_zeros(len(images), *images[0].shape[:-2], height, width)
    padding = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for image, slot, mask in zip(images, stacked, padding, strict=True):
        h, w = image.shape[-2:]
        slot[..., :h, :w] = image
        mask[:h, :w] = False
    return stacked, padding
