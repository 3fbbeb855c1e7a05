"""Dynamic query combinations: the paper.

Cui, Yang and Yu, "Learning Dynamic Query Combinations for Transformer-based Object Detection and
Segmentation", ICML 2023. A query is a row of a learned table, or several rows with names (``position``,
``content``, ``anchor``) where a decoder reads more than one. Letters: B images, m queries at inference,
r basic queries behind each of them, n = m * r, f the width of a part.

Every source of queries is called with the feature map that describes the image (its ``context``, of those that a model
makes) and the padding of that map, and returns :class:`~dqdet.types.Queries`. In training mode a source may return
more than one group of queries; inference uses the first group alone. Dropout aside, this and ``denoising.py`` are the
only places of the library that ask whether it is training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from dqdet.config import Context, QueriesConfig
from dqdet.errors import DqdetError
from dqdet.nn.heads import in_float32
from dqdet.types import Queries

PLACES = {"anchor", "change"}  # parts of queries that are boxes before the sigmoid, or move some


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
    # A sum, and no matrix product, which mixed precision and TF32 would round: queries may be boxes.
    return (coefficients.float()[..., None] * grouped.float()).sum(-2).to(basic.dtype)


CombinationKind = Literal["convex", "non_convex", "averaged", "sampled"]


def random_coefficients(kind: CombinationKind, m: int, r: int, generator: torch.Generator | None = None) -> Tensor:
    """Fixed coefficients ``[m, r]`` for the study of query combinations (section 3.2, Table 1).

    ``convex``: uniform in [-1, 1], then softmax. ``non_convex``: uniform in [-1, 1], then shifted so that each
    row sums to 1; entries may be negative. ``averaged``: ``1 / r``. ``sampled``: one query of each group, where the
    paper draws m of all.

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

    def training_sizes(self) -> list[int]:
        """How many queries each group has that trains beside those of inference."""
        return []


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
        return Queries(_repeat(self.table, features.shape[0]), {"static": _rows(self.table)})


class ModulatedQueries(QuerySource):
    """The method: queries are convex combinations of basic queries, with coefficients predicted from the image.

    ``W = softmax(MLP(A(F)))`` (Eq. 5) and ``q_i = sum_j W[i, j] * basic[i * r + j]`` (Eq. 4). All parts of a
    query are combined with the same coefficients. In training the basic queries form a second group, so that
    they remain good queries themselves (Eq. 6 and 7); ``config.basic`` has other ways (:func:`training_groups`).

    Args:
        widths: part name -> width f.
        context_channels: channels C of the features that it is called with.
        config: count m, ratio r, hidden size of the MLP, pooling, softmax or raw coefficients.
    """

    def __init__(self, widths: Mapping[str, int], context_channels: int, config: QueriesConfig):
        super().__init__()
        self.config = config
        self.basic = _tables(widths, config.count * config.ratio)
        self.coefficients = _coefficients(context_channels, config, config.ratio)

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        coefficients = predict_coefficients(self.coefficients, features, padding, self.config)  # [B, m, r]
        parts = {name: combine(basic, coefficients) for name, basic in self.basic.items()}  # [B, m, f]
        queries = Queries(parts, {"modulated": self.config.count}, coefficients)
        return _with_training_groups(queries, "basic", self.basic, self.config) if self.training else queries

    def training_sizes(self) -> list[int]:
        return training_sizes(self.config)


def predict_coefficients(head: nn.Module, features: Tensor, padding: Tensor, config: QueriesConfig) -> Tensor:
    """W of Eq. 5, ``[B, m, r]``, from features ``[B, C, *cells]`` and padding ``[B, *cells]``."""
    context = pool(features, padding, config.pool, config.pool_padding)  # [B, C]
    raw = in_float32(head, context).unflatten(-1, (config.count, -1))  # [B, m, r]
    return raw.softmax(-1) if config.coefficients == "softmax" else raw


def training_groups(config: QueriesConfig) -> list[slice]:
    """How the n basic queries train beside the m of inference: rows of the groups, which do not see each other.

    ``whole``: one group of n (the paper). ``groups``: r groups of m, the j-th of them query j of every hull; that is
    what inference sees, and how Chen et al., "Group DETR", ICCV 2023, train unrelated queries. ``one``: one of these
    groups, drawn anew for each batch of each process, so that it has 2 m queries instead of m + r m.
    """
    match config.basic:
        case "whole":
            return [slice(None)]
        case "groups":
            return [slice(j, None, config.ratio) for j in range(config.ratio)]
        case "one":
            return [slice(int(torch.randint(config.ratio, ())), None, config.ratio)]


def training_sizes(config: QueriesConfig) -> list[int]:
    """Queries of each of these groups."""
    return {
        "whole": [config.count * config.ratio],
        "groups": [config.count] * config.ratio,
        "one": [config.count],
    }[config.basic]


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
    comes from the number of training queries alone. With ``config.basic`` groups they are r groups of m, as in Group
    DETR.
    """

    def __init__(self, widths: Mapping[str, int], config: QueriesConfig):
        super().__init__()
        self.config = config
        self.table = _tables(widths, config.count)
        self.unrelated = _tables(widths, config.count * config.ratio)

    def alternatives(self) -> dict[str, Tensor]:
        """Query i of every group, with ``config.basic`` groups, that of the first at first: ``[m, 1 + r, f]``."""
        pairs = ((name, table, self.unrelated[name]) for name, table in self.table.items())
        return {name: torch.cat([own[:, None], other.unflatten(0, (len(own), -1))], 1) for name, own, other in pairs}

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        queries = Queries(_repeat(self.table, features.shape[0]), {"static": _rows(self.table)})
        return _with_training_groups(queries, "unrelated", self.unrelated, self.config) if self.training else queries

    def training_sizes(self) -> list[int]:
        return training_sizes(self.config)


class SharedQueries(QuerySource):
    """All queries from the same few patterns: Kang et al., "PaQ-DETR", CVPR 2026 (arXiv 2603.06917).

    ``q_i = sum_k W[i, k] * pattern[k]``, with W from a two-layer MLP and a softmax over all K patterns. No code was
    published: the context is that of the other sources here, patterns are no queries of their own in training, and the
    one-to-many assignment of that paper is left out.

    Args:
        widths: part name -> width f.
        context_channels: channels C of the features that it is called with.
        config: count m, patterns K, and the rest as for :class:`ModulatedQueries`.
    """

    def __init__(self, widths: Mapping[str, int], context_channels: int, config: QueriesConfig):
        super().__init__()
        self.config = config
        self.patterns = _tables(widths, config.patterns)
        self.coefficients = _coefficients(context_channels, config, config.patterns)

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        coefficients = predict_coefficients(self.coefficients, features, padding, self.config)  # [B, m, K]
        parts = {name: mix(table, coefficients, exactly=name in PLACES) for name, table in self.patterns.items()}
        return Queries(parts, {"shared": self.config.count}, coefficients)


def mix(patterns: Tensor, coefficients: Tensor, exactly: bool) -> Tensor:
    """Combine all of K patterns ``[K, f]`` into each query, by coefficients ``[..., m, K]``: ``[..., m, f]``.

    ``exactly``: by a sum, as in :func:`combine`, whose terms are ``[..., m, K, f]`` in memory.
    """
    with torch.autocast(coefficients.device.type, enabled=False):
        table = patterns.float()
        mixed = (coefficients[..., None] * table).sum(-2) if exactly else coefficients @ table
    return mixed.to(patterns.dtype)


# Makes the queries of ``queries.kind=own`` of widths, context channels and configuration, as `ModulatedQueries` takes
# them. A program sets it before it trains or loads such a model; no file can, since files execute nothing.
own: Callable[[Mapping[str, int], int, QueriesConfig], QuerySource] | None = None


def make_queries(config: QueriesConfig, widths: Mapping[str, int], backbone: int, hidden: int) -> QuerySource:
    """The source of queries that the configuration names.

    Args:
        config: the ``queries`` section.
        widths: what a query of this family consists of, part name -> width.
        backbone: channels of the backbone's coarsest map.
        hidden: channels of the model's own maps.

    Raises:
        DqdetError: the kind is own, and the program has set none.
    """
    context: Context = "backbone" if config.context == "none" else config.context  # constants look at no map
    channels = backbone if context == "backbone" else hidden
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
        case "shared":
            source = SharedQueries(widths, channels, config)
        case "own":
            if own is None:
                raise DqdetError("queries.kind=own needs a program that sets dqdet.queries.own, see docs/extending.md")
            source = own(widths, channels, config)
    source.context = context
    return source


class Constants(nn.Module):
    """In the place of the MLP that predicts coefficients: the same ones for all images, learned.

    The control that tells dynamic combinations from merely convex ones (``queries.context=none``).
    """

    def __init__(self, size: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))

    def forward(self, context: Tensor) -> Tensor:
        return self.values.expand(context.shape[0], -1)  # [B, size]


def _coefficients(channels: int, config: QueriesConfig, ratio: int) -> Constants | nn.Sequential:
    """From a context ``[B, channels]`` to ``[B, m * ratio]``: the two layers of the paper, or constants."""
    if config.context == "none":
        return Constants(config.count * ratio)
    return nn.Sequential(nn.Linear(channels, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.count * ratio))


def _with_training_groups(queries: Queries, name: str, basic: nn.ParameterDict, config: QueriesConfig) -> Queries:
    """Append the basic queries, ``[n, f]`` of each part, as the groups that ``config.basic`` names."""
    rows, sizes = training_groups(config), training_sizes(config)
    names = [name] if len(rows) == 1 else [f"{name} {number}" for number in range(1, len(rows) + 1)]
    parts = {}
    for part, made in queries.parts.items():
        groups = [basic[part][of_group].expand(len(made), -1, -1) for of_group in rows]  # of [B, n or m, f]
        parts[part] = torch.cat([made, *groups], 1)
    return Queries(parts, queries.groups | dict(zip(names, sizes, strict=True)), queries.coefficients)


def _tables(widths: Mapping[str, int], rows: int) -> nn.ParameterDict:
    """Learned tables ``[rows, f]``, standard normal at first as in every family's published code."""
    return nn.ParameterDict({name: nn.Parameter(torch.randn(rows, width)) for name, width in widths.items()})


def _rows(tables: nn.ParameterDict) -> int:
    return len(next(iter(tables.values())))


def _repeat(tables: nn.ParameterDict, batch: int) -> dict[str, Tensor]:
    """The tables for every image, ``[B, rows, f]``, without copying."""
    return {name: table.expand(batch, -1, -1) for name, table in tables.items()}
