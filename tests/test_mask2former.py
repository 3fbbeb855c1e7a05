"""What is particular to Mask2Former, of images and of videos, beyond the recorded cases."""

from __future__ import annotations

import pytest
import torch

from dqdet.models import video_mask2former
from dqdet.models.mask2former import Level, Mask2Former
from small_families import FRAMES, assert_same, build, inputs, outputs


def test_padding_seen_as_image():
    """By the pixel decoder and the attention; the context of dynamic queries is that of the image alone."""
    model = build("mask2former", kind="static").eval()
    features, padding = inputs(model)
    seen = build("mask2former", {"see_padding": True}, kind="static").eval().forward_features(features, padding)
    without = model.forward_features(features, torch.zeros_like(padding))
    torch.testing.assert_close(seen.logits, without.logits)
    assert not torch.allclose(seen.logits, model.forward_features(features, padding).logits, atol=1e-3)


def test_attention_sees_the_foreground_or_else_the_whole_image_but_never_padding():
    padding = torch.tensor([[False, False, False, True]])
    features = torch.tensor([[[1.0, -1.0, -1.0, 1.0]]])  # [B, c, S]
    level = Level(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), padding, features)
    # Masks with foreground, with more foreground, and (without the first cell) with none but in the padding.
    bias = level.attention_bias(torch.tensor([[[1.0], [-1.0]]]))[0, 0]
    assert (bias == 0).tolist() == [[True, False, False, False], [False, True, True, False]]
    level.mask_features[..., 0] = -1
    assert (level.attention_bias(torch.tensor([[[1.0]]]))[0, 0] == 0).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(("name", "frames"), [("mask2former", 1), ("video_mask2former", FRAMES)])
def test_layers_read_the_levels_in_turn_from_the_coarsest(name, frames):
    model = build(name).eval()
    read = []
    for layer in model.decoder:
        layer.register_forward_pre_hook(lambda layer, given: read.append(given[2].values.shape[1]))
    features, padding = inputs(model)
    model.forward_features(features, padding)
    height, width = padding.shape[1:]
    cells = [frames * (height // stride) * (width // stride) for stride in (32, 16, 8)]
    assert read == [*cells, cells[0]]


# Videos.


def test_without_time_equal_frames_are_one_image(monkeypatch):
    monkeypatch.setattr(video_mask2former, "frame_position", lambda frames, width, device: torch.zeros(frames, width))
    clips = build("video_mask2former").train()
    images = build("video_mask2former", family=Mask2Former).train()
    images.load_state_dict(clips.state_dict())
    features, padding = inputs(clips, frames=1)
    still = clips.forward_features([x.expand(-1, FRAMES, -1, -1, -1) for x in features], padding)
    one = images.forward_features([x[:, 0] for x in features], padding)
    assert still.masks is not None
    assert one.masks is not None
    torch.testing.assert_close(still.coefficients, one.coefficients)
    assert_same(outputs(still), outputs(one) | {"masks": one.masks.all()[:, :, :, None].expand_as(still.masks.all())})


def test_frames_are_ordered_by_their_time():
    model = build("video_mask2former").eval()
    features, padding = inputs(model)
    predictions = model.forward_features(features, padding)
    reversed_ = model.forward_features([x.flip(1) for x in features], padding)
    torch.testing.assert_close(reversed_.coefficients, predictions.coefficients)
    assert not torch.allclose(reversed_.logits, predictions.logits, atol=1e-3)
