"""How modulated queries start from the learned queries of another model, without changing what it computes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dqdet.errors import DqdetError, value_text
from dqdet.queries import Constants, GroupedQueries, ModulatedQueries, QuerySource, StaticQueries
from dqdet.weights.renaming import State

APART = 0.01  # share of the standard deviation that equal queries of a hull are moved by
FIRST = 0.99  # share of the first group where a model with several groups starts from it
Groups = Literal["first", "mean"]
Learned = Mapping[str, Tensor]  # of each part query i of every group, that of inference first: [m, g, f]


def check_start(perturbation: float, groups: Groups, trained: int) -> None:
    """Raise DqdetError unless queries can start like this.

    Args:
        perturbation: of :func:`perturb`.
        groups: of :func:`start`.
        trained: groups of queries that there are.
    """
    if not isinstance(perturbation, int | float) or not 0 <= perturbation < math.inf:
        raise DqdetError(f"perturbation={value_text(perturbation)}: should be a number, 0 or more")
    if groups not in get_args(Groups):
        raise DqdetError(f"groups={value_text(groups)}: should be {' or '.join(get_args(Groups))}")
    if groups == "mean" and trained == 1:
        raise DqdetError("groups=mean: there is one group of queries, which is their mean; leave it out")


def learned_queries(source: QuerySource | None) -> Learned | None:
    """The queries that a model infers with, and, where it trained with groups of as many, those of all groups.

    Returns:
        None: they are made of the image, or are the encoder's proposals.
    """
    if isinstance(source, GroupedQueries) and source.config.basic == "groups":
        return source.alternatives()
    if isinstance(source, GroupedQueries | StaticQueries):
        return {part: table.detach()[:, None] for part, table in source.table.items()}  # [m, 1, f]
    return None


@torch.no_grad()
def start(queries: ModulatedQueries, learned: Learned, groups: Groups = "first") -> bool:
    """Make learned queries the basic ones of a modulated model, in place.

    Where there are r groups, query i of all of them becomes hull i, and the coefficients start the same for every
    image. ``mean``: at the average of all groups. ``first``: at the group of inference, exactly. Its share is `FIRST`,
    and not 1, where a softmax would have no gradient; its rows are moved away from the others by what these add.

    With another number of groups, the queries of inference are repeated r times. Any convex combination of equal
    queries is that query, so predicted coefficients start as in a new model; raw ones, which need not sum to 1, start
    even. Where the coefficients start the same for every image, equal queries in equal groups would stay equal for
    ever: these are moved apart, around their query.

    Args:
        queries: of the modulated model, with as many as there are.
        learned: by `learned_queries`.
        groups: where the coefficients of r groups start.

    Returns:
        whether all groups were taken over.
    """
    r, raw = queries.config.ratio, queries.config.coefficients == "raw"
    several = all(table.shape[1] == r > 1 for table in learned.values())
    for part, table in learned.items():
        basic = table.clone() if several else table[:, :1].repeat(1, r, 1)  # [m, r, f]
        if several and groups == "first":
            basic[:, 0] += (1 - FIRST) / FIRST * (basic[:, 0] - basic[:, 1:].mean(1))
        queries.basic[part].copy_(basic.flatten(0, 1))
    constant = raw or isinstance(queries.coefficients, Constants)
    if not several and constant and r > 1 and queries.config.basic == "groups":
        move_apart(queries)
    if several or raw:
        shares = torch.full((r,), 1 / r)
        if several and groups == "first":
            shares = torch.tensor([FIRST] + [(1 - FIRST) / (r - 1)] * (r - 1))
        _make_constant(queries.coefficients, shares if raw else shares.log())
    return several


def move_apart(queries: ModulatedQueries) -> None:
    """Move the queries of each hull by `APART` of the standard deviation of each part, the sum by nothing."""
    generator = torch.Generator().manual_seed(0)
    for table in queries.basic.values():
        hulls = table.unflatten(0, (-1, queries.config.ratio))  # [m, r, f]
        noise = torch.randn(hulls.shape, generator=generator).to(table)
        hulls += APART * table.std() * (noise - noise.mean(1, keepdim=True))


def _make_constant(head: nn.Module, values: Tensor) -> None:
    """Let the head of coefficients give these ``[r]`` to every query, whatever the image."""
    if isinstance(head, Constants):
        every = head.values
    else:
        assert isinstance(head, nn.Sequential)
        last = head[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        every = last.bias
    every.copy_(values.repeat(len(every) // len(values)))


def with_all_proposals(state: State, made: State) -> State:
    """A state with the heads that propose places for further groups, which start as that of the first group.

    Args:
        state: of a model whose queries are one group.
        made: of the model to fill, which may have several.
    """
    first = {name: re.sub(r"^proposals\.\d+", "proposals.0", name) for name in made}
    return {name: state[other] for name, other in first.items() if other != name and other in state} | state


@torch.no_grad()
def perturb(queries: ModulatedQueries, perturbation: float) -> None:
    """Add noise to the basic queries, ``perturbation`` times the standard deviation of each part."""
    for table in queries.basic.values():
        table += perturbation * table.std() * torch.randn_like(table)
