"""Hungarian set losses."""

from __future__ import annotations

from torch import nn

from dqdet.config import LossConfig, MaskLossConfig
from dqdet.losses.masks import MaskSetLoss
from dqdet.losses.set_loss import Losses, SetLoss

__all__ = ["Losses", "MaskSetLoss", "SetLoss", "make_loss"]


def make_loss(config: LossConfig | MaskLossConfig) -> nn.Module:
    """The loss that a configuration describes; called with predictions and targets, it gives `Losses`."""
    return MaskSetLoss(config) if isinstance(config, MaskLossConfig) else SetLoss(config)
