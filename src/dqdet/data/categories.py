"""The categories of COCO."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

# Category id -> name of the 80 that have annotations. The ids have gaps, which torchvision's list fills.
COCO_CATEGORIES: dict[int, str] = {
    number: name
    for number, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
