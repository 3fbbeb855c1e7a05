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
        """Predictions of images or clips.

        Args:
            images: ``[B, 3, H, W]`` normalised   (video: ``[B, T, 3, H, W]``).
            padding: ``[B, H, W]``, True = padded; of all frames.
        """
        frames = self.backbone(images.flatten(0, -4))
        return self.forward_features([x.unflatten(0, images.shape[:-3]) for x in frames], padding)

    @abstractmethod
    def forward_features(self, features: list[Tensor], padding: Tensor) -> Predictions:
        """The same from feature maps ``[B, C, h, w]`` (video: ``[B, T, C, h, w]``), one for each of :attr:`strides`."""
