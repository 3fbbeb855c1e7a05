"""Hungarian set losses."""

from __future__ import annotations

from torch import nn

from dqdet.config import InstanceLossConfig, LossConfig, MaskLossConfig, SequenceLossConfig
from dqdet.losses.instances import InstanceSetLoss
from dqdet.losses.masks import MaskSetLoss
from dqdet.losses.sequences import SequenceSetLoss
from dqdet.losses.set_loss import Losses, SetLoss

__all__ = ["InstanceSetLoss", "Losses", "MaskSetLoss", "SequenceSetLoss", "SetLoss", "make_loss"]


def make_loss(config: LossConfig | MaskLossConfig) -> nn.Module:
    """The loss that a configuration describes; called with predictions and targets, it gives `Losses`."""
    match config:
        case InstanceLossConfig():
            return InstanceSetLoss(config)
        case MaskLossConfig():
            return MaskSetLoss(config)
        case SequenceLossConfig():
            return SequenceSetLoss(config)
        case _:
            return SetLoss(config)
