"""Backbones: any timm model with feature maps at the strides that a family asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import BackboneConfig
from dqdet.errors import DqdetError, listed
from dqdet.nn.frozen_norms import freeze_norms
from dqdet.nn.probe import probe

# The paper's backbones, with the weights that the published recipes start from.
SHORT_NAMES = {
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
    "swin_b": "swin_base_patch4_window12_384.ms_in22k",
    "swin_l": "swin_large_patch4_window12_384.ms_in22k",
}


class PaddedSwinBlock(SwinTransformerBlock):
    """A block of Swin that fills up the last windows before it shifts them, as in the published detectors.

    That of timm shifts first, so that its windows lie elsewhere on maps whose sides are no multiples of the window.
    """

    def _attn(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape  # [B, h, w, c]
        x = F.pad(x, (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0]))
        return super()._attn(x)[:, :height, :width]


class Backbone(nn.Module):
    """Feature maps of an image.

    Args:
        config: name, whether timm fetches ImageNet weights, and what is frozen.
        strides: of the wanted maps, ascending; that of a dilated stage is what it would be without.
        weights: parameters by timm's names instead of the fetched ones; those of a classifier are passed over.

    Attributes:
        channels: of the maps, in the same order.
        multiple: sides are padded to multiples of it, where maps would not cover all of the image; 1: they do.

    Raises:
        DqdetError: for an unknown name, a model without such maps, or weights that cannot be had.
    """

    def __init__(self, config: BackboneConfig, strides: Sequence[int], weights: Mapping[str, Tensor] | None = None):
        super().__init__()
        dilated = {"output_stride": 16} if config.dilation else {}
        self.body = make_timm_model(config, weights, features_only=True, **dilated)
        info = self.body.feature_info
        actual, channels = info.reduction(), info.channels()
        reductions = list(actual)
        if config.dilation:
            reductions[-1] *= 2
        if missing := set(strides) - set(reductions):
            raise DqdetError(
                f"model.backbone.name={config.name}: has maps at strides {reductions}, not at {sorted(missing)}"
            )
        self.picked = [reductions.index(stride) for stride in strides]
        self.channels = [channels[i] for i in self.picked]
        # Transformer backbones leave their stages without a final norm; detectors add one a map.
        self.channels_last = getattr(self.body, "output_fmt", None) == "NHWC"
        self.norms = nn.ModuleList(nn.LayerNorm(c) if self.channels_last else nn.Identity() for c in self.channels)
        self.multiple = min(actual) if self.channels_last else 1  # patches tile the image
        self.steps = [actual[i] for i in self.picked]
        if not self._spans(max(actual) + 1):
            self.multiple = max(actual)
        if config.freeze:
            freeze_norms(self)
            freeze_batch_norm_2d(self.body)  # those that follow no single convolution, or have an activation
        if config.freeze is True:
            for name, parameter in self.body.named_parameters():
                parameter.requires_grad = not name.startswith(("conv1.", "layer1."))
        self.body.to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` -> one ``[B, channels, ceil(H / stride), ceil(W / stride)]`` a stride.

        Of a dilated stage it is half the stride.
        """
        height, width = images.shape[-2:]
        if self.multiple > 1:
            images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        maps = [norm(maps[i]) for i, norm in zip(self.picked, self.norms, strict=True)]
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        if self.multiple > 1:  # cells of padding alone
            maps = [x[..., : -(-height // s), : -(-width // s)] for x, s in zip(maps, self.steps, strict=True)]
        return maps

    def _spans(self, side: int) -> bool:
        """Whether maps of an image are as large as :meth:`forward` says; networks may round down, or take no such."""
        maps = probe(self, side)
        return maps is not None and [x.shape[-1] for x in maps] == [-(-side // step) for step in self.steps]


def other_colours(config: BackboneConfig, mean: Sequence[float], std: Sequence[float]) -> Iterator[str]:
    """A line where a backbone's trained weights expect images of another normalisation than this, by what timm says."""
    known = timm.get_pretrained_cfg(SHORT_NAMES.get(config.name, config.name))
    if known is None or not (config.pretrained or config.weights):
        return
    options = {"mean": (mean, known.mean), "std": (std, known.std)}
    if other := [f"data.{name}={list(theirs)}" for name, (ours, theirs) in options.items() if [*ours] != [*theirs]]:
        yield f"model.backbone.name={config.name}: its weights expect other colours; set {' and '.join(other)}"


def make_timm_model(config: BackboneConfig, weights: Mapping[str, Tensor] | None, **options: Any) -> Any:
    """The model that a configuration names, made with options of timm; arguments and errors as of `Backbone`."""
    name = SHORT_NAMES.get(config.name, config.name)
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(config.name, [*SHORT_NAMES, *timm.list_models()], 3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise DqdetError(f"model.backbone.name={config.name}: no such backbone in timm{hint}")
    options["pretrained"] = config.pretrained
    if config.drop_path is not None:
        options |= {"drop_path_rate": config.drop_path}
    if "swin" in name:
        # Windows keep their size on small maps too: with images of any size, the input size of timm means nothing.
        options |= {"dynamic_img_size": True, "always_partition": True}
    create = partial(timm.create_model, name, **options)
    try:
        body: Any = create() if weights is None else _load(create, weights)
    except TypeError as error:
        if config.drop_path is not None and "drop_path" in str(error):
            raise DqdetError(
                f"model.backbone.drop_path={config.drop_path}: {name} has no stochastic depth; leave it out"
            ) from error
        if config.dilation:
            raise DqdetError(f"model.backbone.dilation=true: {name} has no stage to dilate; leave it out") from error
        raise
    except Exception as error:  # network, cache and file errors of several libraries
        if weights is not None:
            raise DqdetError(f"model.backbone.weights={config.weights}: not weights of {name} ({error})") from error
        if config.pretrained:
            raise DqdetError(
                f"the ImageNet weights of {name} could not be fetched ({type(error).__name__}); give a local file with "
                "model.backbone.weights=FILE, or start from random weights with model.backbone.pretrained=false"
            ) from error
        raise
    for module in body.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = PaddedSwinBlock
    return body


def _load(create: Callable[..., Any], weights: Mapping[str, Tensor]) -> Any:
    """A model with all its parameters from a file.

    Raises:
        DqdetError: the file does not have them all.
    """

    def load(state: dict[str, Tensor]) -> Any:
        body = create(pretrained=True, pretrained_cfg_overlay={"state_dict": state})
        body.pretrained_cfg["state_dict"] = None  # it would be kept
        return body

    # timm renames and resizes what a file has, and passes over what it lacks: where no NaN of a file of NaNs arrives.
    marked = {name: torch.full_like(x, torch.nan) if x.is_floating_point() else x for name, x in weights.items()}
    arrived = {name: x.isnan().all() for name, x in load(marked).state_dict().items() if x.is_floating_point()}
    if missing := [name for name, all_of_it in arrived.items() if not all_of_it]:
        raise DqdetError(f"has no {listed(missing)}")
    return load(dict(weights))
