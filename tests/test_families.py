"""What holds for every family, whatever its decoder: one suite over all of them, on small models and given features."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import (
    Context,
    DeformableDetrConfig,
    DinoConfig,
    InstanceLossConfig,
    LossConfig,
    LwDetrConfig,
    Mask2FormerConfig,
    MaskLossConfig,
    SequenceLossConfig,
)
from dqdet.losses import InstanceSetLoss, instances, make_loss
from dqdet.losses.masks import MaskSetLoss, ObjectMasks, RandomPoints
from dqdet.models.lw_detr import LwDetr
from dqdet.models.mask2former import Mask2Former
from dqdet.nn.padding import resize_padding
from dqdet.nn.pixel_decoder import PixelFeatures
from dqdet.types import Queries
from small_families import (
    CLASSES,
    CLIPS,
    CONFIGS,
    COUNT,
    FRAMES,
    IMAGES,
    RATIO,
    assert_same,
    build,
    inputs,
    make_targets,
    outputs,
    reads_clips,
)

every_family = pytest.mark.parametrize("name", CONFIGS)
MAPS = [context for context in get_args(Context) if context != "none"]


class OneGroup(nn.Module):
    """Some source of queries, reduced to one of its groups."""

    def __init__(self, source: nn.Module, group: str):
        super().__init__()
        self.context = source.context
        self.source = source
        self.group = group

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        queries = self.source(features, padding)
        index = list(queries.groups).index(self.group)
        sizes = list(queries.groups.values())
        parts = {part: table.split(sizes, 1)[index] for part, table in queries.parts.items()}
        return Queries(parts, {self.group: sizes[index]}, queries.coefficients)


@every_family
def test_shapes_and_groups(name):
    model, config = build(name).train(), CONFIGS[name]
    features, padding = inputs(model)
    predictions = model.forward_features(features, padding)
    patterns = getattr(config, "patterns", 0) or 1
    assert predictions.groups == {"modulated": patterns * COUNT, "basic": patterns * COUNT * RATIO}
    before_the_first = config.loss == "masks"
    no_object = config.loss == "masks" or config.family in ("detr", "smca_detr")
    shape = (config.decoder_layers + before_the_first, len(padding), patterns * COUNT * (1 + RATIO))
    frames = (FRAMES,) if reads_clips(model) else ()
    assert predictions.logits.shape == (*shape, CLASSES + no_object)
    if config.loss == "masks":
        assert predictions.boxes is None
    else:
        assert predictions.boxes.shape == (*shape, *frames, 4)
        beyond = isinstance(config, LwDetrConfig)  # whose boxes may reach beyond the image
        assert (predictions.boxes[..., 2:] > 0).all() if beyond else predictions.boxes.min() >= 0
        assert beyond or predictions.boxes.max() <= 1
    if config.loss == "boxes":
        assert predictions.masks is None
    else:
        height, width = padding.shape[1:]
        assert predictions.masks.of(0, 1, torch.tensor([3, 17])).shape == (2, *frames, height // 4, width // 4)


@every_family
@pytest.mark.parametrize("group", ["modulated", "basic", "basic 1", "basic 4"])
def test_one_pass_equals_separate_passes(name, group):
    model = build(name, basic="whole" if group == "basic" else "groups").train()
    predictions = model.forward_features(*inputs(model))
    together = predictions.group(group)
    if isinstance(model, LwDetr):  # every group has a head of its own for its places
        head = dict(zip(predictions.groups, model.heads_of(predictions), strict=True))[group]
        model.proposals = model.proposals[head : head + 1]
    model.queries = OneGroup(model.queries, group)
    alone = model.forward_features(*inputs(model))
    assert alone.groups == together.groups
    assert_same(outputs(alone), outputs(together))


@every_family
def test_inference_is_the_first_group(name):
    model = build(name).train()
    first = model.forward_features(*inputs(model)).group("modulated")
    inference = model.eval().forward_features(*inputs(model))
    assert inference.groups == first.groups
    assert_same(outputs(inference), outputs(first))


@every_family
@pytest.mark.parametrize(("group", "own", "other"), [(0, "table", "unrelated"), (1, "unrelated", "table")])
def test_no_gradient_crosses_groups(name, group, own, other):
    model = build(name, kind="grouped").train()
    predictions = model.forward_features(*inputs(model))
    of_group = predictions.group(list(predictions.groups)[group])
    sum(output.square().sum() for output in outputs(of_group).values()).backward()
    for table in model.queries.get_submodule(other).values():
        assert table.grad is None or not table.grad.any()
    for table in model.queries.get_submodule(own).values():
        assert table.grad.any(-1).all()  # every query


@every_family
def test_no_parameter_of_a_single_layer_is_left_without_effect(name):
    """Several processes that train together end where there is one."""
    model = build(name, {"decoder_layers": 1}).train()
    predictions = model.forward_features(*inputs(model))
    parts = [predictions, *([] if predictions.proposals is None else [predictions.proposals])]
    sum(output.square().sum() for part in parts for output in outputs(part).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


SOURCES = {
    "static": {"kind": "static"},
    "grouped": {"kind": "grouped"},
    "grouped, groups": {"kind": "grouped", "basic": "groups"},
    "modulated": {},
    "modulated, groups": {"basic": "groups"},
    "modulated, one": {"basic": "one"},
    "modulated, constant": {"context": "none"},
    "generated": {"kind": "generated"},
    "shared": {"kind": "shared", "patterns": 7},
}


@every_family
@pytest.mark.parametrize("source", SOURCES)
def test_groups_of_every_source_are_learned_apart(name, source):
    """The first group is that of inference, and no other group has any influence on it."""
    model = build(name, **SOURCES[source])
    inference = model.eval().forward_features(*inputs(model))
    torch.manual_seed(0)
    training = model.train().forward_features(*inputs(model))
    first, *others = training.groups
    assert inference.groups == {first: training.groups[first]}
    assert_same(outputs(inference), outputs(training.group(first)))
    assert bool(others) == (SOURCES[source].get("kind", "modulated") in ("modulated", "grouped"))


@every_family
def test_the_loss_of_groups_is_the_sum_over_separate_ones(name):
    """One group of inference and r basic ones, each with its matching and its share of beta."""
    model = build(name, basic="groups").train()
    sizes, frames = (CLIPS, FRAMES) if reads_clips(model) else (IMAGES, None)
    targets = make_targets(sizes, (2, 3, 1)[: len(sizes)], frames)
    predictions = replace(model.forward_features(*inputs(model)), proposals=None)
    config = loss_config(name)
    config.beta = 0.5
    at_points = {"masks": MaskSetLoss, "instances": InstanceSetLoss}.get(config.kind)
    criterion = make_loss(config) if at_points is None else at_points(config, SamePoints())
    together = criterion(predictions, targets).total  # without proposals, which have a loss once
    first, *others = (criterion(predictions.group(group), targets).total for group in predictions.groups)
    torch.testing.assert_close(together, first + 0.5 * sum(others) / len(others))


class SamePoints(RandomPoints):
    """The same for all groups, however many are asked for together."""

    def of_images(self, layer, group, images, count, device):
        return torch.rand(count, 2, generator=torch.Generator().manual_seed(0)).expand(images, -1, -1)

    def of_pairs(self, pairs, frames, count):
        points = torch.rand(count, 2, generator=torch.Generator().manual_seed(0))
        return points.expand(len(pairs.query), frames, -1, -1)


def test_masks_are_gathered_and_objects_summed_over_the_processes_once_a_step(monkeypatch):
    """Though queries and proposals are both matched, and both have losses."""
    tables, sums = [], []
    monkeypatch.setattr(instances, "ObjectMasks", lambda *given: tables.append(given) or ObjectMasks(*given))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", sums.append)
    model = build("rf_detr_seg").train()
    predictions, targets = model.forward_features(*inputs(model)), make_targets(IMAGES, (2, 3, 1)[: len(IMAGES)])
    assert predictions.proposals is not None
    make_loss(loss_config("rf_detr_seg"))(predictions, targets)
    assert (len(tables), len(sums)) == (1, 1)


@every_family
def test_the_order_of_a_batch_does_not_matter(name):
    model = build(name).train()
    features, padding = inputs(model)
    predictions = model.forward_features(features, padding)
    order = torch.arange(len(padding)).roll(1)
    reordered = model.forward_features([feature[order] for feature in features], padding[order])
    assert_same(outputs(reordered), {key: output[:, order] for key, output in outputs(predictions).items()})
    torch.testing.assert_close(reordered.coefficients, predictions.coefficients[order])


class CellByCell(nn.Module):
    """In place of Mask2Former's pixel decoder, whose convolutions and norms see the padding."""

    def __init__(self, channels: list[int], hidden: int):
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(width, hidden, 1) for width in channels)

    def forward(self, features: list[Tensor], padding: Tensor) -> PixelFeatures:
        mask_features, *maps = (project(x) for project, x in zip(self.projections, features, strict=True))
        maps = maps[::-1]  # the coarsest first
        return PixelFeatures(maps, [resize_padding(padding, x) for x in maps], mask_features, maps[0])


# Their published code embeds anchors relative to the padded image.
PADDED_ANCHORS = ("dab_deformable_detr", "dino", "lw_detr", "rf_detr", "rf_detr_seg")


@pytest.fixture(scope="module", params=[name for name in CONFIGS if name not in PADDED_ANCHORS])
def padding_free(request):
    """The published models on several levels normalise the padded cells too, and convolve over them: taken out here."""
    match CONFIGS[request.param]:
        case Mask2FormerConfig() as config:
            model = build(request.param)
            assert isinstance(model, Mask2Former)
            model.pixel_decoder = CellByCell([x.shape[-3] for x in inputs(model)[0]], config.hidden)
        case DeformableDetrConfig():
            model = build(request.param, {"levels": 3})
            for projection in model.input_proj:
                projection[1] = nn.Identity()
        case _:
            model = build(request.param)
    return model.eval()


@settings(max_examples=5)
@given(bottom=st.integers(0, 3), right=st.integers(0, 3), seed=st.integers(0, 100))
def test_more_padding_changes_nothing(padding_free, bottom, right, seed):
    model = padding_free
    features, padding = inputs(model, seed)
    expected = outputs(model.forward_features(features, padding))
    padding = F.pad(padding, (0, 32 * right, 0, 32 * bottom), value=True)
    cells = [32 // stride for stride in model.strides]
    # What is in padded cells must not matter.
    padded = [F.pad(x, (0, n * right, 0, n * bottom), value=3.0) for x, n in zip(features, cells, strict=True)]
    found = outputs(model.forward_features(padded, padding))
    if "masks" in found:
        height, width = expected["masks"].shape[-2:]
        found["masks"] = found["masks"][..., :height, :width]
    assert_same(found, expected, atol=1e-4)


SEES_PADDING = [name for name, config in CONFIGS.items() if hasattr(config, "see_padding")]


@pytest.mark.parametrize(
    ("name", "changes"), [(name, {}) for name in CONFIGS] + [(name, {"see_padding": True}) for name in SEES_PADDING]
)
def test_coefficients_do_not_change_with_the_padding_of_the_batch(name, changes):
    model = build(name, changes).eval()
    features, padding = inputs(model)
    expected = model.forward_features(features, padding).coefficients
    padding = F.pad(padding, (0, 64, 0, 96), value=True)
    cells = [32 // stride for stride in model.strides]
    padded = [F.pad(x, (0, 2 * n, 0, 3 * n), value=3.0) for x, n in zip(features, cells, strict=True)]
    torch.testing.assert_close(model.forward_features(padded, padding).coefficients, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "smca_detr", "dab_detr"])
def test_a_cell_of_a_dilated_map_is_half_as_long(name):
    """Images of half the size give the same map, so that all that families know of their size is its cells."""
    config = CONFIGS[name]
    dilated = build(name, {"backbone": config.backbone.model_copy(update={"dilation": True})})
    features, padding = inputs(dilated)
    with torch.no_grad():
        expected = build(name).forward_features(features, padding)
        found = dilated.forward_features(features, padding[:, ::2, ::2])
    assert_same(outputs(found), outputs(expected))


@every_family
@pytest.mark.parametrize("context", MAPS)
def test_every_context_tells_images_apart(name, context):
    model = build(name, context=context, pool="max").eval()
    coefficients = model.forward_features(*inputs(model)).coefficients
    assert (coefficients[0] - coefficients[1]).abs().max() > 1e-3


def test_a_context_is_the_map_that_it_names():
    """Of the backbone, the projection or the encoder: what changes one of them changes those that follow."""
    model = build("deformable_detr", context="backbone").eval()
    seen = {}
    for context in MAPS:
        torch.manual_seed(0)
        model = build("deformable_detr", context=context).eval()
        expected = model.forward_features(*inputs(model)).coefficients
        for part in (model.input_proj, model.encoder):
            with torch.no_grad():
                for parameter in part.parameters():
                    parameter += torch.randn_like(parameter)
            changed = model.forward_features(*inputs(model)).coefficients
            seen.setdefault(context, []).append(not torch.allclose(changed, expected, atol=1e-6))
            expected = changed
    assert seen == {"backbone": [False, False], "projected": [True, False], "memory": [True, True]}


@every_family
def test_ratio_one_is_static(name):
    modulated = build(name, ratio=1).eval()
    static = build(name, kind="static").eval()
    state = {key.replace("queries.basic.", "queries.table."): value for key, value in modulated.state_dict().items()}
    static.load_state_dict({key: value for key, value in state.items() if not key.startswith("queries.coefficients")})
    assert_same(*(outputs(model.forward_features(*inputs(model))) for model in (modulated, static)))


def loss_config(name: str) -> LossConfig | MaskLossConfig:
    match CONFIGS[name].loss:
        case "masks":
            return MaskLossConfig(points=100)
        case "sequences":
            return SequenceLossConfig()
        case "instances":
            return InstanceLossConfig(classification="iou_aware")
        case _:
            other = {"detr": "cross_entropy", "lw_detr": "iou_aware", "rf_detr": "iou_aware"}
            return LossConfig(classification=other.get(name, "focal"))


# Conditional-DETR's and DAB-DETR's content is zero before the first layer; a softmax does not see a bias.
IDLE = ("decoder.0.self_attn.content_proj.weight", "frame_weights.bias")


@every_family
@pytest.mark.parametrize("objects", [(0, 0, 0), (0, 3, 1), (2, 3, 1)])
def test_a_step_is_finite_and_leaves_no_parameter_out(name, objects):
    """Several processes wait for each other's gradients: images without objects must leave none out either."""
    model = build(name).train()
    sizes, frames = (CLIPS, FRAMES) if reads_clips(model) else (IMAGES, None)
    targets = make_targets(sizes, objects[: len(sizes)], frames)
    torch.manual_seed(0)  # of the points in masks
    losses = make_loss(loss_config(name))(model.forward_features(*inputs(model)), targets)
    losses.total.backward()
    assert losses.total > 0
    assert all(term.isfinite() for term in losses.terms.values())
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    if all(objects):
        assert not [key for key, gradient in gradients.items() if not gradient.any() and not key.endswith(IDLE)]


@pytest.mark.parametrize(
    "name", [name for name, config in CONFIGS.items() if isinstance(config, DeformableDetrConfig | DinoConfig)]
)
@pytest.mark.parametrize("kind", ["modulated", "generated"])
def test_the_context_of_queries_is_the_coarsest_map_alone(name, kind):
    model = build(name, kind=kind).eval()
    contexts = []
    model.queries.register_forward_hook(lambda source, given, queries: contexts.append(queries))
    features, padding = inputs(model)
    changed = [x + torch.randn_like(x) for x in features]
    for maps in (features, [*changed[:-1], features[-1]], [*features[:-1], changed[-1]]):
        model.forward_features(maps, padding)
    first, finer, coarsest = (queries["content"] for queries in contexts)
    torch.testing.assert_close(finer, first)
    assert not torch.isclose(coarsest, first).all((1, 2)).any()  # of any image


@every_family
def test_coefficients_are_convex_and_follow_the_image(name):
    model = build(name).eval()
    features, padding = inputs(model)
    coefficients = model.forward_features(features, padding).coefficients
    assert coefficients.shape == (len(padding), COUNT, RATIO)
    assert (coefficients >= 0).all()
    torch.testing.assert_close(coefficients.sum(-1), torch.ones(len(padding), COUNT))
    assert not torch.allclose(coefficients[0], coefficients[1])
