"""Table 2: every detector with static and modulated queries, and with the controls."""

from __future__ import annotations

from dqdet.studies.comparison import CONTROLLED, Comparison
from dqdet.studies.small import DETECTORS, detector


def _numbers(*values: float) -> dict[str, float]:
    return dict(zip(("AP", "AP50", "AP75"), values, strict=True))


PAPER = {
    "conditional_detr_r50": {"static": _numbers(0.409, 0.617, 0.433), "modulated": _numbers(0.420, 0.633, 0.442)},
    "smca_detr_r50": {"static": _numbers(0.410, 0.615, 0.435), "modulated": _numbers(0.421, 0.633, 0.449)},
    "dab_detr_r50": {"static": _numbers(0.421, 0.631, 0.446), "modulated": _numbers(0.437, 0.644, 0.466)},
    "deformable_detr_r50_refine": {"static": _numbers(0.462, 0.650, 0.499), "modulated": _numbers(0.470, 0.655, 0.509)},
    "dab_deformable_detr_r50": {"static": _numbers(0.481, 0.664, 0.520), "modulated": _numbers(0.497, 0.681, 0.542)},
    "deformable_detr_swin_b": {"static": _numbers(0.509, 0.705, 0.553), "modulated": _numbers(0.532, 0.728, 0.577)},
    "dab_deformable_detr_swin_b": {"static": _numbers(0.527, 0.718, 0.574), "modulated": _numbers(0.538, 0.728, 0.586)},
}

run = Comparison(
    title="Detectors with dynamic queries and their controls",
    own={label: detector(preset) for label, preset in DETECTORS.items()},
    arms=lambda config: CONTROLLED,
    paper=PAPER,
).run
