"""Hungarian set losses."""

from dqdet.losses.set_loss import Losses, SetLoss

__all__ = ["Losses", "SetLoss"]
