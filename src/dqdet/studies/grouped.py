"""Table 8: unrelated training queries as the control, and how training queries are grouped."""

from __future__ import annotations

from dqdet.studies.comparison import CONSTANT, GROUPED, MODULATED, STATIC, Arm, Comparison
from dqdet.studies.small import DEFORMABLE_DETR, detector, mask2former

ARMS = {
    "static": STATIC,
    "grouped": GROUPED,
    "grouped, equal groups": Arm({**GROUPED.options, "queries.basic": "groups"}),
    "grouped, one a step": Arm({**GROUPED.options, "queries.basic": "one"}),
    "constant": CONSTANT,
    "modulated": MODULATED,
    "modulated, equal groups": Arm({**MODULATED.options, "queries.basic": "groups"}),
    "modulated, one a step": Arm({**MODULATED.options, "queries.basic": "one"}),
}
PAPER = {
    DEFORMABLE_DETR: {
        "static": {"AP": 0.462, "AP50": 0.650, "AP75": 0.499},
        "grouped": {"AP": 0.465, "AP50": 0.649, "AP75": 0.505},
        "modulated": {"AP": 0.470, "AP50": 0.655, "AP75": 0.509},
    },
    "mask2former_r50_coco_instance": {
        "static": {"AP": 0.437, "AP50": 0.655, "AP75": 0.469},
        "grouped": {"AP": 0.439, "AP50": 0.658, "AP75": 0.472},
        "modulated": {"AP": 0.444, "AP50": 0.663, "AP75": 0.476},
    },
}

run = Comparison(
    title="More training queries without a combination",
    own={"Deformable-DETR": detector(DEFORMABLE_DETR), "Mask2Former": mask2former("instance")},
    arms=lambda config: ARMS,
    paper=PAPER,
).run
