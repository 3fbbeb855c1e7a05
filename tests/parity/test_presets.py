"""The presets with static queries are the published baselines, as the recorded cases describe them."""

from __future__ import annotations

import json

import pytest
from recorded import DetectorCase, model_config

from dqdet.config import resolve

CASES = {
    "detr_r50": "detr",
    "conditional_detr_r50": "conditional_detr",
    "smca_detr_r50": "smca_detr",
    "dab_detr_r50": "dab_detr",
    "deformable_detr_r50": "deformable_detr",
    "deformable_detr_r50_refine": "deformable_detr_refine",
    "dab_deformable_detr_r50": "dab_deformable_detr",
    "dino_r50": "dino",
}


@pytest.mark.parametrize(("preset", "name"), CASES.items())
def test_static_presets_are_the_published_models(shared, preset, name):
    config = json.loads((shared / "parity" / f"{name}_r50_full" / "config.json").read_text())
    case = DetectorCase(config, expected={}, io={}, weights={})
    ours = resolve(preset, ["queries.kind=static"])
    assert ours.loss == case.loss()
    assert ours.queries.count == (900 if name == "dino" else case.options["num_queries"])  # recorded with fewer
    assert ours.queries.denoising == case.options.get("dn_number", 0)
    assert ours.queries.label_noise == case.options.get("dn_label_noise_ratio", 0.5) / 2
    assert ours.queries.box_noise == case.options.get("dn_box_noise_scale", 1.0)
    # The cases were recorded without dropout.
    assert ours.model.model_copy(update={"dropout": 0.0}) == model_config(case)
