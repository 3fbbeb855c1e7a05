"""DINO: contents are learned and combined, places are those of the encoder's best proposals."""

from __future__ import annotations

import pytest
import torch

from dqdet.config import DinoConfig, resolve
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.dino import Dino, with_anchors
from dqdet.types import Queries
from small_families import COUNT, RATIO, build, inputs
from tiny import tiny_family


def decoder_input(model: Dino) -> tuple[Queries, torch.Tensor]:
    """What the decoder of a model in training starts from, and the proposals' boxes ``[B, m, 4]``."""
    seen = []
    decode = model.decode
    model.decode = lambda queries, memory: seen.append(queries) or decode(queries, memory)
    predictions = model.train().forward_features(*inputs(model))
    return seen[0], predictions.proposals.boxes[0]


@pytest.mark.parametrize(("basic", "groups"), [("whole", [RATIO]), ("groups", [1] * RATIO), ("one", [1])])
def test_query_i_and_its_basic_queries_have_proposal_i(basic, groups):
    queries, proposals = decoder_input(build("dino", basic=basic))
    first, *others = queries["anchor"].sigmoid().split(list(queries.groups.values()), 1)
    torch.testing.assert_close(first, proposals)
    assert len(others) == len(groups)
    for of_group, times in zip(others, groups, strict=True):
        torch.testing.assert_close(of_group, proposals.repeat_interleave(times, 1))
    # They differ, but for the third image, which has fewer usable cells than queries: others are boxes of ones.
    assert (proposals[:2, 1:] - proposals[:2, :-1]).abs().amax(-1).min() > 0


def test_a_query_is_the_combination_of_its_basic_ones_in_content_and_anchor():
    model = build("dino")
    queries, _ = decoder_input(model)
    parts = {name: part.split([COUNT, COUNT * RATIO], 1) for name, part in queries.parts.items()}
    for first, basic in parts.values():
        grouped = basic.unflatten(1, (COUNT, RATIO))  # [B, m, r, f]
        torch.testing.assert_close(first, (queries.coefficients[..., None] * grouped).sum(2), rtol=1e-4, atol=1e-5)


def test_proposals_learn_from_their_own_loss_alone():
    model = build("dino").train()
    predictions = model.forward_features(*inputs(model))
    sum(output.square().sum() for output in (predictions.logits, predictions.boxes)).backward(retain_graph=True)
    of_proposals = {name: p for name, p in model.named_parameters() if name.startswith("proposal_")}
    assert len(of_proposals) == 4 + 2 + 6
    assert all(parameter.grad is None for parameter in of_proposals.values())
    (predictions.proposals.logits.sum() + predictions.proposals.boxes.sum()).backward()
    assert all(parameter.grad.any() for parameter in of_proposals.values())


def test_proposals_are_the_best_cells_in_order():
    model = build("dino", kind="static").eval()
    scores = []
    model.proposal_class_head.register_forward_hook(lambda module, given, logits: scores.append(logits.amax(-1)))
    proposals = model.forward_features(*inputs(model)).proposals
    torch.testing.assert_close(proposals.logits[0].amax(-1), scores[0].sort(1, descending=True).values[:, :COUNT])
    assert proposals.groups == {"encoder": COUNT}
    assert not proposals.class_agnostic


def test_more_queries_than_cells_are_refused():
    model = build("dino", kind="static", count=260).eval()
    with pytest.raises(DqdetError) as caught:
        model.forward_features(*inputs(model))
    cells = 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2
    assert str(caught.value) == (
        f"queries.count=260: images of this size have {cells} cells to propose; take larger images or fewer queries"
    )


@pytest.mark.parametrize("kind", ["static", "modulated", "grouped"])
def test_contents_start_as_published_whatever_the_ratio(kind):
    """Xavier's bound for 900 x 256 is 0.072."""
    model = create_model(
        tiny_family("dino_r50", queries__kind=kind, queries__count=900, model__hidden=256, classes=["a"] * 9)
    )
    tables = [tensor for name, tensor in model.queries.named_parameters() if name.endswith(".content")]
    assert tables
    for table in tables:
        assert table.abs().max().item() == pytest.approx(0.072, abs=1e-3)
        assert table.std().item() == pytest.approx(0.072 / 3**0.5, rel=0.02)
    assert model.denoising.labels.std().item() == pytest.approx(1, rel=0.1)


def test_heads_of_the_encoder_start_as_copies_of_the_decoders():
    model = create_model(tiny_family("dino_r50", classes=["cat", "dog"]))
    for part in ("class_head", "box_head"):
        ours, theirs = model.get_submodule(part), model.get_submodule(f"proposal_{part}")
        for first, second in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(first, second)
            assert first is not second


@pytest.mark.parametrize(("preset", "strides"), [("dino_r50", (8, 16, 32)), ("dino_r50_5scale", (4, 8, 16, 32))])
def test_levels(preset, strides):
    config = resolve(preset)
    assert isinstance(config.model, DinoConfig)
    assert Dino.reads(config.model) == strides
    model = create_model(tiny_family(preset, classes=["cat"]))
    assert model.strides == strides
    assert len(model.input_proj) == len(strides) + 1
    with torch.no_grad():
        maps = model.input_proj(model.backbone(torch.randn(1, 3, 64, 96)))
    assert [x.shape[2:] for x in maps] == [(64 // s, -(-96 // s)) for s in (*strides, 64)]


def test_anchors_follow_the_sizes_of_groups():
    queries = Queries({"content": torch.zeros(1, 9, 2)}, {"static": 3, "unrelated": 6})
    proposals = torch.arange(3.0)[None, :, None].expand(1, 3, 4)
    anchors = with_anchors(queries, proposals)["anchor"]
    assert anchors[0, :, 0].tolist() == [0, 1, 2, 0, 0, 1, 1, 2, 2]
