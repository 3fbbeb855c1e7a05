"""Figure 3b: the number of basic queries behind each modulated one."""

from __future__ import annotations

from dqdet.studies.comparison import MODULATED, STATIC, Arm, Comparison
from dqdet.studies.small import DEFORMABLE_DETR, detector

RATIOS = (1, 2, 4, 8)
ARMS = {
    "static": STATIC,
    **{f"ratio {r}": Arm({**MODULATED.options, "queries.ratio": r}, "modulated", r) for r in RATIOS},
}

run = Comparison(
    title="The ratio of basic to modulated queries",
    own={"Deformable-DETR": detector(DEFORMABLE_DETR)},
    arms=lambda config: ARMS,
    paper={DEFORMABLE_DETR: {"static": {"AP": 0.462}, "ratio 4": {"AP": 0.470}}},
    figure="places",
    axis="ratio r",
).run
