"""What is exported: a model from pixels to what was found, with the normalisation and the selection inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from dqdet.config import Config
from dqdet.exporting.formats import Resolution
from dqdet.exporting.meaning import outputs
from dqdet.inference.masks import boxes_of_masks
from dqdet.inference.pairs import best_pairs
from dqdet.models.detector import Detector
from dqdet.types import Predictions, rows


class Network(nn.Module):
    """A model whose inputs and outputs are tensors alone; their meaning is in `dqdet.exporting.meaning`.

    Args:
        model: of any family, in evaluation mode.
        config: of the model; ``inference.limit`` objects are selected.
        masks: of instances, at a quarter of the resolution of the batch or at all of it.
    """

    def __init__(self, model: Detector, config: Config, masks: Resolution = "quarter"):
        super().__init__()
        self.model = model
        self.config = config
        self.masks = masks
        self.eval()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """``images [B, 3, H, W]`` uint8 (video: ``[B, T, 3, H, W]``) and ``sizes [B, 2]``, height and width."""
        height, width = images.shape[-2:]
        whole = torch.stack([sizes.new_full((images.shape[0],), side) for side in (height, width)], -1)
        sizes = torch.minimum(sizes, whole)  # [B, 2]
        row, column = (torch.arange(side, device=images.device) for side in (height, width))
        padding = (row[:, None] >= sizes[:, :1, None]) | (column >= sizes[:, 1:, None])  # [B, H, W]
        found = self.select(self.model(images, padding).final, sizes, (height, width))
        return tuple(found[name] for name in outputs(self.config))

    def select(self, final: Predictions, sizes: Tensor, whole: tuple[int, int]) -> dict[str, Tensor]:
        """The outputs by name, from the last layer's predictions of images of ``sizes [B, 2]`` in a batch of one."""
        if self.config.data.task in ("panoptic", "video"):
            assert final.masks is not None
            queries = torch.arange(final.logits.shape[2], device=sizes.device).expand(sizes.shape[0], -1)
            return {"logits": final.logits[0].float(), "masks": final.masks.chosen(queries).float()}
        scores, labels, queries = best_pairs(final.logits[0], self.config, self.config.inference.limit)
        found = {"scores": scores, "labels": labels}
        if final.boxes is not None:
            boxes = box_convert(rows(final.boxes[0].float(), queries), "cxcywh", "xyxy")
            found["boxes"] = boxes * sizes.flip(-1).repeat(1, 2)[:, None]  # [B, K, 4]
        if final.masks is not None:
            masks, stride = final.masks.chosen(queries).float(), final.masks.stride  # [B, K, h, w]
            if self.masks == "full":
                masks, stride = enlarged(masks, stride, whole), 1  # [B, K, H, W]
            found["masks"] = masks
            if final.boxes is None:
                found |= of_masks(masks, stride, scores, sizes)
        return found


def enlarged(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Logits ``[B, K, h, w]`` at a stride as those of a batch of some height and width ``[B, K, H, W]``."""
    padded = [side * stride for side in masks.shape[2:]]
    return F.interpolate(masks, padded, mode="bilinear")[..., : size[0], : size[1]]


def of_masks(masks: Tensor, stride: int, scores: Tensor, sizes: Tensor) -> dict[str, Tensor]:
    """Boxes around masks, and scores with their certainty, as of `dqdet.inference.masks.instances` to a cell.

    Args:
        masks: logits ``[B, K, h, w]``.
        stride: pixels along the side of a cell of them.
        scores: of the classes, ``[B, K]``.
        sizes: height and width of the images, ``[B, 2]``.
    """
    row, column = (stride * torch.arange(side, device=masks.device) for side in masks.shape[2:])
    image = (row[:, None] < sizes[:, :1, None]) & (column < sizes[:, 1:, None])  # [B, h, w]
    inside = (masks > 0) & image[:, None]  # [B, K, h, w]
    certainty = (masks.sigmoid() * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)  # [B, K]
    boxes = stride * boxes_of_masks(inside.flatten(0, 1)).unflatten(0, scores.shape)  # [B, K, 4]
    limits = sizes.flip(-1).repeat(1, 2)[:, None].float()
    return {"boxes": torch.minimum(boxes, limits), "scores": scores * certainty, "class_scores": scores}
