"""What a network does with a small image, found out by trying."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def probe(network: nn.Module, side: int) -> Any:
    """The outputs for a square image without content, in evaluation mode; None: it cannot take one of this size."""
    image, training = next(network.parameters()).new_zeros(1, 3, side, side), network.training
    try:
        with torch.no_grad():
            return network.eval()(image)
    except Exception:  # of many kinds: what takes images of certain sizes only has its own way of saying so
        return None
    finally:
        network.train(training)
