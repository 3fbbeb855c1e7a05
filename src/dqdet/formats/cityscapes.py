"""The labels of Cityscapes (Cordts et al., 2016) and the numbers in its ``*_gtFine_instanceIds.png``.

Pixels hold label id * 1000 + number for objects, and the label id for all else.
"""

from __future__ import annotations

import numpy as np
from torchvision.datasets import Cityscapes

# Label id -> name, train_id, has_instances, ignore_in_eval, color and more.
LABELS = {label.id: label for label in Cityscapes.classes}
# Those that are evaluated, in the order of their training ids: stuff, then things.
CLASSES = sorted((label for label in LABELS.values() if not label.ignore_in_eval), key=lambda label: label.train_id)
THINGS = {label.id: label.name for label in CLASSES if label.has_instances}
INSTANCE_BASE = 1000


def labels_of(numbers: np.ndarray) -> np.ndarray:
    """The label id of each of the pixel values of ``*_gtFine_instanceIds.png``."""
    return np.where(numbers >= INSTANCE_BASE, numbers // INSTANCE_BASE, numbers)


def unknown(numbers: np.ndarray) -> list[int]:
    """The numbers that are no pixel values of ``*_gtFine_instanceIds.png``: without label, or objects of stuff."""
    labels = [LABELS.get(label_id) for label_id in labels_of(numbers).tolist()]
    return [
        number
        for number, label in zip(numbers.tolist(), labels, strict=True)
        if label is None or (number >= INSTANCE_BASE and not label.has_instances)
    ]
