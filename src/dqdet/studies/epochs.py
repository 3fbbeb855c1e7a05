"""Figure 3a: AP along the training, with the controls."""

from __future__ import annotations

from dqdet.studies.comparison import CONTROLLED, Comparison
from dqdet.studies.small import DEFORMABLE_DETR, detector

# As many steps as the other studies, in parts with a validation after each.
PARTS: dict[str, object] = {"data__scenes__train_images": 200, "train__epochs": 8, "train__drop": [6.4]}

run = Comparison(
    title="AP along the training",
    own={"Deformable-DETR": detector(DEFORMABLE_DETR, **PARTS)},
    arms=lambda config: CONTROLLED,
    paper={DEFORMABLE_DETR: {"static": {"AP": 0.462}, "modulated": {"AP": 0.470}}},
    figure="curves",
).run
