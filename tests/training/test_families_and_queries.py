"""Every family learns with every kind of queries, through the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from dqdet.config import resolve
from dqdet.models import FAMILIES
from dqdet.runs.folder import load_folder
from dqdet.studies.small import PLAIN
from dqdet.training.engine import train
from tiny import tiny_family

TASKS = {
    "detr_r50": "detection",
    "conditional_detr_r50": "detection",
    "smca_detr_r50": "detection",
    "dab_detr_r50": "detection",
    "deformable_detr_r50_refine": "detection",
    "dab_deformable_detr_r50": "detection",
    "dino_r50": "detection",
    "lw_detr_small": "detection",
    "rf_detr_nano": "detection",
    "rf_detr_seg_nano": "instance",
    "mask2former_r50_coco_panoptic": "panoptic",
    "video_mask2former_r50": "video",
    "seqformer_r50": "video",
}
TABLES = {  # parts of the queries by their kinds
    "static": {"table"},
    "modulated": {"basic", "coefficients"},
    "generated": {"generate"},
    "grouped": {"table", "unrelated"},
    "shared": {"patterns", "coefficients"},
}
# Heads of boxes, sampling offsets and attention weights start with zeros, through which no gradient comes before the
# second step. The content of two families is zero before their first layer, so that its projection never learns; and
# a softmax over frames does not see the bias of its logits.
STEPS, IDLE = 2, ("decoder.0.self_attn.content_proj.weight", "frame_weights.bias")


class Weights(Callback):
    """Keeps what a training starts from and ends with."""

    def on_train_start(self, trainer, pl_module):
        self.first = {name: p.clone() for name, p in pl_module.model.named_parameters()}

    def on_train_end(self, trainer, pl_module):
        self.last = {name: p.clone() for name, p in pl_module.model.named_parameters()}


def test_no_family_is_left_out():
    assert {resolve(preset).model.family for preset in TASKS} == set(FAMILIES)


@pytest.mark.parametrize("preset", TASKS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("shared", "generated"))) for kind in TABLES]
)
def test_a_training_moves_every_parameter_and_its_folder_loads(preset, kind, tmp_path):
    own: dict[str, Any] = {"model__backbone__freeze": False}  # else the last norms of blocks, zero at first, stay empty
    if "mask2former" in preset:
        own["loss__points"] = 64
    if preset.startswith(("lw_detr", "rf_detr")):
        own = {"model__encoder_layers": 0, "model__cross_heads": 4, "train__ema": None, "train__precision": "32"}
        own |= {f"model__backbone__{name}": value for name, value in (PLAIN | {"patch": 16, "taps": [2, 6]}).items()}
    config = tiny_family(
        preset,
        model__hidden=64,
        queries__kind=kind,
        queries__hidden=32,
        data__kind="scenes",
        data__task=TASKS[preset],
        data__crop=False,
        data__jitter=None,
        data__window=None,
        data__clips__frames=2,
        data__clips__neighbours=0,
        data__clips__every_frame=False,
        data__scenes__train_images=2 * STEPS,
        data__scenes__val_images=1,
        data__scenes__frames=3,
        train__batch=2,
        train__epochs=1,
        train__weight_decay=0.0,  # which would move what has no gradient
        **own,
    )
    weights = Weights()
    train(config, tmp_path, [weights])

    sources = {name.split(".")[1] for name in weights.first if name.startswith("queries.")}
    assert sources == TABLES[kind]
    unmoved = {name for name, first in weights.first.items() if torch.equal(first, weights.last[name])}
    assert {name for name in unmoved if not name.endswith(IDLE)} == set()

    model, saved = load_folder(tmp_path)
    assert saved.queries == config.queries
    loaded = dict(model.named_parameters())
    assert loaded.keys() == weights.last.keys()
    assert all(torch.equal(loaded[name], last) for name, last in weights.last.items())
