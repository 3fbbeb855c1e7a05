"""Numbers on their way from the device to the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


class Arriving:
    """A scalar that is copied to the CPU while the device works on.

    ``item`` waits for what the device was given before the copy, not for what came after it. A step later, when the
    matching has waited for the device anyway, it waits for nothing.
    """

    def __init__(self, scalar: Tensor) -> None:
        self.value = torch.empty((), dtype=scalar.dtype, pin_memory=scalar.is_cuda)
        self.value.copy_(scalar.detach(), non_blocking=scalar.is_cuda)
        self.arrived = torch.cuda.current_stream(scalar.device).record_event() if scalar.is_cuda else None

    def item(self) -> float:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.value.item()
