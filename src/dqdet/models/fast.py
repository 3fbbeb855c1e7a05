"""A trained network made ready to predict fast: constants folded, half precision, compiled graphs."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from dqdet.config import Precision
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.nn.frozen_norms import FrozenNormConv2d, freeze_norms
from dqdet.queries import PLACES, QuerySource
from dqdet.types import Queries

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# What they tell has too many digits for half precision: places in an image, and scores, whose order decides.
EXACT = {
    "queries",  # anchors, and coefficients, by which they are combined
    *("class_head", "proposal_class_head"),
    *("box_head", "proposal_box_head", "centre_head", "size_head", "reference_head", "reference_points"),
    *("offset_head", "scale_head"),
    "mask_parameters",
}


def made_fast(model: Detector, precision: Precision = "fp32", compiled: bool = False) -> Detector:
    """A copy of a model for inference alone, with the same outputs up to rounding; the model itself, if unchanged.

    In half precision all but the queries and the heads of boxes and classes is cast once, where autocast casts every
    weight in every pass.

    Args:
        model: in evaluation mode.
        precision: of weights and features; boxes and scores are float32 in any.
        compiled: by ``torch.compile``, at the first images; two graphs are for images of all sizes.

    Raises:
        DqdetError: there is no such precision.
    """
    if precision not in DTYPES:
        raise DqdetError(f"precision={precision}: should be one of {', '.join(DTYPES)}")
    if precision == "fp32" and not compiled:
        return model
    fast = folded(model)
    if precision != "fp32":
        _cast(fast, DTYPES[precision])
    if compiled:
        fast.compile()
    return fast


def warn_if_slow(precision: Precision) -> None:
    """Say it where this machine has no instructions for a precision, and would convert number by number."""
    if precision != "fp32" and not torch.cuda.is_available() and not _cpu_has(precision):
        logger.warning(f"precision={precision}: this CPU computes without it, many times slower than fp32")


def _cpu_has(precision: Precision) -> bool:
    of_half = torch.ops.mkldnn._is_mkldnn_bf16_supported, torch.ops.mkldnn._is_mkldnn_fp16_supported
    return bool(of_half[precision == "fp16"]())


def folded(model: Detector) -> Detector:
    """A copy for inference alone, in which batch norms of the backbone are part of the convolutions before them."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    freeze_norms(copied.backbone)
    for module in copied.backbone.modules():
        for name, child in module.named_children():
            if isinstance(child, FrozenNormConv2d):
                setattr(module, name, child.folded())
    return copied


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for path, module in model.named_modules():
        exact = not EXACT.isdisjoint(path.split("."))
        if exact and isinstance(module, nn.Linear | QuerySource):
            module.register_forward_pre_hook(_in_float32)
        if isinstance(module, QuerySource):
            module.register_forward_hook(partial(_for_layers, dtype))
        if not exact:
            module._apply(lambda x: x.to(dtype) if x.is_floating_point() else x, recurse=False)


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() if x.is_floating_point() else x for x in inputs)


def _for_layers(dtype: torch.dtype, module: nn.Module, inputs: tuple[Tensor, ...], made: Queries) -> Queries:
    """Queries as layers of another type read them: all but places."""
    parts = {name: part if name in PLACES else part.to(dtype) for name, part in made.parts.items()}
    return replace(made, parts=parts)
