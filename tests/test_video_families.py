"""What holds for every family of videos, beyond what holds for all families: how the frames of a clip count."""

from __future__ import annotations

import pytest
import torch

from small_families import CLASSES, CLIPS, CONFIGS, COUNT, FRAMES, RATIO, build, inputs, reads_clips

every_family = pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if "video" in config.tasks])


@every_family
@pytest.mark.parametrize("frames", [1, 5])
def test_clips_of_any_length(name, frames):
    model = build(name).train()
    assert reads_clips(model)
    predictions = model.forward_features(*inputs(model, frames=frames))
    layers, clips, queries, classes = predictions.logits.shape
    assert (clips, queries) == (len(CLIPS), COUNT * (1 + RATIO))
    assert classes in (CLASSES, CLASSES + 1)
    assert predictions.final.masks.all().shape == (1, clips, COUNT, frames, 16, 24)
    if predictions.boxes is not None:
        assert predictions.boxes.shape == (layers, clips, queries, frames, 4)


@every_family
def test_every_frame_counts_for_the_queries_and_the_class_of_its_clip_alone(name):
    dynamic, static = build(name).eval(), build(name, kind="static").eval()
    features, padding = inputs(dynamic)
    coefficients = dynamic.forward_features(features, padding).coefficients
    logits = static.forward_features(features, padding).logits
    for frame in range(FRAMES):
        changed = [x.clone() for x in features]
        for x in changed:
            x[0, frame] += 0.5 * torch.randn_like(x[0, frame])
        found = dynamic.forward_features(changed, padding).coefficients
        assert not torch.allclose(found[0], coefficients[0], atol=1e-4)
        torch.testing.assert_close(found[1], coefficients[1])
        found = static.forward_features(changed, padding).logits
        assert not torch.allclose(found[-1, 0], logits[-1, 0], atol=1e-3)
        torch.testing.assert_close(found[:, 1], logits[:, 1])
