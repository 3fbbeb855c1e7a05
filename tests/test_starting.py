"""Learned queries as the basic ones of a modulated model: what it infers with stays the same."""

import pytest
import torch

from dqdet.config import QueriesConfig, resolve
from dqdet.models import create_model
from dqdet.queries import GroupedQueries, StaticQueries, make_queries
from dqdet.runs.folder import save_folder
from dqdet.runs.starting import learned_queries, start
from dqdet.runs.transfer import start_from
from dqdet.runs.upgrade import upgrade
from test_vit_families import SMALL

WIDTHS, COUNT, RATIO, CHANNELS = {"position": 6, "anchor": 4}, 5, 3, 8
STATIC = StaticQueries(WIDTHS, COUNT)
GROUPED = {
    ratio: GroupedQueries(WIDTHS, QueriesConfig(kind="grouped", count=COUNT, ratio=ratio, basic="groups"))
    for ratio in (1, 2, 5)  # groups beside that of inference
}
UNRELATED = GroupedQueries(WIDTHS, QueriesConfig(kind="grouped", count=COUNT, ratio=2, basic="whole"))


def queries(source):
    with torch.no_grad():
        torch.manual_seed(1)
        return source.eval()(torch.randn(2, CHANNELS, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)).parts


@pytest.mark.parametrize("context", ["backbone", "none"])
@pytest.mark.parametrize("coefficients", ["softmax", "raw"])
@pytest.mark.parametrize("source", [STATIC, *GROUPED.values(), UNRELATED])
def test_queries_of_inference_stay_the_same(source, coefficients, context):
    torch.manual_seed(0)
    config = QueriesConfig(count=COUNT, ratio=RATIO, coefficients=coefficients, context=context, hidden=16)
    modulated = make_queries(config, WIDTHS, CHANNELS, CHANNELS)
    several = start(modulated, learned_queries(source))
    assert several == (source is GROUPED[RATIO - 1])
    for part, expected in queries(source).items():
        torch.testing.assert_close(queries(modulated)[part], expected, rtol=0, atol=1e-5)
    basic = modulated.basic["position"].unflatten(0, (COUNT, RATIO))
    assert torch.equal(basic[:, 1], source.unrelated["position"][: COUNT * 2 : 2] if several else basic[:, 0])


@pytest.mark.parametrize("coefficients", ["softmax", "raw"])
def test_the_mean_of_groups_is_where_it_starts_if_asked(coefficients):
    config = QueriesConfig(count=COUNT, ratio=RATIO, coefficients=coefficients, hidden=16)
    modulated = make_queries(config, WIDTHS, CHANNELS, CHANNELS)
    learned = learned_queries(GROUPED[RATIO - 1])
    start(modulated, learned, "mean")
    for part, tables in learned.items():
        torch.testing.assert_close(queries(modulated)[part][0], tables.mean(1), rtol=0, atol=1e-5)


def test_one_group_makes_no_combination_of_one():
    modulated = make_queries(QueriesConfig(count=COUNT, ratio=1), WIDTHS, CHANNELS, CHANNELS)
    assert not start(modulated, learned_queries(STATIC))
    assert torch.equal(queries(modulated)["anchor"], queries(STATIC)["anchor"])


@pytest.mark.parametrize(("coefficients", "context"), [("softmax", "none"), ("raw", "none"), ("raw", "backbone")])
def test_queries_of_equal_groups_can_go_different_ways(coefficients, context):
    """Equal queries with equal gradients would stay equal."""
    config = QueriesConfig(
        count=COUNT, ratio=RATIO, coefficients=coefficients, context=context, hidden=16, basic="groups"
    )
    modulated = make_queries(config, WIDTHS, CHANNELS, CHANNELS)
    start(modulated, learned_queries(STATIC))
    for part, expected in queries(STATIC).items():
        torch.testing.assert_close(queries(modulated)[part], expected, rtol=0, atol=1e-5)
        hulls = modulated.basic[part].unflatten(0, (COUNT, RATIO))
        assert (hulls - hulls[:, :1])[:, 1:].abs().amin(dim=(0, 2)).min() > 0


def test_queries_that_are_made_of_the_image_are_not_learned():
    for kind in ("modulated", "generated", "shared"):
        assert learned_queries(make_queries(QueriesConfig(kind=kind, count=COUNT), WIDTHS, 8, 8)) is None


@pytest.mark.parametrize("preset", ["lw_detr_small", "rf_detr_nano"])
def test_a_training_starts_where_an_upgrade_does(preset, tmp_path):
    """Places of one group are proposed by one head, which those of the other groups start as."""
    given = SMALL | {"classes": ["a", "b"], "queries.kind": "static"}
    torch.manual_seed(0)
    static, config = create_model(resolve(preset, given)), resolve(preset, given)
    save_folder(tmp_path / "static", static, config, {})
    upgraded, upgraded_config = upgrade(static, config, RATIO)
    target = resolve(preset, given | {"queries.kind": "modulated", "queries.ratio": RATIO, "queries.basic": "groups"})
    assert target.queries == upgraded_config.queries
    torch.manual_seed(1)
    model = create_model(target)
    start_from(str(tmp_path / "static"), model, target)
    expected = upgraded.state_dict()
    proposals = [name for name in expected if name.startswith("proposals.2.")]
    assert proposals
    for name in (*proposals, "queries.basic.content"):
        assert torch.equal(model.state_dict()[name], expected[name]), name
