"""What holds for SeqFormer and its loss beyond the recorded case, on small models and given features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dqdet.config import QueriesConfig, SeqFormerConfig, SequenceLossConfig, resolve
from dqdet.losses import SequenceSetLoss, make_loss
from dqdet.losses.sequences import PAIRS_AT_ONCE
from dqdet.models import create_model
from dqdet.models.seqformer import SeqFormer
from dqdet.nn.dynamic_masks import dynamic_masks, parameter_count, upsample
from dqdet.types import Predictions, Queries, Target

CLASSES, COUNT, RATIO, LAYERS, FRAMES = 5, 6, 4, 3, 4
CHANNELS = [12, 20, 24]
CLIPS = [(64, 96), (50, 70)]  # height, width


def build(kind: str = "modulated", **options) -> SeqFormer:
    """A model whose parameters are away from initial values that hide mistakes."""
    torch.manual_seed(0)
    sizes = {"hidden": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": LAYERS, "feedforward": 48, "dropout": 0.0}
    queries = QueriesConfig(kind=kind, count=COUNT, ratio=RATIO, hidden=16)
    model = SeqFormer(SeqFormerConfig(**sizes, **options), queries, CLASSES, CHANNELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def inputs(seed: int = 1, frames: int = FRAMES) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    padding = torch.ones(len(CLIPS), 64, 96, dtype=torch.bool)
    for clip, (height, width) in enumerate(CLIPS):
        padding[clip, :height, :width] = False
    shapes = [(len(CLIPS), frames, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, SeqFormer.strides, strict=True)]
    return [torch.randn(shape, generator=generator) for shape in shapes], padding


def make_targets(*counts: int) -> list[Target]:
    """Objects that are rectangles and move to the right; the first of each clip is absent from the first frame."""
    generator = torch.Generator().manual_seed(2)
    targets = []
    for (height, width), count in zip(CLIPS, counts, strict=True):
        masks = torch.zeros(count, FRAMES, height, width, dtype=torch.bool)
        boxes = torch.zeros(count, FRAMES, 4)
        for number in range(count):
            top, left = (int(torch.randint(side // 3, (), generator=generator)) for side in (height, width))
            for frame in range(number == 0, FRAMES):
                x = left + 3 * frame
                masks[number, frame, top : top + 20, x : x + 24] = True
                box = torch.tensor([x + 12, top + 10, 24, 20])
                boxes[number, frame] = box / torch.tensor([width, height, width, height])
        targets.append(
            Target(
                labels=torch.randint(CLASSES, (count,), generator=generator),
                boxes=boxes,
                crowd=torch.zeros(count, dtype=torch.bool),
                size=(height, width),
                original_size=(height, width),
                masks=masks,
                visible=masks.flatten(2).any(2),
            )
        )
    return targets


def assert_same(actual: Predictions, expected: Predictions) -> None:
    assert actual.groups == expected.groups
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=1e-4, atol=1e-4)
    close_masks(actual.masks, expected.masks)


def close_masks(actual: Tensor, expected: Tensor) -> None:
    """Their logits go into the hundreds here, as sums of coordinates in pixels."""
    assert expected.abs().max() > 100
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=3e-3)


class OneGroup(nn.Module):
    """Some source of queries, reduced to one of its groups."""

    def __init__(self, source: nn.Module, group: str):
        super().__init__()
        self.source, self.group = source, group

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        queries = self.source(features, padding)
        index = list(queries.groups).index(self.group)
        sizes = list(queries.groups.values())
        parts = {name: part.split(sizes, 1)[index] for name, part in queries.parts.items()}
        return Queries(parts, {self.group: sizes[index]}, queries.coefficients)


# The model.


def test_shapes_and_groups():
    predictions = build().train().forward_features(*inputs())
    total = COUNT * (1 + RATIO)
    assert predictions.groups == {"modulated": COUNT, "basic": COUNT * RATIO}
    assert predictions.logits.shape == (LAYERS, 2, total, CLASSES)
    assert predictions.boxes.shape == (LAYERS, 2, total, FRAMES, 4)
    assert predictions.masks_of(0, 1, torch.tensor([3, 17])).shape == (2, FRAMES, 16, 24)
    assert predictions.coefficients.shape == (2, COUNT, RATIO)


@pytest.mark.parametrize("group", ["modulated", "basic"])
def test_one_pass_equals_separate_passes(group):
    model = build().train()
    together = model.forward_features(*inputs()).group(group)
    model.queries = OneGroup(model.queries, group)
    assert_same(model.forward_features(*inputs()), together)


def test_inference_is_the_first_group():
    model = build().train()
    first = model.forward_features(*inputs()).group("modulated")
    assert_same(model.eval().forward_features(*inputs()), first)


@pytest.mark.parametrize(("group", "own", "other"), [(0, "table", "unrelated"), (1, "unrelated", "table")])
def test_no_gradient_crosses_groups(group, own, other):
    model = build(kind="grouped").train()
    predictions = model.forward_features(*inputs())
    of_group = predictions.group(list(predictions.groups)[group])
    sum(x.square().sum() for x in (of_group.logits, of_group.boxes, of_group.masks)).backward()
    for table in model.queries.get_submodule(other).values():
        assert table.grad is None or not table.grad.any()
    for table in model.queries.get_submodule(own).values():
        assert table.grad.any(-1).all()  # every query


def test_the_order_of_a_batch_does_not_matter():
    model = build().train()
    features, padding = inputs()
    predictions = model.forward_features(features, padding)
    flipped = model.forward_features([feature.flip(0) for feature in features], padding.flip(0))
    torch.testing.assert_close(flipped.logits, predictions.logits.flip(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flipped.boxes, predictions.boxes.flip(1), rtol=1e-4, atol=1e-4)
    close_masks(flipped.masks, predictions.masks.flip(1))


def test_classes_do_not_depend_on_the_order_of_frames_and_boxes_and_masks_follow_it():
    model = build().train()
    features, padding = inputs()
    predictions = model.forward_features(features, padding)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model.forward_features([feature[:, order] for feature in features], padding)
    torch.testing.assert_close(shuffled.logits, predictions.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shuffled.boxes, predictions.boxes[:, :, :, order], rtol=1e-4, atol=1e-4)
    close_masks(shuffled.masks, predictions.masks[:, :, :, order])


def test_a_clip_of_equal_frames_is_one_frame():
    model = build().train()
    features, padding = inputs(frames=1)
    one = model.forward_features(features, padding)
    still = model.forward_features([feature.expand(-1, FRAMES, -1, -1, -1) for feature in features], padding)
    torch.testing.assert_close(still.logits, one.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(still.boxes, one.boxes.expand_as(still.boxes), rtol=1e-4, atol=1e-4)
    close_masks(still.masks, one.masks.expand_as(still.masks))


@pytest.mark.parametrize("frame", range(FRAMES))
def test_all_frames_make_queries_and_classes_but_boxes_come_from_their_own(frame):
    features, padding = inputs()
    changed = [feature.clone() for feature in features]
    for feature in changed:
        feature[0, frame] += 0.5 * torch.randn_like(feature[0, frame])
    dynamic, static = build().eval(), build(kind="static").eval()
    coefficients = [dynamic.forward_features(x, padding).coefficients for x in (features, changed)]
    assert not torch.allclose(coefficients[0][0], coefficients[1][0], atol=1e-4)
    torch.testing.assert_close(coefficients[0][1], coefficients[1][1])  # of the other clip

    before, after = (static.forward_features(x, padding) for x in (features, changed))
    assert not torch.allclose(before.logits[:, 0], after.logits[:, 0], atol=1e-3)
    torch.testing.assert_close(before.logits[:, 1], after.logits[:, 1])
    differs = (before.boxes[:, 0] - after.boxes[:, 0]).abs().amax((0, 1, 3)) > 1e-4  # [T]
    assert differs.tolist() == [other == frame for other in range(FRAMES)]


@pytest.fixture(scope="module")
def without_group_norm():
    """The published deformable models normalise the padded cells too, and convolve over them: both taken out here."""
    model = build(levels=3).eval()
    for projection in model.input_proj:
        projection[1] = nn.Identity()
    return model


@settings(max_examples=5)
@given(bottom=st.integers(0, 2), right=st.integers(0, 2), seed=st.integers(0, 100))
def test_more_padding_changes_nothing(without_group_norm, bottom, right, seed):
    model = without_group_norm
    features, padding = inputs(seed)
    predictions = model.forward_features(features, padding)
    padding = F.pad(padding, (0, 32 * right, 0, 32 * bottom), value=True)
    cells = [32 // stride for stride in model.strides]
    # What is in padded cells must not matter.
    padded = [F.pad(x, (0, n * right, 0, n * bottom), value=3.0) for x, n in zip(features, cells, strict=True)]
    found = model.forward_features(padded, padding)
    torch.testing.assert_close(found.logits, predictions.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, predictions.boxes, rtol=1e-4, atol=1e-4)
    close_masks(found.masks[..., :16, :24], predictions.masks)


def test_padding_read_by_the_masks_alone():
    model = build().eval()
    features, padding = inputs()
    hidden = model.forward_features(features, padding)
    model.see_padding = True
    seen = model.forward_features(features, padding)
    torch.testing.assert_close(seen.logits, hidden.logits)
    torch.testing.assert_close(seen.mask_features[0], hidden.mask_features[0])  # without padding
    assert not torch.allclose(seen.mask_features[1], hidden.mask_features[1], atol=1e-3)


# Masks.


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
    torch.testing.assert_close(dynamic_masks(parameters, features, centres), expected, rtol=1e-4, atol=1e-2)


def test_upsampled_cells_are_copies_and_means():
    assert upsample(torch.tensor([[0.0, 2.0], [4.0, 8.0]])).tolist() == [
        [0, 0, 1, 2],
        [0, 0, 1, 2],
        [2, 2, 3.5, 5],
        [4, 4, 6, 8],
    ]


# The loss.


def random_predictions(groups: dict[str, int]) -> Predictions:
    torch.manual_seed(3)
    shape = (LAYERS, 2, sum(groups.values()))
    return Predictions(
        logits=torch.randn(*shape, CLASSES, requires_grad=True),
        boxes=torch.rand(*shape, FRAMES, 4, requires_grad=True),
        groups=groups,
        mask_embeddings=(0.1 * torch.randn(*shape, parameter_count(2))).requires_grad_(),
        mask_features=torch.randn(2, FRAMES, 2, 8, 12, requires_grad=True),
        mask_centres=50 * torch.rand(*shape, FRAMES, 2),
    )


def test_the_loss_is_that_of_each_group_and_beta_times_the_others():
    predictions, targets = random_predictions({"modulated": 4, "basic": 16}), make_targets(3, 2)
    assert LAYERS * 2 * 3 > PAIRS_AT_ONCE  # the first clip's pairs take more than one turn
    together = SequenceSetLoss(SequenceLossConfig(beta=0.5))(predictions, targets)
    alone = [SequenceSetLoss(SequenceLossConfig())(predictions.group(name), targets) for name in predictions.groups]
    torch.testing.assert_close(together.total, alone[0].total + 0.5 * alone[1].total)
    assert together.terms.keys() == alone[0].terms.keys() | alone[1].terms.keys()
    for key, value in (alone[0].terms | alone[1].terms).items():
        torch.testing.assert_close(together.terms[key], value)


def test_the_loss_of_a_perfect_mask_is_nearly_nothing():
    """Masks are compared where the published code does: at the third pixel of every four, padding included."""
    predictions, (target, _) = random_predictions({"static": 1}), make_targets(1, 1)
    target = replace(target, boxes=target.boxes + 1e-6)
    logits = torch.full((FRAMES, 16, 24), -20.0)
    logits[target.masks[0][..., 2::4, 2::4]] = 20.0

    class Perfect(Predictions):
        def masks_of(self, layer, image, queries):
            return logits.expand(len(queries), -1, -1, -1)

    perfect = Perfect(**{**vars(predictions), "logits": predictions.logits[:, :1], "boxes": predictions.boxes[:, :1]})
    terms = SequenceSetLoss(SequenceLossConfig())(perfect, [target]).terms
    assert terms["static/0/mask"] < 1e-6
    assert terms["static/0/dice"] < 1e-6
    logits[0, 0, 0] = 20.0  # one cell of 4 x 16 x 24, in a frame without the object
    terms = SequenceSetLoss(SequenceLossConfig())(perfect, [target]).terms
    assert terms["static/0/mask"].item() == pytest.approx(0.75 * 20 / (FRAMES * 16 * 24), rel=1e-3)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_masks_of_all_queries_never_exist_and_those_of_pairs_are_not_kept():
    predictions, targets = random_predictions({"modulated": 100, "basic": 400}), make_targets(10, 10)
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    criterion = SequenceSetLoss(SequenceLossConfig())
    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            total = criterion(predictions, targets).total
        total.backward()
    of_one = FRAMES * 16 * 24
    assert largest.elements < 500 * of_one
    assert kept < 2 * LAYERS * 2 * 20 * of_one  # two numbers a cell of the masks of all pairs


@pytest.mark.parametrize("objects", [(0, 0), (0, 2), (3, 2)])
def test_every_parameter_has_a_finite_gradient(objects):
    """Several processes wait for each other's gradients: a training step must leave none out."""
    model = build().train()
    criterion = make_loss(SequenceLossConfig())
    losses = criterion(model.forward_features(*inputs()), make_targets(*objects))
    losses.total.backward()
    assert losses.total > 0
    assert all(term.isfinite() for term in losses.terms.values())
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    if all(objects):  # the softmax over the frames does not see a bias
        idle = {name for name, gradient in gradients.items() if not gradient.any()}
        assert not [name for name in idle if not name.endswith("frame_weights.bias")]


def test_more_objects_than_queries():
    predictions = random_predictions({"modulated": 2, "basic": 4})
    losses = SequenceSetLoss(SequenceLossConfig())(predictions, make_targets(3, 1))
    assert torch.isfinite(losses.total)


def test_mixed_precision_makes_masks_in_full_precision():
    model, targets = build().train(), make_targets(3, 2)
    criterion = SequenceSetLoss(SequenceLossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = model.forward_features(*inputs())
        assert predictions.masks_of(0, 0, torch.tensor([1])).dtype == torch.float32
        total = criterion(predictions, targets).total
    assert total.dtype == torch.float32
    total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Presets.


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


def test_a_tiny_model_learns_a_clip_by_heart():
    options = {
        "model.backbone.name": "test_resnet",
        "model.backbone.pretrained": False,
        "model.backbone.freeze": False,
        "model.hidden": 32,
        "model.heads": 4,
        "model.encoder_layers": 1,
        "model.decoder_layers": 2,
        "model.feedforward": 64,
        "model.dropout": 0,
        "queries.count": 5,
        "queries.ratio": 2,
        "queries.hidden": 16,
    }
    config = resolve("seqformer_r50", options).model_copy(update={"classes": list("abcde")})
    torch.manual_seed(0)
    model, criterion = create_model(config).train(), make_loss(config.loss)
    targets = [
        replace(target, boxes=target.boxes[:, :2], masks=target.masks[:, :2], visible=target.visible[:, :2])
        for target in make_targets(2, 1)
    ]
    images, padding = 0.1 * torch.randn(2, 2, 3, 64, 96), inputs()[1]
    for clip, target in enumerate(targets):
        height, width = target.size
        for label, mask in zip(target.labels, target.masks, strict=True):
            images[clip, :, int(label) % 3, :height, :width] += mask
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    totals = []
    for _ in range(40):
        losses = criterion(model(images, padding), targets)
        optimiser.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        totals.append(losses.total.item())
    assert totals[-1] < 0.4 * totals[0]
