"""From a trained model to a modulated one that computes the same."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.queries import Constants, GroupedQueries, ModulatedQueries
from dqdet.runs.folder import without_pretraining
from dqdet.runs.sources import write_derived
from dqdet.weights.renaming import State

RATIO = 4  # basic queries behind each modulated one, where a model has one group of queries
FIRST = 0.99  # share of the first group where a model with several groups starts from it
Groups = Literal["first", "mean"]


def repeat_queries(state: State, ratio: int) -> State:
    """The learned queries of a static model, ``[m, f]``, as basic ones, ``[m * ratio, f]``: each ``ratio`` times.

    Any convex combination of equal queries is that query.
    """
    repeated = {}
    for name, tensor in state.items():
        part = name.removeprefix("queries.table.")
        if part == name:
            repeated[name] = tensor
        else:
            repeated[f"queries.basic.{part}"] = tensor.repeat_interleave(ratio, 0)
    return repeated


@torch.no_grad()
def join_groups(queries: ModulatedQueries, alternatives: Mapping[str, Tensor], groups: Groups = "first") -> None:
    """Make groups of queries that were trained beside each other the basic queries of a modulated model.

    Query i of all groups becomes hull i, and the coefficients start the same for every image. ``mean``: at the average
    of all groups. ``first``: at the group of inference, exactly. Its share is `FIRST`, and not 1, where a softmax would
    have no gradient; its rows are moved away from the others by what these add.

    Args:
        queries: of the modulated model, with r groups; filled in place.
        alternatives: of each part query i of every group, ``[m, r, f]``.
        groups: where the coefficients start.
    """
    for part, table in alternatives.items():
        basic = table.clone()  # [m, r, f]
        if groups == "first":
            basic[:, 0] += (1 - FIRST) / FIRST * (basic[:, 0] - basic[:, 1:].mean(1))
        queries.basic[part].copy_(basic.flatten(0, 1))
    r = queries.config.ratio
    if isinstance(queries.coefficients, Constants):
        logits = queries.coefficients.values
    else:
        last = queries.coefficients[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        logits = last.bias
    logits.zero_()
    if groups == "first":
        logits.view(-1, r)[:, 0] = math.log(FIRST * (r - 1) / (1 - FIRST))


@torch.no_grad()
def perturb(queries: ModulatedQueries, perturbation: float) -> None:
    """Add noise to the basic queries, ``perturbation`` times the standard deviation of each part."""
    for table in queries.basic.values():
        table += perturbation * table.std() * torch.randn_like(table)


def upgrade(
    model: Detector,
    config: Config,
    ratio: int | None = None,
    perturbation: float = 0.0,
    groups: Groups = "first",
) -> tuple[Detector, Config]:
    """A modulated model with the outputs of another one, ready for fine-tuning, and its configuration.

    Learned queries are repeated as basic ones, and the coefficients start as in a new model: they make no difference
    until the basic queries differ. A model that was trained with several groups of queries (``queries.kind=grouped``,
    ``queries.basic=groups``) keeps all of them as basic queries; see `join_groups`.

    Args:
        model: of any family.
        config: of that model.
        ratio: r, basic queries behind each modulated one; None: `RATIO`, or the groups that there are.
        perturbation: standard deviation of noise added to the basic queries, relative to theirs. 0 keeps the
            outputs; more lets the queries of a group go different ways from the first step on.
        groups: of several ones, where the coefficients start; ``mean`` changes the outputs.

    Raises:
        DqdetError: the model has other queries, or another number of groups than ``ratio``.
    """
    queries = getattr(model, "queries", None)
    several = isinstance(queries, GroupedQueries) and config.queries.basic == "groups"
    if not several and (config.queries.kind != "static" or queries is None):
        found = f"{config.queries.kind} ones" if config.queries.kind != "static" else "the encoder's proposals"
        raise DqdetError(f"only static queries can be upgraded; this model has {found}")
    trained = 1 + config.queries.ratio if several else 1
    if groups == "mean" and not several:
        raise DqdetError("has one group of queries, which is their mean; leave out --groups")
    if several and ratio not in (None, trained):
        raise DqdetError(f"has {trained} groups of queries, which all become basic ones; leave out --ratio {ratio}")
    options = {
        "queries.kind": "modulated",
        "queries.ratio": trained if several else RATIO if ratio is None else ratio,
        "queries.coefficients": "softmax",
    }
    if config.queries.context == "none":  # means nothing for the queries that there were
        options["queries.context"] = "backbone"
    config = override(config, options)
    upgraded = create_model(without_pretraining(config))
    assert isinstance(upgraded.queries, ModulatedQueries)
    state = model.state_dict()
    if isinstance(queries, GroupedQueries):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("queries.")}
        join_groups(upgraded.queries, queries.alternatives(), groups)
    else:
        state = repeat_queries(state, config.queries.ratio)
    made = upgraded.state_dict()
    for name in made.keys() - state.keys():
        # Places of one group come from one head, which all basic groups start with.
        made[name] = state.get(re.sub(r"^proposals\.\d+", "proposals.0", name), made[name])
    upgraded.load_state_dict(made | state)
    perturb(upgraded.queries, perturbation)
    return upgraded.eval(), config


def upgrade_folder(
    source: str | Path, out: Path, ratio: int | None = None, perturbation: float = 0.0, groups: Groups = "first"
) -> None:
    """Write the upgraded model of any source as a run folder, with its metrics where they stay the same.

    Raises:
        DqdetError: as `write_derived` and `upgrade`, or ``out`` has a run already.
    """
    same = perturbation == 0 and groups == "first"
    write_derived(source, out, lambda model, config: upgrade(model, config, ratio, perturbation, groups), same)
