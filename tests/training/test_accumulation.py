"""A step that is divided into several batches is the same step."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from recorder import Recorder
from torch import Tensor

from dqdet.config import Config, resolve
from dqdet.losses.masks import RandomPoints
from dqdet.training.engine import train
from tiny import TINY, tiny

# No randomness but the data's, no norm over the batch, images of one size, and as many objects as they come.
SAME = {
    "model.dropout": 0.0,
    "model.backbone.name": "test_convnext",
    "model.backbone.pretrained": False,
    "train.epochs": 1,
    "train.clip": 0,
    "data.scenes.train_images": 8,
    "data.scenes.val_images": 1,
}
VIDEO = {"data.task": "video", "data.scenes.frames": 4, "data.clips.frames": 3, "data.clips.every_frame": False}
ONE_SIZE = {"data.crop": False, "data.colour": False}


def families() -> dict[str, Config]:
    small = {name: value for name, value in TINY.items() if name != "model.refine"} | SAME
    data = {"data.kind": "scenes"} | ONE_SIZE
    return {
        "focal": resolve("scenes_tiny", TINY | SAME),
        "two-stage": resolve("scenes_tiny", TINY | SAME | {"model.two_stage": True, "queries.kind": "static"}),
        "cross-entropy": resolve("detr_r50", small | data),
        "masks": resolve("scenes_tiny_panoptic", small),
        "masks of clips": resolve("scenes_tiny_video", small),
        "sequences": resolve("seqformer_r50", small | data | VIDEO),
    }


class Gradients(Recorder):
    """Keeps the gradient of every step, before it is clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = [p for p in pl_module.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in parameters)
        self.gradients.append(torch.cat([p.grad.flatten() for p in parameters]).double())


@pytest.fixture(autouse=True)
def fixed_points(monkeypatch):
    """Random points would be others for each batch, and with them the loss."""

    def points(count: int) -> Tensor:
        return torch.rand(count, 2, generator=torch.Generator().manual_seed(count))

    monkeypatch.setattr(
        RandomPoints, "of_images", lambda self, layer, group, images, count, device: points(count).repeat(images, 1, 1)
    )
    monkeypatch.setattr(
        RandomPoints,
        "of_pairs",
        lambda self, pairs, frames, count: points(count).repeat(len(pairs.query), frames, 1, 1),
    )


def accumulated(config: Config, accumulate: int, folder) -> Gradients:
    config = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": accumulate})})
    recorder = Gradients()
    train(config, folder, [recorder])
    return recorder


@pytest.mark.parametrize("family", families())
def test_accumulated_gradients_are_those_of_the_whole_batch(family, tmp_path):
    config = families()[family]
    whole = accumulated(config, 1, tmp_path / "whole")
    assert len(whole.gradients) == 2
    for accumulate in (2, 4):
        parts = accumulated(config, accumulate, tmp_path / f"{accumulate} parts")
        assert len(parts.steps) == 2 * accumulate
        assert len(parts.gradients) == 2
        # Of the first step: Adam makes more of rounding errors, so that the second one starts from other weights.
        expected, found = whole.gradients[0], parts.gradients[0]
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("family", ["focal", "cross-entropy", "masks"])
def test_images_that_fill_no_step_leave_steps_and_gradients_alone(family, tmp_path):
    """Of 7 images a step of 4 is one, in any number of parts, and its gradient is whole."""
    config = families()[family]
    scenes = config.data.scenes.model_copy(update={"train_images": 7})
    config = config.model_copy(update={"data": config.data.model_copy(update={"scenes": scenes})})
    whole = accumulated(config, 1, tmp_path / "whole")
    for accumulate in (2, 4):
        parts = accumulated(config, accumulate, tmp_path / f"{accumulate} parts")
        assert len(parts.gradients) == len(whole.gradients) == 1
        assert (parts.gradients[0] - whole.gradients[0]).norm() < 1e-5 * whole.gradients[0].norm()


def test_steps_and_their_images_do_not_depend_on_accumulation(tmp_path):
    """Of 7 images a step of 4 is one; the others fill none."""
    steps = {}
    for accumulate in (1, 2, 4):
        recorder = Gradients()
        options = {"train__accumulate": accumulate, "data__scenes__train_images": 7, "train__epochs": 2}
        train(tiny(**options), tmp_path / str(accumulate), [recorder])
        assert len(recorder.gradients) == 2
        images = [part for *_, part, _, _ in recorder.steps]
        steps[accumulate] = [list(chain(*images[first : first + accumulate])) for first in (0, accumulate)]
    assert steps[1] == steps[2] == steps[4]
    assert len(steps[1][0]) == 4
