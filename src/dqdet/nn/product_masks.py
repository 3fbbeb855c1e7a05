"""Masks as products of an embedding of each query and the features of each cell (Cheng et al., "MaskFormer", 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dqdet.types import Masks, rows


@dataclass
class ProductMasks(Masks):
    """Embeddings ``[L, B, Q, c]`` and features ``[B, c, h, w]`` (video: ``[B, T, c, h, w]``) of the same width."""

    def of(self, layer: int | Tensor, image: int, queries: Tensor) -> Tensor:
        return torch.einsum("mc,...chw->m...hw", self.embeddings[layer, image, queries], self.features[image])

    def chosen(self, queries: Tensor) -> Tensor:
        return torch.einsum("bkc,b...chw->bk...hw", rows(self.embeddings[0], queries), self.features)


@dataclass
class LayerMasks(Masks):
    """The same where every layer has features of its own, ``[L, B, c, h, w]``, and with a bias ``[1]``."""

    bias: Tensor

    def of(self, layer: int | Tensor, image: int, queries: Tensor) -> Tensor:
        embeddings = self.embeddings[layer, image, queries]  # [M, c]
        if isinstance(layer, int):
            return torch.einsum("mc,chw->mhw", embeddings, self.features[layer, image]) + self.bias
        # With the features of all layers, of which one is taken: fewer bytes than the features of every query.
        masks = torch.einsum("mc,lchw->mlhw", embeddings, self.features[:, image])  # [M, L, h, w]
        return masks[torch.arange(len(masks), device=masks.device), layer] + self.bias

    def chosen(self, queries: Tensor) -> Tensor:
        return torch.einsum("bkc,bchw->bkhw", rows(self.embeddings[0], queries), self.features[0]) + self.bias

    def narrow(self, axis: int, start: int, size: int) -> Self:
        narrowed = super().narrow(axis, start, size)
        return narrowed if axis else replace(narrowed, features=self.features.narrow(0, start, size))
