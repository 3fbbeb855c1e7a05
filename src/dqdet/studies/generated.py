"""Section 3.3: the naive idea, queries that an MLP makes of the image."""

from __future__ import annotations

from dqdet.studies.comparison import MODULATED, STATIC, Arm, Comparison
from dqdet.studies.small import DEFORMABLE_DETR, detector

ARMS = {"static": STATIC, "generated": Arm({"queries.kind": "generated"}), "modulated": MODULATED}

run = Comparison(
    title="Queries that an MLP makes",
    own={"Deformable-DETR": detector(DEFORMABLE_DETR)},
    arms=lambda config: ARMS,
    paper={DEFORMABLE_DETR: {"static": {"AP": 0.462}, "generated": {"AP": 0.451}, "modulated": {"AP": 0.470}}},
).run
