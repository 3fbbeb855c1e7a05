"""Memory that the set loss of masks needs, with its gradients, for the outputs of a full-size Mask2Former.

    python benchmarks/loss_memory.py [--objects 7]

Two images of 1024x1024, 100 modulated and 400 basic queries, 10 predictions a query, 12,544 points. Mask logits of all
of them would take 2,500 MiB, and as much again for their gradients.
"""

from __future__ import annotations

import argparse
import resource

import torch

from dqdet.config import MaskLossConfig
from dqdet.losses import MaskSetLoss
from dqdet.nn.product_masks import ProductMasks
from dqdet.types import Predictions, Target

LAYERS, IMAGES, CHANNELS, CLASSES, SIDE = 10, 2, 256, 80, 1024
GROUPS = {"modulated": 100, "basic": 400}


def peak() -> float:
    """Peak resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=7, help="an image; 7 is the average of COCO")
    objects = parser.parse_args().objects
    torch.manual_seed(0)
    queries = sum(GROUPS.values())
    predictions = Predictions(
        logits=torch.randn(LAYERS, IMAGES, queries, CLASSES + 1, requires_grad=True),
        boxes=None,
        groups=GROUPS,
        masks=ProductMasks(
            torch.randn(LAYERS, IMAGES, queries, CHANNELS, requires_grad=True),
            torch.randn(IMAGES, CHANNELS, SIDE // 4, SIDE // 4, requires_grad=True),
        ),
    )
    targets = [
        Target(
            labels=torch.randint(CLASSES, (objects,)),
            boxes=torch.zeros(objects, 4),
            size=(SIDE, SIDE),
            original_size=(SIDE, SIDE),
            masks=torch.randint(2, (objects, SIDE, SIDE), dtype=torch.uint8).bool(),
        )
        for _ in range(IMAGES)
    ]
    before = peak()
    MaskSetLoss(MaskLossConfig())(predictions, targets).total.backward()
    print(f"{objects} objects an image: {peak() - before:.0f} MiB in addition to {before:.0f}")


if __name__ == "__main__":
    main()
