"""Denoising queries: what noise they have, what they see and who sees them, and what they learn, in every family with
anchors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dqdet.denoising
from dqdet.config import QueriesConfig, resolve
from dqdet.denoising import DenoisingQueries, Noise, draw_noise, noised
from dqdet.errors import DqdetError
from dqdet.losses import SetLoss
from dqdet.losses.matching import matched_by_construction
from dqdet.types import Queries, Sight, Target
from small_families import CLASSES, CONFIGS, COUNT, IMAGES, assert_same, build, inputs, make_targets, outputs
from test_families import IDLE, OneGroup, loss_config

FAMILIES = [name for name, config in CONFIGS.items() if config.anchors]
every_family = pytest.mark.parametrize("name", FAMILIES)
OBJECTS = (2, 3, 1)
TARGETS = make_targets(IMAGES, OBJECTS)
COPIES = 2  # with DENOISING queries and 3 objects in an image
DENOISING = 7


def targets_of(counts: tuple[int, ...]) -> list[Target]:
    return make_targets(IMAGES[: len(counts)], counts)


def predict(model: nn.Module, targets=TARGETS, seed: int = 5):
    torch.manual_seed(seed)
    return model.forward_features(*inputs(model), targets)


def test_families_with_anchors():
    assert {CONFIGS[name].family for name in FAMILIES} == {"dab_detr", "dab_deformable_detr", "dino"}


# The noise.


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.4, 1.0]),
    box=st.tuples(*[st.floats(0.3, 0.7)] * 2, *[st.floats(0.02, 0.2)] * 2),
)
def test_corners_of_positives_move_by_less_than_those_of_negatives(seed, scale, box):
    """By up to ``scale`` half sides, and by one to two times so much."""
    torch.manual_seed(seed)
    boxes = torch.tensor([box])
    centre, size = noised(boxes, draw_noise(50, 1, 3, boxes.device), scale).chunk(2, -1)  # [50, 2, 1, 2]
    before = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], -1)
    moved = (torch.cat([centre - size / 2, centre + size / 2], -1) - before).abs() / (boxes[:, 2:].repeat(1, 2) / 2)
    positive, negative = moved[:, 0] / scale, moved[:, 1] / scale
    assert positive.max() < 1 + 1e-3
    assert (negative > 1 - 1e-3).all()
    assert negative.max() < 2 + 1e-3
    assert (size[:, 0] > -1e-6).all()  # negatives may turn over


def test_boxes_stay_in_the_image():
    boxes = torch.tensor([[0.05, 0.9, 0.3, 0.4]])
    centre, size = noised(boxes, draw_noise(100, 1, 3, boxes.device), 1.0).chunk(2, -1)
    corners = torch.cat([centre - size / 2, centre + size / 2], -1)
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6
    assert (corners < 1e-6).any()


def test_without_noise_queries_are_the_objects(monkeypatch):
    shape = (COPIES, 2, sum(OBJECTS))
    still = Noise(
        torch.ones(shape), torch.zeros(shape, dtype=torch.long), torch.ones(*shape, 4), torch.zeros(*shape, 4)
    )
    monkeypatch.setattr(dqdet.denoising, "draw_noise", lambda *sizes: still)
    made, module = make()
    for i, j, place in zip(made.denoised.image, made.denoised.object, made.denoised.query, strict=True):
        assert torch.equal(made["content"][i, COUNT + place], module.labels[TARGETS[i].labels[j]])
        torch.testing.assert_close(made["anchor"][i, COUNT + place].sigmoid(), TARGETS[i].boxes[j])
    assert len(made.denoised.image) == COPIES * sum(OBJECTS)


def make(width: int = 8, count: int = DENOISING, targets=TARGETS, **options) -> tuple[Queries, DenoisingQueries]:
    torch.manual_seed(0)
    module = DenoisingQueries(width, CLASSES, QueriesConfig(denoising=count, **options), epsilon=1e-3)
    queries = Queries(
        {"content": torch.randn(len(targets), COUNT, width), "anchor": torch.randn(len(targets), COUNT, 4)},
        {"static": COUNT},
    )
    return module(queries, targets), module


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_labels_are_drawn_anew(share):
    """Uniformly, so that one in C is the old one by chance."""
    targets = targets_of((1,))
    made, module = make(count=4000, targets=targets, label_noise=share)
    content = made["content"][0, COUNT:]  # [2 * 4000, f]
    kept = (content == module.labels[targets[0].labels[0]]).all(-1).float().mean().item()
    assert kept == pytest.approx(1 - share + share / CLASSES, abs=0.02)


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=3), asked=st.integers(1, 12))
def test_rows(counts, asked):
    """Copies of all objects, as many as fit, each with its positives and then its negatives; other rows are idle."""
    targets = targets_of(tuple(counts))
    made, _ = make(count=asked, targets=targets)
    most = max(counts)
    copies = max(1, asked // most) if most else 1
    size = 2 * copies * most
    assert made.groups == {"static": COUNT, "denoising": size}
    assert made.sights == {"denoising": Sight(size, copies, COUNT)}
    assert made.denoised.copies == (copies)
    used = made["anchor"][:, COUNT:].unflatten(1, (copies, 2, most)).ne(0).any(-1)  # [B, copies, 2, most]
    expected = torch.arange(most) < torch.tensor(counts)[:, None]  # [B, most]
    assert torch.equal(used, expected[:, None, None].expand_as(used))
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    pairs = sorted(zip(*(x.tolist() for x in vars(made.denoised).values() if isinstance(x, Tensor)), strict=True))
    assert pairs == sorted(
        (image, copy * 2 * most + j, j, firsts[image] + j)
        for image, count in enumerate(counts)
        for copy in range(copies)
        for j in range(count)
    )


@pytest.mark.parametrize("counts", [(2, 3, 1), (3, 0, 2), (0, 0), (4,)])
def test_pairs_are_in_the_order_of_matches_and_come_in_parts_of_one_image(counts):
    layers, targets = 3, targets_of(counts)
    made, _ = make(count=9, targets=targets)
    pairs = matched_by_construction(made.denoised, layers, targets)
    found = torch.stack([pairs.image, pairs.layer, pairs.query, pairs.object, pairs.row], 1).tolist()
    once = made.denoised
    of_layer = torch.stack([once.image, once.query, once.object, once.row], 1).tolist()
    assert found == sorted([i, layer, q, j, row] for i, q, j, row in of_layer for layer in range(layers))
    assert pairs.counts == [layers * once.copies * count for count in counts]
    seen = [(image, *some.image.tolist()) for image, _, some in pairs.parts(most=5)]
    assert all(set(images) <= {image} for image, *images in seen)
    assert sum(len(images) for _, *images in seen) == len(found)


# In the families.


@every_family
def test_the_other_groups_do_not_see_them(name):
    model = build(name, denoising=DENOISING).train()
    with_noise, without = predict(model), predict(model, ())
    assert with_noise.groups == without.groups | {"denoising": 2 * COPIES * max(OBJECTS)}
    assert_same(outputs(with_noise.matched), outputs(without))
    inference = predict(model.eval())
    assert list(inference.groups) == ["modulated"]
    assert inference.denoised is None
    assert_same(outputs(inference), outputs(without.group("modulated")))


@every_family
def test_copies_do_not_see_each_other(name, monkeypatch):
    """Other noise in the second copy changes nothing in the first."""
    model = build(name, denoising=DENOISING).train()
    half = max(OBJECTS) * 2

    def other(copies: int, objects: int, classes: int, device: torch.device) -> Noise:
        first, second = draw_noise(copies, objects, classes, device), draw_noise(copies, objects, classes, device)
        return Noise(*(torch.cat([a[:1], b[1:]]) for a, b in zip(first, second, strict=True)))

    expected = predict(model).group("denoising")
    monkeypatch.setattr(dqdet.denoising, "draw_noise", other)
    found = predict(model).group("denoising")
    torch.testing.assert_close(found.logits[:, :, :half], expected.logits[:, :, :half], rtol=1e-4, atol=1e-5)
    assert (found.logits[:, :, half:] - expected.logits[:, :, half:]).abs().max() > 1e-3


@every_family
def test_one_pass_equals_a_pass_with_one_copy(name, monkeypatch):
    model = build(name, denoising=DENOISING).train()
    together = predict(model).group("denoising")
    half = max(OBJECTS) * 2
    draw = dqdet.denoising.draw_noise

    def second(copies: int, objects: int, classes: int, device: torch.device) -> Noise:
        return Noise(*(x[1:] for x in draw(COPIES, objects, classes, device)))

    monkeypatch.setattr(dqdet.denoising, "draw_noise", second)
    model.denoising.config = model.denoising.config.model_copy(update={"denoising": 1})
    alone = predict(model).group("denoising")
    assert_same(outputs(alone), {key: output[:, :, half:] for key, output in outputs(together).items()})


@every_family
def test_they_see_the_queries_of_inference_and_no_basic_ones(name):
    model = build(name, kind="grouped", denoising=DENOISING).train()
    predict(model).group("denoising").logits.square().sum().backward()
    for table in model.queries.unrelated.values():
        assert table.grad is None or not table.grad.any()
    if name == "dino":  # the others have a content of zeros, or of patterns
        assert model.queries.table["content"].grad.any(-1).all()
    assert model.denoising.labels.grad.any()


@every_family
@pytest.mark.parametrize("group", ["modulated", "basic"])
def test_no_gradient_comes_back_from_the_other_groups(name, group):
    model = build(name, denoising=DENOISING).train()
    predict(model).group(group).logits.square().sum().backward()
    assert model.denoising.labels.grad is None or not model.denoising.labels.grad.any()


@every_family
@pytest.mark.parametrize("objects", [(0, 0, 0), (0, 3, 1), OBJECTS])
def test_a_step_leaves_no_parameter_out_and_logs_the_same_terms(name, objects):
    """Several processes wait for each other's gradients and terms, whatever the objects in their images."""
    model = build(name, denoising=DENOISING).train()
    targets = make_targets(IMAGES, objects)
    losses = SetLoss(loss_config(name))(predict(model, targets), targets)
    losses.total.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    if all(objects):
        assert not [key for key, gradient in gradients.items() if not gradient.any() and not key.endswith(IDLE)]
    terms = {key: value for key, value in losses.terms.items() if key.startswith("denoising/")}
    assert len(terms) == 3 * CONFIGS[name].decoder_layers
    assert all((value > 0) == any(objects) for value in terms.values())


@every_family
def test_the_loss_is_that_of_every_copy_on_average(name):
    """By hand: positives have their objects, all others are background."""
    model = build(name, denoising=DENOISING).train()
    predictions = predict(model)
    config = loss_config(name)
    losses = SetLoss(config)(predictions, TARGETS)
    without = SetLoss(config)(predictions.matched, TARGETS)
    group = predictions.group("denoising")
    labels = torch.zeros_like(group.logits)
    distance = torch.zeros(len(group.logits))
    for i, place, j in zip(*(getattr(predictions.denoised, f) for f in ("image", "query", "object")), strict=True):
        labels[:, i, place, TARGETS[i].labels[j]] = 1
        distance += (group.boxes[:, i, place] - TARGETS[i].boxes[j]).abs().sum(-1)
    probability = group.logits.sigmoid()
    wrong = torch.where(labels > 0, 0.25 * (1 - probability) ** 2, 0.75 * probability**2)
    cross = nn.functional.binary_cross_entropy_with_logits(group.logits, labels, reduction="none")
    objects = COPIES * sum(OBJECTS)
    for layer, (found, l1) in enumerate(zip((wrong * cross).sum((1, 2, 3)) / objects, distance / objects, strict=True)):
        torch.testing.assert_close(losses.terms[f"denoising/{layer}/class"], found.detach())
        torch.testing.assert_close(losses.terms[f"denoising/{layer}/box"], l1.detach())
    weights = {"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight}
    more = sum(weights[key.split("/")[2]] * v for key, v in losses.terms.items() if key.startswith("denoising/"))
    torch.testing.assert_close(losses.total, without.total + more)
    assert losses.terms.keys() - without.terms.keys() == {
        f"denoising/{layer}/{term}" for layer in range(len(group.logits)) for term in weights
    }


@every_family
def test_basic_queries_change_nothing_for_them(name):
    model = build(name, denoising=DENOISING).train()
    expected = predict(model).group("denoising")
    model.queries = OneGroup(model.queries, "modulated")
    found = predict(model)
    assert list(found.groups) == ["modulated", "denoising"]
    assert_same(outputs(found.group("denoising")), outputs(expected))


@pytest.mark.parametrize(
    "preset", ["detr_r50", "deformable_detr_r50", "seqformer_r50", "mask2former_r50_coco_instance"]
)
def test_families_without_anchors_refuse(preset):
    with pytest.raises(DqdetError) as caught:
        resolve(preset, ["queries.denoising=100"])
    family = resolve(preset).model.family
    assert str(caught.value) == (
        f"queries.denoising=100 needs anchor boxes, which objects with noise can be; model.family={family} has none; "
        "set queries.denoising=0"
    )
