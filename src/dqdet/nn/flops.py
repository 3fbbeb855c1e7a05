"""The operations of a decoder, counted by PyTorch's FLOP counter.

As in the counter itself, one multiplication and one addition are two operations; only products of matrices,
convolutions, attention and sampling count, and elementwise work does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count

import dqdet.nn.sampling  # noqa: F401, it defines the operator

Shape = Sequence[int]

# The modules that run before the decoder, by the counter's names: class of the model, then path.
BEFORE_DECODER = re.compile(r"\w+\.(backbone|input_proj|projector(\.\d+)?|encoder)")


@register_flop_formula(torch.ops.dqdet.sample)
def sampling_flops(value: Shape, sides: list[int], locations: Shape, weights: Shape, **_: Any) -> int:
    """Operations of deformable sampling: four corners of each point, a multiplication and an addition a channel.

    Points outside the map count too. The share of each corner, computed once for all channels of a head, does not,
    like the softmax of dense attention.

    Args:
        value: ``[B, S, H, D]``.
        sides: heights and widths of the levels, not needed.
        locations: ``[B, Q, H, L, P, 2]``.
        weights: ``[B, Q, H, L, P]``.
    """
    return prod(weights) * 4 * 2 * value[-1]


def attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Operations of fused attention on CPUs, for which the counter has no formula of its own."""
    return sdpa_flop_count(query, key, value)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, quiet, with a formula for all that the library runs forward.

    It stumbles over views of parameters without gradients, which is what static queries are: enable them.
    """
    formulas = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def decoder_flops(model: nn.Module, images: Tensor, padding: Tensor) -> int:
    """Operations of everything after the encoder: queries, decoder and heads.

    They are those of the mode that the model is in: in training mode all groups of queries count. On GPUs too, where
    sampling has its kernels; ``grid_sample``, which takes their place elsewhere, does not count.

    Args:
        model: a detector of any family, with its backbone.
        images: ``[B, 3, H, W]``.
        padding: ``[B, H, W]``.
    """
    with torch.enable_grad(), flop_counter() as counter:
        model(images, padding)
    before = (sum(ops.values()) for name, ops in counter.get_flop_counts().items() if BEFORE_DECODER.fullmatch(name))
    return counter.get_total_flops() - sum(before)
