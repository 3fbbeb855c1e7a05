"""The paper's module: properties that its equations promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqdet.config import QueriesConfig
from dqdet.models import create_model
from dqdet.queries import (
    GeneratedQueries,
    GroupedQueries,
    ModulatedQueries,
    SharedQueries,
    StaticQueries,
    combine,
    make_queries,
    pool,
    random_coefficients,
)
from tiny import PRESETS, tiny_family

WIDTHS = {"content": 6, "anchor": 4}
CHANNELS = 5


def image(batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``[B, C, 4, 6]``, and padding of the last image's last columns."""
    generator = torch.Generator().manual_seed(seed)
    padding = torch.zeros(batch, 4, 6, dtype=torch.bool)
    padding[-1, :, 3:] = True
    return torch.randn(batch, CHANNELS, 4, 6, generator=generator), padding


def source(kind: str, count: int = 7, ratio: int = 4, **options):
    torch.manual_seed(0)
    config = QueriesConfig(kind=kind, count=count, ratio=ratio, hidden=16, **options)
    return make_queries(config, WIDTHS, backbone=CHANNELS, hidden=CHANNELS)


sizes = st.integers(1, 6)


@given(m=sizes, r=sizes, f=sizes)
def test_combine_is_the_sum_of_equation_3(m, r, f):
    basic, coefficients = torch.randn(m * r, f), torch.randn(m, r)
    expected = torch.stack([sum(coefficients[i, j] * basic[i * r + j] for j in range(r)) for i in range(m)])
    torch.testing.assert_close(combine(basic, coefficients), expected)


def test_combine_refuses_coefficients_that_do_not_fit():
    with pytest.raises(ValueError, match="3 x 2 coefficients do not fit 7 basic queries"):
        combine(torch.randn(7, 4), torch.randn(3, 2))


@given(m=sizes, r=sizes, seed=st.integers(0, 100))
def test_random_coefficients_sum_to_one(m, r, seed):
    for kind in ("convex", "non_convex", "averaged", "sampled"):
        coefficients = random_coefficients(kind, m, r, torch.Generator().manual_seed(seed))
        assert coefficients.shape == (m, r)
        torch.testing.assert_close(coefficients.sum(-1), torch.ones(m))
        if kind != "non_convex":
            assert (coefficients >= 0).all()


def test_kinds_of_random_coefficients_differ_as_table_1_says():
    generator = torch.Generator().manual_seed(0)
    assert (random_coefficients("non_convex", 50, 4, generator) < 0).any()
    assert (random_coefficients("averaged", 50, 4) == 0.25).all()
    sampled = random_coefficients("sampled", 50, 4, generator)
    assert ((sampled == 1).sum(-1) == 1).all()
    assert ((sampled == 0).sum(-1) == 3).all()
    with pytest.raises(ValueError, match="unknown kind"):
        random_coefficients("concave", 2, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_pooling_ignores_padding_unless_asked(kind):
    features, padding = image()
    expected = [getattr(features[-1, :, :, :3], f"a{kind}" if kind == "max" else kind)((-2, -1))]
    torch.testing.assert_close(pool(features, padding, kind)[-1:], torch.stack(expected))
    everything = features[-1].amax((-2, -1)) if kind == "max" else features[-1].mean((-2, -1))
    torch.testing.assert_close(pool(features, padding, kind, pool_padding=True)[-1], everything)


@pytest.mark.parametrize("kind", ["mean", "max"])
@pytest.mark.parametrize("pool_padding", [False, True])
def test_the_context_is_pooled_as_configured(kind, pool_padding):
    features, padding = image()
    context = pool(features, padding, kind, pool_padding)
    modulated = source("modulated", pool=kind, pool_padding=pool_padding)
    raw = modulated.coefficients(context).view(3, 7, 4)
    torch.testing.assert_close(modulated(features, padding).coefficients, raw.softmax(-1))
    generated = source("generated", pool=kind, pool_padding=pool_padding)
    made = generated(features, padding)
    made = torch.cat([made[name] for name in WIDTHS], -1)  # [B, m, sum of widths]
    torch.testing.assert_close(made.flatten(1), generated.generate(context))


@given(m=sizes, r=sizes, seed=st.integers(0, 50))
def test_coefficients_are_convex(m, r, seed):
    queries = source("modulated", m, r)(*image(seed=seed))
    assert queries.coefficients.shape == (3, m, r)
    assert (queries.coefficients >= 0).all()
    torch.testing.assert_close(queries.coefficients.sum(-1), torch.ones(3, m))


@given(seed=st.integers(0, 50))
def test_modulated_queries_lie_in_the_hulls_of_their_groups(seed):
    """A point of a hull exceeds no corner in any direction."""
    modulated = source("modulated").eval()
    queries = modulated(*image(seed=seed))
    for name, table in modulated.basic.items():
        direction = torch.randn(table.shape[-1], generator=torch.Generator().manual_seed(seed))
        corners = (table @ direction).view(7, 4)
        inside = queries[name] @ direction  # [B, 7]
        assert (inside <= corners.amax(-1) + 1e-5).all()
        assert (inside >= corners.amin(-1) - 1e-5).all()


def test_all_parts_share_the_coefficients():
    modulated = source("modulated")
    with torch.no_grad():
        modulated.basic["anchor"].copy_(modulated.basic["content"][:, :4])
    queries = modulated(*image())
    torch.testing.assert_close(queries["anchor"], queries["content"][..., :4])


def test_ratio_one_is_static():
    modulated, static = source("modulated", ratio=1).eval(), source("static").eval()
    static.load_state_dict({f"table.{name}": table for name, table in modulated.basic.items()})
    for name in WIDTHS:
        torch.testing.assert_close(modulated(*image())[name], static(*image())[name])


def test_coefficients_depend_on_the_image_and_raw_ones_are_not_normalised():
    queries = source("modulated")(*image())
    assert not torch.allclose(queries.coefficients[0], queries.coefficients[1])
    raw = source("modulated", coefficients="raw")(*image()).coefficients
    torch.testing.assert_close(raw.softmax(-1), queries.coefficients)


@pytest.mark.parametrize(
    ("kind", "training", "inference"),
    [
        ("static", {"static": 7}, {"static": 7}),
        ("modulated", {"modulated": 7, "basic": 28}, {"modulated": 7}),
        ("generated", {"generated": 7}, {"generated": 7}),
        ("grouped", {"static": 7, "unrelated": 28}, {"static": 7}),
        ("shared", {"shared": 7}, {"shared": 7}),
        ("modulated groups", {"modulated": 7} | {f"basic {j}": 7 for j in (1, 2, 3, 4)}, {"modulated": 7}),
        ("grouped groups", {"static": 7} | {f"unrelated {j}": 7 for j in (1, 2, 3, 4)}, {"static": 7}),
        ("modulated one", {"modulated": 7, "basic": 7}, {"modulated": 7}),
        ("grouped one", {"static": 7, "unrelated": 7}, {"static": 7}),
    ],
)
def test_groups(kind, training, inference):
    kind, _, basic = kind.partition(" ")
    queries = source(kind, basic=basic or "whole")
    for mode, groups in ((True, training), (False, inference)):
        made = queries.train(mode)(*image())
        assert made.groups == groups
        assert queries.training_sizes() == list(training.values())[1:]
        for name, width in WIDTHS.items():
            assert made[name].shape == (3, sum(groups.values()), width)


def test_the_first_group_is_the_same_in_training_and_inference():
    for kind, expected in (
        ("static", StaticQueries),
        ("modulated", ModulatedQueries),
        ("generated", GeneratedQueries),
        ("grouped", GroupedQueries),
        ("shared", SharedQueries),
    ):
        queries = source(kind)
        assert isinstance(queries, expected)
        trained = queries.train()(*image())
        for name, part in queries.eval()(*image()).parts.items():
            torch.testing.assert_close(trained[name][:, :7], part)


def test_generated_queries_follow_the_image_and_static_ones_do_not():
    for kind, differs in (("generated", True), ("shared", True), ("static", False), ("grouped", False)):
        queries = source(kind)(*image())
        for name in WIDTHS:
            assert torch.allclose(queries[name][0], queries[name][1]) != differs


def test_generated_queries_need_many_more_parameters():
    """Section 3.3: the naive idea increases the number of parameters dramatically."""
    widths = {"position": 256, "content": 256}
    generated, modulated = (
        sum(p.numel() for p in make_queries(QueriesConfig(kind=kind), widths, 256, 256).parameters())
        for kind in ("generated", "modulated")
    )
    assert generated > 50 * modulated


@pytest.mark.parametrize("preset", [*PRESETS, "mask2former_r50_coco_instance"])
def test_coefficients_of_tiny_models_follow_the_image(preset):
    """At their width the projected map says nothing: each channel is a group of its norm, whose mean is constant."""
    torch.manual_seed(0)
    model = create_model(tiny_family(preset, classes=["cat"])).eval()
    with torch.no_grad():
        for parameter in model.queries.coefficients.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        coefficients = model(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)).coefficients
    assert (coefficients[0] - coefficients[1]).abs().max() > 1e-3


def test_groups_of_basic_queries_are_the_same_rows_of_every_hull():
    """Query j of group i is row i * r + j, so that a group of m looks like what inference sees."""
    queries = source("modulated", basic="groups").train()
    made = queries(*image())
    for name, table in queries.basic.items():
        rows = made[name][:, 7:].unflatten(1, (4, 7))  # [B, r, m, f]
        torch.testing.assert_close(rows[0], table.unflatten(0, (7, 4)).transpose(0, 1))


def test_one_group_is_drawn_anew_in_each_step():
    queries = source("modulated", basic="one").train()
    table = queries.basic["content"].unflatten(0, (7, 4))  # [m, r, f]
    torch.manual_seed(0)
    drawn = []
    for _ in range(60):
        made = queries(*image())
        same = [j for j in range(4) if torch.equal(made["content"][0, 7:], table[:, j])]
        assert len(same) == 1
        assert torch.equal(made["anchor"][1, 7:], queries.basic["anchor"].unflatten(0, (7, 4))[:, same[0]])
        drawn += same
    assert set(drawn) == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["modulated", "shared"])
def test_without_context_coefficients_are_learned_constants(kind):
    queries = source(kind, context="none")
    with torch.no_grad():
        queries.coefficients.values.normal_()
    made = queries(*image())
    assert torch.equal(made.coefficients[0], made.coefficients[1])
    torch.testing.assert_close(made.coefficients.sum(-1), torch.ones(3, 7))
    made["content"].square().sum().backward()
    assert queries.coefficients.values.grad.any()


def test_shared_queries_are_convex_combinations_of_all_patterns():
    queries = source("shared", patterns=5)
    made = queries(*image())
    assert made.coefficients.shape == (3, 7, 5)
    assert (made.coefficients >= 0).all()
    torch.testing.assert_close(made.coefficients.sum(-1), torch.ones(3, 7))
    for name, table in queries.patterns.items():
        expected = torch.stack([sum(made.coefficients[:, :, [k]] * table[k] for k in range(5))])[0]
        torch.testing.assert_close(made[name], expected)


def test_generated_queries_need_a_context():
    with pytest.raises(ValueError, match=r"queries\.kind=generated makes queries of the context"):
        QueriesConfig(kind="generated", context="none")
