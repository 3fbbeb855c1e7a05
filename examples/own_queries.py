"""A source of queries of your own, in a model of any family: learned queries that the image shifts.

    python examples/own_queries.py --out FOLDER [--preset scenes_tiny] [OPTION=VALUE ...]

Trains and evaluates a static model and one with the queries below, alike in everything else.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import dqdet
import dqdet.queries
from dqdet.config import QueriesConfig, parse_overrides
from dqdet.queries import QuerySource, pool
from dqdet.types import Queries


class ShiftedQueries(QuerySource):
    """m learned queries; each of their parts is shifted by a vector that a linear layer makes of the pooled image."""

    def __init__(self, widths: Mapping[str, int], context_channels: int, config: QueriesConfig):
        super().__init__()
        self.count = config.count
        self.table = nn.ParameterDict({name: torch.randn(config.count, width) for name, width in widths.items()})
        self.shift = nn.ModuleDict({name: nn.Linear(context_channels, width) for name, width in widths.items()})

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        context = pool(features, padding)  # [B, C]
        parts = {name: table + self.shift[name](context)[:, None] for name, table in self.table.items()}  # [B, m, f]
        return Queries(parts, {"shifted": self.count})


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """The AP of both kinds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/own_queries"))
    parser.add_argument("--preset", default="scenes_tiny")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    given = parser.parse_args(arguments)

    dqdet.queries.own = ShiftedQueries
    found = {}
    for kind in ("static", "own"):
        options = parse_overrides(given.options) | {"queries.kind": kind}
        run = dqdet.train(given.preset, out=given.out / kind, **options)
        found[kind] = dqdet.evaluate(run)["AP"]
    print(", ".join(f"{kind} AP {value:.3f}" for kind, value in found.items()))
    return found


if __name__ == "__main__":
    main()
