"""Masks as products of an embedding of each query and the features of each cell (Cheng et al., "MaskFormer", 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dqdet.types import Masks


@dataclass
class ProductMasks(Masks):
    """Embeddings ``[L, B, Q, c]`` and features ``[B, c, h, w]`` (video: ``[B, T, c, h, w]``) of the same width."""

    def of(self, layer: int | Tensor, image: int, queries: Tensor) -> Tensor:
        return torch.einsum("mc,...chw->m...hw", self.embeddings[layer, image, queries], self.features[image])
