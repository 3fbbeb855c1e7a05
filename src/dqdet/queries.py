"""Dynamic query combinations: the paper.

Cui, Yang and Yu, "Learning Dynamic Query Combinations for Transformer-based Object Detection and
Segmentation", ICML 2023. A query is a row of a learned table, or several rows with names (``position``,
``content``, ``anchor``) where a decoder reads more than one. Letters: B images, m queries at inference,
r basic queries behind each of them, n = m * r, f the width of a part.

Every source of queries is called with the feature map that describes the image (its ``context``, of those that a model
makes) and the padding of that map, and returns :class:`~dqdet.types.Queries`. In training mode a source may return
more than one group of queries; inference uses the first group alone. Dropout aside, this is the only place of the
library that asks whether it is training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dqdet.config import Context, QueriesConfig
from dqdet.nn.boxes import inverse_sigmoid
from dqdet.nn.heads import in_float32
from dqdet.types import Denoised, Queries, Sight, Target


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


def predict_coefficients(head: nn.Module, features: Tensor, padding: Tensor, config: QueriesConfig) -> Tensor:
    """W of Eq. 5, ``[B, m, r]``, from features ``[B, C, *cells]`` and padding ``[B, *cells]``."""
    context = pool(features, padding, config.pool, config.pool_padding)  # [B, C]
    raw = in_float32(head, context).unflatten(-1, (config.count, -1))  # [B, m, r]
    return raw.softmax(-1) if config.coefficients == "softmax" else raw


def training_groups(config: QueriesConfig) -> list[slice]:
    """How the n basic queries train beside the m of inference: rows of the groups, which do not see each other.

    ``whole``: one group of n (the paper). ``groups``: r groups of m, the j-th of them query j of every hull; that is
    what inference sees, and how Chen et al., "Group DETR", ICCV 2023, train unrelated queries. ``one``: one of these
    groups, drawn anew in each step, so that a step has 2 m queries instead of m + r m.
    """
    match config.basic:
        case "whole":
            return [slice(None)]
        case "groups":
            return [slice(j, None, config.ratio) for j in range(config.ratio)]
        case "one":
            return [slice(int(torch.randint(config.ratio, ())), None, config.ratio)]


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
        queries = Queries(_repeat(self.table, len(features)), {"static": _rows(self.table)})
        return _with_training_groups(queries, "unrelated", self.unrelated, self.config) if self.training else queries


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
        with torch.autocast(coefficients.device.type, enabled=False):
            parts = {name: (coefficients @ table.float()).to(table.dtype) for name, table in self.patterns.items()}
        return Queries(parts, {"shared": self.config.count}, coefficients)


def make_queries(config: QueriesConfig, widths: Mapping[str, int], backbone: int, hidden: int) -> QuerySource:
    """The source of queries that the configuration names.

    Args:
        config: the ``queries`` section.
        widths: what a query of this family consists of, part name -> width.
        backbone: channels of the backbone's coarsest map.
        hidden: channels of the model's own maps.
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
    source.context = context
    return source


class Noise(NamedTuple):
    """What is random in denoising queries: of K copies of N objects, positives (0) and negatives (1) of each copy."""

    relabel: Tensor  # [K, 2, N] in 0..1
    label: Tensor  # [K, 2, N] int64
    sign: Tensor  # [K, 2, N, 4], -1 or 1
    size: Tensor  # [K, 2, N, 4] in 0..1


def draw_noise(copies: int, objects: int, classes: int, device: torch.device) -> Noise:
    shape = (copies, 2, objects)
    return Noise(
        relabel=torch.rand(shape, device=device),
        label=torch.randint(classes, shape, device=device),
        sign=torch.randint(2, (*shape, 4), device=device) * 2.0 - 1,
        size=torch.rand((*shape, 4), device=device),
    )


class DenoisingQueries(nn.Module):
    """In training, queries that are objects with noise: Zhang et al., "DINO", ICLR 2023, section 3.2.

    Each copy of the objects of an image has a positive and a negative query for every object. The corners of positives
    are off by less than half a side, which they learn to undo; those of negatives by more, and they learn to be
    background. Some of both have a wrong class. All are one more group, whose copies do not see each other; they see
    the group of inference, which does not see them.

    There are as many copies as fit into ``config.denoising`` positives of the image with the most objects, at least
    one. (So does the published code where 50 or more are asked for; below, it makes twice that many copies.)

    Args:
        hidden: width of the content, which is learned for every class.
        classes: C.
        config: number of queries and the noise.
        epsilon: anchors are kept so far from 0 and 1.
    """

    def __init__(self, hidden: int, classes: int, config: QueriesConfig, epsilon: float):
        super().__init__()
        self.config = config
        self.epsilon = epsilon
        self.labels = nn.Parameter(torch.randn(classes, hidden))

    def forward(self, queries: Queries, targets: Sequence[Target]) -> Queries:
        """``queries`` with contents ``[B, Q, f]`` and anchors ``[B, Q, 4]``, and in training those of B targets."""
        if not self.training or not targets:
            return queries
        counts = [len(target.labels) for target in targets]
        most = max(counts)
        copies = max(1, self.config.denoising // most) if most else 1
        size = copies * 2 * most
        device = self.labels.device
        noise = draw_noise(copies, sum(counts), len(self.labels), device)
        labels = torch.cat([target.labels for target in targets])  # [N]
        labels = labels.where(noise.relabel >= self.config.label_noise, noise.label)  # [K, 2, N]
        boxes = noised(torch.cat([target.boxes for target in targets]), noise, self.config.box_noise)  # [K, 2, N, 4]

        image = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], dtype=torch.long)  # [N]
        number = torch.tensor([j for count in counts for j in range(count)], dtype=torch.long)  # [N]
        place = torch.arange(2 * copies).view(copies, 2, 1) * most + number  # [K, 2, N]
        columns = torch.broadcast_tensors(place, image, number, torch.arange(len(image)))
        place, image, number, row = torch.stack(columns).to(device, non_blocking=True)  # [K, 2, N] each
        made = {"content": self.labels[labels], "anchor": inverse_sigmoid(boxes, self.epsilon)}
        parts = {}
        for name, part in queries.parts.items():
            idle = part.new_zeros(len(targets), size, part.shape[-1])  # what remains of images with fewer objects
            parts[name] = torch.cat([part, idle.index_put((image, place), made[name].to(part))], 1)
        positive = [x[:, 0].flatten() for x in (image, place, number, row)]
        first = next(iter(queries.groups.values()))
        return Queries(
            parts,
            queries.groups | {"denoising": size},
            queries.coefficients,
            {"denoising": Sight(size, copies, first)},
            Denoised(copies, *positive),
        )


def noised(boxes: Tensor, noise: Noise, scale: float) -> Tensor:
    """Boxes ``[N, 4]`` with moved corners: ``[K, 2, N, 4]``; the width or height of negatives may be below 0.

    A corner moves by up to ``scale`` half sides, of negatives by one to two times so much.
    """
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    further = torch.arange(2, device=boxes.device)[:, None, None]  # [2, 1, 1]
    moves = noise.sign * (noise.size + further) * torch.cat([half, half], -1) * scale  # [K, 2, N, 4]
    corners = (torch.cat([centre - half, centre + half], -1) + moves).clamp(0, 1)
    low, high = corners.chunk(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)


class Constants(nn.Module):
    """In the place of the MLP that predicts coefficients: the same ones for all images, learned.

    The control that tells dynamic combinations from merely convex ones (``queries.context=none``).
    """

    def __init__(self, size: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))

    def forward(self, context: Tensor) -> Tensor:
        return self.values.expand(len(context), -1)  # [B, size]


def _coefficients(channels: int, config: QueriesConfig, ratio: int) -> nn.Module:
    """From a context ``[B, channels]`` to ``[B, m * ratio]``: the two layers of the paper, or constants."""
    if config.context == "none":
        return Constants(config.count * ratio)
    return nn.Sequential(nn.Linear(channels, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.count * ratio))


def _with_training_groups(queries: Queries, name: str, basic: nn.ParameterDict, config: QueriesConfig) -> Queries:
    """Append the basic queries, ``[n, f]`` of each part, as the groups that ``config.basic`` names."""
    rows = training_groups(config)
    count = config.count * config.ratio
    names = [name] if len(rows) == 1 else [f"{name} {number}" for number in range(1, len(rows) + 1)]
    sizes = [len(range(count)[of_group]) for of_group in rows]
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
