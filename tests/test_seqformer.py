"""What is particular to SeqFormer beyond the recorded case, on small models and given features."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dqdet.config import SequenceLossConfig, resolve
from dqdet.losses import SequenceSetLoss
from dqdet.nn.dynamic_masks import dynamic_masks, parameter_count, upsample
from small_families import CLIPS, FRAMES, assert_same, build, inputs, make_targets, outputs


def test_classes_do_not_depend_on_the_order_of_frames_and_boxes_and_masks_follow_it():
    model = build("seqformer").train()
    features, padding = inputs(model)
    expected = outputs(model.forward_features(features, padding))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model.forward_features([feature[:, order] for feature in features], padding)
    assert_same(outputs(shuffled), expected | {name: expected[name][:, :, :, order] for name in ("boxes", "masks")})


def test_a_clip_of_equal_frames_is_one_frame():
    model = build("seqformer").train()
    features, padding = inputs(model, frames=1)
    one = outputs(model.forward_features(features, padding))
    still = outputs(model.forward_features([x.expand(-1, FRAMES, -1, -1, -1) for x in features], padding))
    assert_same(still, {name: output.expand_as(still[name]) for name, output in one.items()})


def test_boxes_come_from_their_own_frame():
    model = build("seqformer", kind="static").eval()
    features, padding = inputs(model)
    boxes = model.forward_features(features, padding).boxes
    for frame in range(FRAMES):
        changed = [x.clone() for x in features]
        for x in changed:
            x[0, frame] += 0.5 * torch.randn_like(x[0, frame])
        change = (model.forward_features(changed, padding).boxes - boxes).abs().amax((0, 2, 4))  # [B, T]
        assert (change[0] > 1e-4).tolist() == [other == frame for other in range(FRAMES)]
        assert not (change[1] > 1e-4).any()


def test_padding_read_by_the_masks_alone():
    model = build("seqformer").eval()
    features, padding = inputs(model)
    hidden = model.forward_features(features, padding)
    model.see_padding = True
    seen = model.forward_features(features, padding)
    torch.testing.assert_close(seen.logits, hidden.logits)
    torch.testing.assert_close(seen.masks.features[0], hidden.masks.features[0])  # without padding
    assert not torch.allclose(seen.masks.features[1], hidden.masks.features[1], atol=1e-3)


def test_mixed_precision_makes_masks_in_full_precision():
    model, targets = build("seqformer").train(), make_targets(CLIPS, (3, 2), FRAMES)
    criterion = SequenceSetLoss(SequenceLossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = model.forward_features(*inputs(model))
        assert predictions.masks.of(0, 0, torch.tensor([1])).dtype == torch.float32
        total = criterion(predictions, targets).total
    assert total.dtype == torch.float32
    total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_dynamic_masks_are_grouped_convolutions():
    torch.manual_seed(0)
    queries, channels, frames, height, width = 3, 5, 2, 6, 7
    parameters = torch.randn(queries, parameter_count(channels))
    features, centres = torch.randn(frames, channels, height, width), 60 * torch.rand(queries, frames, 2)
    sizes = [(channels + 2) * 8, 64, 8, 8, 8, 1]
    w1, w2, w3, b1, b2, b3 = parameters.split(sizes, 1)
    y, x = torch.meshgrid(8 * torch.arange(height) + 4, 8 * torch.arange(width) + 4, indexing="ij")
    expected = torch.empty(queries, frames, 2 * height, 2 * width)
    for frame in range(frames):
        places = centres[:, frame, :, None, None] - torch.stack([x, y])  # [M, 2, h, w]
        read = torch.cat([places, features[frame].expand(queries, -1, -1, -1)], 1).flatten(0, 1)[None]
        read = F.conv2d(read, w1.reshape(queries * 8, -1, 1, 1), b1.flatten(), groups=queries).relu()
        read = F.conv2d(read, w2.reshape(queries * 8, 8, 1, 1), b2.flatten(), groups=queries).relu()
        read = F.conv2d(read, w3.reshape(queries, 8, 1, 1), b3.flatten(), groups=queries)
        # Enlarged with corners aligned, and shifted by one cell.
        large = F.interpolate(
            F.pad(read, (0, 1, 0, 1), mode="replicate"), (13, 15), mode="bilinear", align_corners=True
        )
        expected[:, frame] = F.pad(large, (1, 0, 1, 0), mode="replicate")[0, :, :-2, :-2]
    torch.testing.assert_close(
        dynamic_masks(parameters[None], features[None], centres[None])[0], expected, rtol=1e-4, atol=1e-2
    )


def test_upsampled_cells_are_copies_and_means():
    assert upsample(torch.tensor([[0.0, 2.0], [4.0, 8.0]])).tolist() == [
        [0, 0, 1, 2],
        [0, 0, 1, 2],
        [2, 2, 3.5, 5],
        [4, 4, 6, 8],
    ]


def test_presets_are_the_published_recipe():
    """Arguments of the published scripts (300 queries, here modulated), and the 16 clips a step of their README."""
    for name, backbone in (("seqformer_r50", "resnet50"), ("seqformer_swin_l", "swin_l")):
        config = resolve(name)
        assert (config.train.epochs, config.train.drop, config.train.batch) == (12, [4, 10], 16)
        assert (config.train.lr, config.train.backbone_lr, config.train.offsets_lr) == (2e-4, 2e-5, 2e-5)
        assert (config.train.weight_decay, config.train.clip) == (1e-4, 0.1)
        assert (config.queries.kind, config.queries.count, config.queries.ratio) == ("modulated", 300, 4)
        assert config.model.backbone.name == backbone
        assert (config.model.hidden, config.model.feedforward, config.model.dropout) == (256, 1024, 0.1)
        assert (config.data.resize, config.data.max_size) == ([288, 320, 352, 392, 416, 448, 480, 512], 768)
        assert (config.data.val_resize, config.data.clips.frames, config.data.clips.every_frame) == (360, 5, True)
        assert config.data.val_max_size == 0  # any
        assert (config.data.clips.neighbours, config.data.redraw_empty) == (3, True)
        assert (config.data.colour, config.data.hue, config.data.permute_channels) == (True, 18 / 360, True)
