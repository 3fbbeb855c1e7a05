"""What every family has in common: a backbone, and what the family makes of its feature maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import DataConfig, TransformerConfig
from dqdet.nn.backbone import Backbone
from dqdet.types import Predictions, Target


class Detector(nn.Module, ABC):
    """A detector of one family. Without a backbone it works on given feature maps."""

    strides: tuple[int, ...]  # of the feature maps that it reads
    divisor: int = 1  # images are padded to sides that are multiples of it, in training and inference
    backbone: nn.Module  # set by create_model
    # Of red, green and blue in 0..1: what images are normalised by; set by create_model.
    mean: tuple[float, float, float] = DataConfig().mean
    std: tuple[float, float, float] = DataConfig().std

    @classmethod
    def make_backbone(cls, config: TransformerConfig, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The backbone of a model, which has ``channels``; weights and errors as of `Backbone`."""
        return Backbone(config.backbone, cls.reads(config), weights)

    def forward(self, images: Tensor, padding: Tensor | None = None, targets: Sequence[Target] = ()) -> Predictions:
        """Predictions of images or clips.

        Args:
            images: ``[B, 3, H, W]`` uint8, RGB (video: ``[B, T, 3, H, W]``). Of a floating-point type they are taken as
                normalised already, zero where padded.
            padding: ``[B, H, W]``, True = padded; of all frames. None: nothing is padded.
            targets: B of them, or none. In training mode denoising queries are made of them, where configured.
        """
        if padding is None:
            padding = images.new_zeros(images.shape[:1] + images.shape[-2:], dtype=torch.bool)  # [B, H, W]
        images, padding = self.prepare(images, padding)
        frames = self.backbone(images.flatten(0, -4))
        return self.forward_features([x.unflatten(0, images.shape[:-3]) for x in frames], padding, targets)

    def prepare(self, images: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Images as the backbone reads them, and their padding: normalised, at sides that :attr:`divisor` divides.

        Arguments as of :meth:`forward`, with padding. What is padded is zero, which is the mean colour.
        """
        if not images.is_floating_point():
            empty = padding[:, None] if images.dim() == 4 else padding[:, None, None]  # [B, 1, H, W] or [B, 1, 1, H, W]
            # Filled on the device, and in float32 also where the model is not.
            mean, std = (
                torch.stack([torch.full((), 255 * value, device=images.device) for value in values])[:, None, None]
                for values in (self.mean, self.std)
            )
            # Their bytes may lie as decoders leave them, pixel by pixel.
            images = images.to(torch.float32, memory_format=torch.contiguous_format)
            images = images.sub_(mean).div_(std).masked_fill_(empty, 0)
            images = images.to(next((parameter.dtype for parameter in self.parameters()), torch.float32))
        if self.divisor > 1:
            height, width = padding.shape[1:]
            beyond = (0, -width % self.divisor, 0, -height % self.divisor)
            images, padding = F.pad(images, beyond), F.pad(padding, beyond, value=True)
        return images, padding

    @classmethod
    def reads(cls, config: TransformerConfig) -> tuple[int, ...]:
        """Strides of the feature maps that a model of this configuration reads, the finest first."""
        return cls.strides

    @abstractmethod
    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        """The same from feature maps ``[B, C, h, w]`` (video: ``[B, T, C, h, w]``), one for each of :attr:`strides`."""
