"""Table 7: the weight of the basic queries' loss."""

from __future__ import annotations

from dqdet.studies.comparison import METRICS, MODULATED, STATIC, Arm, Comparison
from dqdet.studies.small import DEFORMABLE_DETR, detector

BETAS = (0.0, 0.5, 1.0, 2.0)
ARMS = {
    **{f"beta {beta:g}": Arm({**MODULATED.options, "loss.beta": beta}, "modulated", beta) for beta in BETAS},
    "static": STATIC,
}
SIZES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def _numbers(*values: float) -> dict[str, float]:
    return dict(zip(SIZES, values, strict=True))


PAPER = {
    DEFORMABLE_DETR: {
        "static": {"AP": 0.462, "AP50": 0.650, "AP75": 0.499},
        "beta 0": _numbers(0.456, 0.641, 0.494, 0.272, 0.491, 0.605),
        "beta 0.5": _numbers(0.464, 0.650, 0.503, 0.281, 0.492, 0.626),
        "beta 1": _numbers(0.470, 0.655, 0.509, 0.288, 0.501, 0.622),
    }
}

run = Comparison(
    title="The weight of the basic queries' loss",
    own={"Deformable-DETR": detector(DEFORMABLE_DETR)},
    arms=lambda config: ARMS,
    paper=PAPER,
    reference="beta 1",
    metrics={**METRICS, "detection": SIZES, "instance": SIZES},
    figure="places",
    axis="beta",
).run
