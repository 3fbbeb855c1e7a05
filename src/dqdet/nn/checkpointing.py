"""The layers that a network repeats, in backbone, encoder and decoder: the units that save memory one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

PARTS = {"backbone", "encoder", "decoder"}


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The members of lists of alike layers, such as the blocks of a stage of the backbone; none is within another."""
    return list(_layers(model, inside=False))


def _layers(module: nn.Module, inside: bool) -> Iterator[nn.Module]:
    children = list(module.children())
    kinds = {type(child) for child in children}
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    if inside and listed and len(kinds) == 1 and not kinds.pop().__module__.startswith("torch."):
        yield from children
        return
    for name, child in module.named_children():
        yield from _layers(child, inside or name in PARTS)


def recompute(model: nn.Module) -> None:
    """Have the repeated layers, in place, keep their inputs alone, and compute the rest anew in the backward pass.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Dropout and dropped paths are the same ones
    again, and running statistics do not see a batch twice: losses, gradients and buffers are what they would have been.
    """
    for layer in repeated_layers(model):
        layer.forward = partial(_forward, layer)


def _forward(layer: nn.Module, *args: Any, **options: Any) -> Any:
    forward = partial(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, layer), **options)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the forward pass and around its repetition."""
    return nullcontext(), _without_tracking(layer)


@contextmanager
def _without_tracking(layer: nn.Module) -> Iterator[None]:
    """Running statistics stay as they are. Without them a norm would keep other tensors than in the first pass."""
    norms = [m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()  # type: ignore[union-attr]
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum, norm.num_batches_tracked = momentum, batches
