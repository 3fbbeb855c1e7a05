"""Dynamic query combinations: the paper.

Cui, Yang and Yu, "Learning Dynamic Query Combinations for Transformer-based Object Detection and
Segmentation", ICML 2023. A query is a row of a learned table, or several rows with names (``position``,
``content``, ``anchor``) where a decoder reads more than one. Letters: B images, m queries at inference,
r basic queries behind each of them, n = m * r, f the width of a part.

Every source of queries is called with the feature map that describes the image (its ``context``, of those that a model
makes) and the padding of that map, and returns :class:`~dqdet.types.Queries`. In training mode a source may return
more than one group of queries; inference uses the first group alone. This is the only place of the library that asks
whether it is training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from dqdet.config import Context, QueriesConfig
from dqdet.nn.heads import in_float32
from dqdet.types import Queries


def combine(basic: Tensor, coefficients: Tensor) -> Tensor:
    """Combine each group of r consecutive basic queries into one query (Eq. 3 and 4).

    Args:
        basic: ``[n, f]``; group i holds the rows ``i * r .. i * r + r - 1``.
        coefficients: ``[..., m, r]`` with ``m * r == n``.

    Returns:
        Queries ``[..., m, f]``.

    Raises:
        ValueError: if the coefficients do not fit the number of basic queries.
    """
    m, r = coefficients.shape[-2:]
    if m * r != len(basic):
        raise ValueError(f"{m} x {r} coefficients do not fit {len(basic)} basic queries")
    grouped = basic.view(m, r, -1)  # [m, r, f]
    # Queries may be boxes, for which half precision has too few digits.
    with torch.autocast(basic.device.type, enabled=False):
        return torch.einsum("...mr,mrf->...mf", coefficients.float(), grouped.float()).to(basic.dtype)


CombinationKind = Literal["convex", "non_convex", "averaged", "sampled"]


def random_coefficients(kind: CombinationKind, m: int, r: int, generator: torch.Generator | None = None) -> Tensor:
    """Fixed coefficients ``[m, r]`` for the study of query combinations (section 3.2, Table 1).

    ``convex``: uniform in [-1, 1], then softmax. ``non_convex``: uniform in [-1, 1], then shifted so that each
    row sums to 1; entries may be negative. ``averaged``: ``1 / r``. ``sampled``: one query of each group.

    Raises:
        ValueError: for an unknown kind.
    """
    uniform = torch.rand(m, r, generator=generator) * 2 - 1
    match kind:
        case "convex":
            return uniform.softmax(-1)
        case "non_convex":
            return uniform + (1 - uniform.sum(-1, keepdim=True)) / r
        case "averaged":
            return torch.full((m, r), 1 / r)
        case "sampled":
            return nn.functional.one_hot(uniform.argmax(-1), r).to(uniform.dtype)
    raise ValueError(f"unknown kind of combination: {kind!r}")


def pool(
    features: Tensor, padding: Tensor, kind: Literal["mean", "max"] = "mean", pool_padding: bool = False
) -> Tensor:
    """The global pooling A(F) of Eq. 5.

    Args:
        features: ``[B, C, *cells]``, any number of spatial (and temporal) axes.
        padding: ``[B, *cells]`` bool, True = padded.
        kind: ``mean`` (the paper) or ``max`` (the published code).
        pool_padding: let padded positions take part too (the published code).

    Returns:
        Context ``[B, C]``.
    """
    features = features.flatten(2).float()  # [B, C, cells]
    if pool_padding:
        return features.mean(-1) if kind == "mean" else features.amax(-1)
    valid = ~padding.flatten(1)[:, None]  # [B, 1, cells]
    if kind == "mean":
        return (features * valid).sum(-1) / valid.sum(-1).clamp(min=1)
    return features.masked_fill(~valid, -torch.inf).amax(-1)


class QuerySource(nn.Module, ABC):
    """What all sources have: the name of the feature map that they are called with."""

    context: Context

    @abstractmethod
    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        """Queries of B images.

        Args:
            features: the map that ``context`` names, ``[B, C, h, w]``   (video: ``[B, C, T, h, w]``).
            padding: of its cells, ``[B, h, w]``   (video: ``[B, T, h, w]``), True = padded.
        """


class StaticQueries(QuerySource):
    """The plain baseline: the same learned queries for every image.

    Args:
        widths: part name -> width f.
        count: m.
    """

    def __init__(self, widths: Mapping[str, int], count: int):
        super().__init__()
        self.table = _tables(widths, count)

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        return Queries(_repeat(self.table, len(features)), {"static": _rows(self.table)})


class ModulatedQueries(QuerySource):
    """The method: queries are convex combinations of basic queries, with coefficients predicted from the image.

    ``W = softmax(MLP(A(F)))`` (Eq. 5) and ``q_i = sum_j W[i, j] * basic[i * r + j]`` (Eq. 4). All parts of a
    query are combined with the same coefficients. In training the basic queries form a second group, so that
    they remain good queries themselves (Eq. 6 and 7).

    Args:
        widths: part name -> width f.
        context_channels: channels C of the features that it is called with.
        config: count m, ratio r, hidden size of the MLP, pooling, softmax or raw coefficients.
    """

    def __init__(self, widths: Mapping[str, int], context_channels: int, config: QueriesConfig):
        super().__init__()
        self.config = config
        self.basic = _tables(widths, config.count * config.ratio)
        self.coefficients = nn.Sequential(
            nn.Linear(context_channels, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.count * config.ratio),
        )

    def predict_coefficients(self, features: Tensor, padding: Tensor) -> Tensor:
        """``[B, m, r]`` from features ``[B, C, h, w]`` and padding ``[B, h, w]``."""
        context = pool(features, padding, self.config.pool, self.config.pool_padding)  # [B, C]
        raw = in_float32(self.coefficients, context).unflatten(-1, (self.config.count, self.config.ratio))
        return raw.softmax(-1) if self.config.coefficients == "softmax" else raw  # [B, m, r]

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        coefficients = self.predict_coefficients(features, padding)
        parts = {name: combine(basic, coefficients) for name, basic in self.basic.items()}  # [B, m, f]
        groups = {"modulated": self.config.count}
        if self.training:
            basic = _repeat(self.basic, len(features))  # [B, n, f]
            parts = {name: torch.cat([part, basic[name]], 1) for name, part in parts.items()}
            groups["basic"] = self.config.count * self.config.ratio
        return Queries(parts, groups, coefficients)


class GeneratedQueries(QuerySource):
    """The naive idea of section 3.3: an MLP makes the queries from the context, without any table."""

    def __init__(self, widths: Mapping[str, int], context_channels: int, config: QueriesConfig):
        super().__init__()
        self.config = config
        self.widths = dict(widths)
        self.generate = nn.Sequential(
            nn.Linear(context_channels, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.count * sum(self.widths.values())),
        )

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        context = pool(features, padding, self.config.pool, self.config.pool_padding)  # [B, C]
        made = in_float32(self.generate, context).unflatten(-1, (self.config.count, -1))  # [B, m, sum of widths]
        made = made.to(next(self.parameters()).dtype)
        parts = made.split(list(self.widths.values()), -1)
        return Queries(dict(zip(self.widths, parts, strict=True)), {"generated": self.config.count})


class GroupedQueries(QuerySource):
    """The ablation of Table 8: m queries, and in training n unrelated ones beside them.

    As many queries as the method trains, without a combination between them: what remains of a gain here
    comes from the number of training queries alone.
    """

    def __init__(self, widths: Mapping[str, int], config: QueriesConfig):
        super().__init__()
        self.table = _tables(widths, config.count)
        self.unrelated = _tables(widths, config.count * config.ratio)

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        parts, groups = _repeat(self.table, len(features)), {"static": _rows(self.table)}
        if self.training:
            unrelated = _repeat(self.unrelated, len(features))
            parts = {name: torch.cat([part, unrelated[name]], 1) for name, part in parts.items()}
            groups["unrelated"] = _rows(self.unrelated)
        return Queries(parts, groups)


def make_queries(config: QueriesConfig, widths: Mapping[str, int], backbone: int, hidden: int) -> QuerySource:
    """The source of queries that the configuration names.

    Args:
        config: the ``queries`` section.
        widths: what a query of this family consists of, part name -> width.
        backbone: channels of the backbone's coarsest map.
        hidden: channels of the model's own maps.
    """
    channels = backbone if config.context == "backbone" else hidden
    source: QuerySource
    match config.kind:
        case "static":
            source = StaticQueries(widths, config.count)
        case "modulated":
            source = ModulatedQueries(widths, channels, config)
        case "generated":
            source = GeneratedQueries(widths, channels, config)
        case "grouped":
            source = GroupedQueries(widths, config)
    source.context = config.context
    return source


def _tables(widths: Mapping[str, int], rows: int) -> nn.ParameterDict:
    """Learned tables ``[rows, f]``, standard normal at first as in every family's published code."""
    return nn.ParameterDict({name: nn.Parameter(torch.randn(rows, width)) for name, width in widths.items()})


def _rows(tables: nn.ParameterDict) -> int:
    return len(next(iter(tables.values())))


def _repeat(tables: nn.ParameterDict, batch: int) -> dict[str, Tensor]:
    """The tables for every image, ``[B, rows, f]``, without copying."""
    return {name: table.expand(batch, -1, -1) for name, table in tables.items()}
