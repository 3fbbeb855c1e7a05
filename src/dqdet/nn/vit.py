"""Plain vision transformers as backbones (Li et al., "ViTDet", ECCV 2022), with the order of tokens of LW-DETR.

Most blocks look at windows of the image, a few at all of it. Tokens lie window by window, so that a block of either
kind takes them as they are: a window is a sequence of its own, and all windows of an image together are another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import WindowedVitConfig
from dqdet.errors import DqdetError
from dqdet.nn.backbone import make_timm_model

# CAE v2's transformers, which LW-DETR starts from, by their width. timm has the blocks, but not these sizes.
CAE_WIDTHS = {"cae_tiny": 192, "cae_small": 384, "cae_base": 768}


class WindowedVit(nn.Module):
    """Maps of an image after some of the blocks, all of the same size.

    Args:
        config: name, patch, windows, and after which blocks.
        weights: parameters by timm's names instead of the fetched ones.

    Attributes:
        channels: of the maps.

    Raises:
        DqdetError: for an unknown name, a model of another kind, or weights that cannot be had.
    """

    def __init__(self, config: WindowedVitConfig, weights: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.body = _make_body(config, weights)
        self.config = config
        self.channels = [self.body.embed_dim] * len(config.taps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` -> one ``[B, C, H / patch, W / patch]`` a tap; patch times windows divides the sides."""
        body, side = self.body, self.config.windows
        x = body.patch_embed.norm(body.patch_embed.proj(images).permute(0, 2, 3, 1))  # [B, h, w, C]
        batch, height, width, _ = x.shape
        x = x + self.positions(height, width)
        x = x.unflatten(2, (side, -1)).unflatten(1, (side, -1)).transpose(2, 3)  # [B, windows, windows, h', w', C]
        window = x.shape[3:5]
        x = x.flatten(3, 4).flatten(0, 2)  # [B * windows^2, h' * w', C]
        prefix = 0
        if body.cls_token is not None:  # every window has one
            prefix = 1
            first = body.cls_token if body.no_embed_class else body.cls_token + body.pos_embed[:, :1]
            x = torch.cat([first.expand(x.shape[0], -1, -1), x], 1)  # [B * windows^2, 1 + h' * w', C]
        x = body.norm_pre(x)
        maps = []
        for number, block in zip(range(self.config.taps[-1]), body.blocks, strict=False):
            everywhere = number in self.config.global_blocks
            x = block(x.reshape(batch, -1, x.shape[-1])).view_as(x) if everywhere else block(x)
            if number + 1 in self.config.taps:
                tokens = body.norm(x)[:, prefix:]  # [B * windows^2, h' * w', C]
                tokens = tokens.unflatten(1, window).unflatten(0, (batch, side, side)).transpose(2, 3)
                maps.append(tokens.reshape(batch, height, width, -1).permute(0, 3, 1, 2))
        return maps

    def positions(self, height: int, width: int) -> Tensor:
        """The table of positions, resampled to a map of this size: ``[1, height, width, C]``."""
        side = self.config.positions
        table = self.body.pos_embed[:, -side * side :].unflatten(1, (side, side))
        if (height, width) == (side, side):
            return table
        # As published: DINOv2's positions are smoothed where they become fewer, and CAE's are not.
        smooth = isinstance(self.body, VisionTransformer)
        resampled = F.interpolate(
            table.permute(0, 3, 1, 2).float(), (height, width), mode="bicubic", antialias=smooth
        )  # [1, C, height, width]
        return resampled.permute(0, 2, 3, 1).to(table.dtype)


def _make_body(config: WindowedVitConfig, weights: Mapping[str, Tensor] | None) -> Any:
    """A transformer of timm; blocks after the last tap, which files may have, do not run."""
    depth, size = config.taps[-1], config.patch * config.positions
    if config.name in CAE_WIDTHS:
        return _make_cae(config, weights)
    name = config.name.split(".")[0]
    body = None
    if not timm.is_model(name) or is_model_in_modules(name, {"vision_transformer"}):  # others have no such sizes
        body = make_timm_model(config, weights, patch_size=config.patch, img_size=size, num_classes=0)
    if not isinstance(body, VisionTransformer) or not _is_plain(body) or len(body.blocks) < depth:
        raise DqdetError(
            f"model.backbone.name={config.name}: no plain vision transformer with a class token and {depth} blocks"
        )
    for unread in (body.blocks[depth:], body.fc_norm, body.attn_pool or nn.Identity()):
        unread.requires_grad_(False)
    return body


def _is_plain(body: VisionTransformer) -> bool:
    """Whether the only token beside the patches is that of the class, and all have learned positions."""
    return body.num_prefix_tokens == 1 and body.cls_token is not None and body.pos_embed is not None


def _make_cae(config: WindowedVitConfig, weights: Mapping[str, Tensor] | None) -> Any:
    """The transformer of CAE v2 (Zhang et al., 2022), which leaves its tokens without a norm."""
    body: Any = Beit(
        config.patch * config.positions,
        config.patch,
        num_classes=0,
        embed_dim=CAE_WIDTHS[config.name],
        depth=config.taps[-1],
        init_values=0.1,
        drop_path_rate=config.drop_path or 0.0,
    )
    body.cls_token, body.norm, body.fc_norm, body.norm_pre = None, nn.Identity(), nn.Identity(), nn.Identity()
    if weights is not None:
        weights = {name.removeprefix("encoder."): tensor for name, tensor in weights.items()}
        own = body.state_dict()
        if unfit := [name for name in own if name not in weights or weights[name].shape != own[name].shape]:
            raise DqdetError(f"model.backbone.weights={config.weights}: not weights of {config.name} ({unfit[0]})")
        body.load_state_dict({name: weights[name] for name in own})
    elif config.pretrained:
        raise DqdetError(
            f"model.backbone.name={config.name}: its weights are not on the hub; give a local file with "
            "model.backbone.weights=FILE, or set model.backbone.pretrained=false"
        )
    return body
