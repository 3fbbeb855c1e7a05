"""Queries that are objects with noise, beside those of ``queries.py`` while a model with anchors trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dqdet.config import QueriesConfig
from dqdet.nn.boxes import inverse_sigmoid
from dqdet.types import Denoised, Queries, Sight, Target


class Noise(NamedTuple):
    """What is random in denoising queries: of K copies of N objects, positives (0) and negatives (1) of each copy."""

    relabel: Tensor  # [K, 2, N] in 0..1
    label: Tensor  # [K, 2, N] int64
    sign: Tensor  # [K, 2, N, 4], -1 or 1
    size: Tensor  # [K, 2, N, 4] in 0..1


def draw_noise(copies: int, objects: int, classes: int, device: torch.device) -> Noise:
    shape = (copies, 2, objects)
    return Noise(
        relabel=torch.rand(shape, device=device),
        label=torch.randint(classes, shape, device=device),
        sign=torch.randint(2, (*shape, 4), device=device) * 2.0 - 1,
        size=torch.rand((*shape, 4), device=device),
    )


class DenoisingQueries(nn.Module):
    """In training, queries that are objects with noise: Zhang et al., "DINO", ICLR 2023, section 3.2.

    Each copy of the objects of an image has a positive and a negative query for every object. The corners of positives
    are off by less than half a side, which they learn to undo; those of negatives by more, and they learn to be
    background. Some of both have a wrong class. All are one more group, whose copies do not see each other; they see
    the group of inference, which does not see them.

    There are as many copies as fit into ``config.denoising`` positives of the image with the most objects, at least
    one. (So does the published code where 50 or more are asked for; below, it makes twice that many copies.)

    Args:
        hidden: width of the content, which is learned for every class.
        classes: C.
        config: number of queries and the noise.
        epsilon: anchors are kept so far from 0 and 1.
    """

    def __init__(self, hidden: int, classes: int, config: QueriesConfig, epsilon: float):
        super().__init__()
        self.config = config
        self.epsilon = epsilon
        self.labels = nn.Parameter(torch.randn(classes, hidden))

    def forward(self, queries: Queries, targets: Sequence[Target]) -> Queries:
        """``queries`` with contents ``[B, Q, f]`` and anchors ``[B, Q, 4]``, and in training those of B targets."""
        if not self.training or not targets:
            return queries
        counts = [len(target.labels) for target in targets]
        most = max(counts)
        copies = max(1, self.config.denoising // most) if most else 1
        size = copies * 2 * most
        device = self.labels.device
        noise = draw_noise(copies, sum(counts), len(self.labels), device)
        labels = torch.cat([target.labels for target in targets])  # [N]
        labels = labels.where(noise.relabel >= self.config.label_noise, noise.label)  # [K, 2, N]
        boxes = noised(torch.cat([target.boxes for target in targets]), noise, self.config.box_noise)  # [K, 2, N, 4]

        image = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], dtype=torch.long)  # [N]
        number = torch.tensor([j for count in counts for j in range(count)], dtype=torch.long)  # [N]
        place = torch.arange(2 * copies).view(copies, 2, 1) * most + number  # [K, 2, N]
        columns = torch.broadcast_tensors(place, image, number, torch.arange(len(image)))
        place, image, number, row = torch.stack(columns).to(device, non_blocking=True)  # [K, 2, N] each
        made = {"content": self.labels[labels], "anchor": inverse_sigmoid(boxes, self.epsilon)}
        parts = {}
        for name, part in queries.parts.items():
            idle = part.new_zeros(len(targets), size, part.shape[-1])  # what remains of images with fewer objects
            parts[name] = torch.cat([part, idle.index_put((image, place), made[name].to(part))], 1)
        positive = [x[:, 0].flatten() for x in (image, place, number, row)]
        first = next(iter(queries.groups.values()))
        return Queries(
            parts,
            queries.groups | {"denoising": size},
            queries.coefficients,
            {"denoising": Sight(size, copies, first)},
            Denoised(copies, *positive),
        )


def noised(boxes: Tensor, noise: Noise, scale: float) -> Tensor:
    """Boxes ``[N, 4]`` with moved corners: ``[K, 2, N, 4]``; the width or height of negatives may be below 0.

    A corner moves by up to ``scale`` half sides, of negatives by one to two times so much.
    """
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    further = torch.arange(2, device=boxes.device)[:, None, None]  # [2, 1, 1]
    moves = noise.sign * (noise.size + further) * torch.cat([half, half], -1) * scale  # [K, 2, N, 4]
    corners = (torch.cat([centre - half, centre + half], -1) + moves).clamp(0, 1)
    low, high = corners.chunk(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)
