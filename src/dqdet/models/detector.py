"""What every family has in common: a backbone, and what the family makes of its feature maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from dqdet.types import Predictions


class Detector(nn.Module, ABC):
    """A detector of one family. Without a backbone it works on given feature maps."""

    strides: ClassVar[tuple[int, ...]]  # of the feature maps that the family reads
    backbone: nn.Module  # set by create_model

    def forward(self, images: Tensor, padding: Tensor) -> Predictions:
        """``images [B, 3, H, W]`` (normalised) and ``padding [B, H, W]`` (True = padded) -> predictions."""
        return self.forward_features(self.backbone(images), padding)

    @abstractmethod
    def forward_features(self, features: list[Tensor], padding: Tensor) -> Predictions:
        """The same from feature maps ``[B, C, h, w]``, one for each of :attr:`strides`."""
