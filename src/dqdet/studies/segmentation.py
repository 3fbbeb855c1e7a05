"""Tables 3, 4 and 5: Mask2Former for panoptic maps and for instances."""

from __future__ import annotations

from dqdet.studies.comparison import CONTROLLED, Comparison
from dqdet.studies.small import mask2former

PAPER = {
    "mask2former_r50_cityscapes_panoptic": {
        "static": {"AP_things": 0.373, "mIoU": 0.775},
        "modulated": {"AP_things": 0.382, "mIoU": 0.787},
    },
    "mask2former_r50_cityscapes_instance": {
        "static": {"AP": 0.374, "AP50": 0.619},
        "modulated": {"AP": 0.385, "AP50": 0.632},
    },
    "mask2former_swin_b_cityscapes_panoptic": {
        "static": {"PQ": 0.661, "AP_things": 0.428, "mIoU": 0.827},
        "modulated": {"PQ": 0.670, "AP_things": 0.437, "mIoU": 0.837},
    },
    "mask2former_swin_b_cityscapes_instance": {
        "static": {"AP": 0.420, "AP50": 0.688},
        "modulated": {"AP": 0.430, "AP50": 0.696},
    },
    "mask2former_r50_coco_instance": {"static": {"AP": 0.437}, "modulated": {"AP": 0.444}},
    "mask2former_r50_coco_panoptic": {
        "static": {"PQ": 0.519, "PQ_things": 0.577},
        "modulated": {"PQ": 0.526, "PQ_things": 0.589},
    },
    "mask2former_swin_b_coco_panoptic": {
        "static": {"PQ": 0.551, "PQ_things": 0.610},
        "modulated": {"PQ": 0.557, "PQ_things": 0.618},
    },
    "mask2former_swin_b_coco_instance": {"static": {"AP": 0.467}, "modulated": {"AP": 0.476}},
}

run = Comparison(
    title="Segmentation with dynamic queries and their controls",
    own={"panoptic": mask2former("panoptic"), "instance": mask2former("instance")},
    arms=lambda config: CONTROLLED,
    paper=PAPER,
).run
