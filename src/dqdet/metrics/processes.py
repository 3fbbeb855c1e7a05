"""Results of several processes brought together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

Result = TypeVar("Result")


def gathered(results: dict[int, Result]) -> dict[int, Result]:
    """The results of all processes, by image (or video) id, in every process.

    Of an image that several processes saw, as a distributed sampler makes happen to equalise their shares, one
    result is kept.
    """
    if not dist.is_initialized():
        return results
    shares: list[dict[int, Result]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, results)
    return {image_id: result for share in shares for image_id, result in share.items()}


def to_first(share: Result) -> list[Result]:
    """The shares of all processes in the first one; in the others nothing."""
    if not dist.is_initialized():
        return [share]
    shares = [share] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(share, shares)
    return shares or []


def from_first(compute: Callable[[], Result]) -> Result:
    """What the first process computes, in every process."""
    if not dist.is_initialized():
        return compute()
    computed = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(computed)
    return cast(Result, computed[0])
