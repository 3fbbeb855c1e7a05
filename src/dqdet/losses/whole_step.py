"""What the sums over a batch are divided by, when the batch is one of several that make a step.

A step may consist of batches that follow one another (``train.accumulate``) and of batches on several processes. The
engine averages the gradients of both; they are that of the whole step if every batch divides its sums by what the
whole step has, in units of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch import distributed as dist

from dqdet.types import Target


class WholeStep:
    """The images of a step, by their numbers of objects.

    Args:
        targets: of the batch at hand.
        counts: objects of each image of the step on this process; empty: the batch is the step.
        device: of the results.
    """

    def __init__(self, targets: list[Target], counts: Sequence[int], device: torch.device):
        self.counts = counts or [len(target.labels) for target in targets]
        self.share = len(targets) / len(self.counts)
        self.device = device

    @cached_property
    def objects(self) -> Tensor:
        """Objects, of the whole step at least one a process: scalar. Summed over the processes once."""
        return self._over_processes([float(sum(self.counts))])[0].clamp(min=1) * self.share

    def query_weights(self, groups: dict[str, int], no_object_weight: float) -> Tensor:
        """Weights of all queries of each group, 1 where matched, ``no_object_weight`` elsewhere: ``[G]``, above 0."""
        matched = [sum(min(count, size) for count in self.counts) for size in groups.values()]
        others = [size * len(self.counts) - of_group for size, of_group in zip(groups.values(), matched, strict=True)]
        weights = [m + no_object_weight * n for m, n in zip(matched, others, strict=True)]
        # Without objects, and no weight elsewhere, the loss is 0 / 1e-12 instead of 0 / 0.
        return self._over_processes(weights).clamp(min=1e-12) * self.share

    def _over_processes(self, sums: list[float]) -> Tensor:
        """The mean over all processes."""
        # Filled on the device: made from a list, they would be sent to it.
        mean = torch.stack([torch.full((), value, device=self.device) for value in sums])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean = mean / dist.get_world_size()
        return mean
