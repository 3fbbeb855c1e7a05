"""Every family learns with every kind of queries, through the engine."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from dqdet.config import resolve
from dqdet.models import FAMILIES
from dqdet.runs.folder import load_folder
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
# second step. The content of these two families is zero before their first layer, so that this never learns.
STEPS, IDLE = 2, {"decoder.0.self_attn.content_proj.weight"}


class Weights(Callback):
    """Keeps what a training starts from and ends with."""

    def on_train_start(self, trainer, pl_module):
        self.first = {name: p.clone() for name, p in pl_module.model.named_parameters()}

    def on_train_end(self, trainer, pl_module):
        self.last = {name: p.clone() for name, p in pl_module.model.named_parameters()}


def test_no_family_is_left_out():
    assert {resolve(preset).model.family for preset in TASKS} == set(FAMILIES)


@pytest.mark.parametrize("preset", TASKS)
@pytest.mark.parametrize("kind", TABLES)
def test_a_training_moves_every_parameter_and_its_folder_loads(preset, kind, tmp_path):
    points = {"loss__points": 64} if "mask2former" in preset else {}
    config = tiny_family(
        preset,
        model__hidden=64,
        model__backbone__freeze=False,  # the last norms of blocks start with zeros: frozen, these would stay empty
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
        **points,
    )
    weights = Weights()
    train(config, tmp_path, [weights])

    sources = {name.split(".")[1] for name in weights.first if name.startswith("queries.")}
    assert sources == TABLES[kind]
    unmoved = {name for name, first in weights.first.items() if torch.equal(first, weights.last[name])}
    assert unmoved <= IDLE

    model, saved = load_folder(tmp_path)
    assert saved.queries == config.queries
    loaded = dict(model.named_parameters())
    assert loaded.keys() == weights.last.keys()
    assert all(torch.equal(loaded[name], last) for name, last in weights.last.items())
