"""Upgrade a model and fine-tune it: as it is, and with modulated queries that begin with the same outputs.

    python examples/fine_tune.py --data FOLDER --out FOLDER [--model MODEL] [--preset scenes_tiny] [OPTION=VALUE ...]

MODEL is a run or a published checkpoint of the preset's family with static queries. Without one, the preset learns
generated scenes first. Both trainings on the data are alike: same steps, seed and number of queries at inference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import dqdet
from dqdet.config import parse_overrides
from dqdet.data.kinds import kind_of

RECIPE = {
    "data.resize": [160, 176, 192],
    "data.max_size": 320,
    "data.val_resize": 192,
    "train.epochs": 10,
    "train.drop": [8],
}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """The AP of both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tune"))
    parser.add_argument("--model", help="a run or a published checkpoint")
    parser.add_argument("--preset", default="scenes_tiny")
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    given = parser.parse_args(arguments)
    options = parse_overrides(given.options)

    static = given.model
    if static is None:
        static = dqdet.train(given.preset, out=given.out / "start", **options | {"queries.kind": "static"})
    upgraded = dqdet.upgrade(static, given.out / "upgraded", ratio=given.ratio)

    data = {"data.kind": kind_of(given.data), "data.root": str(given.data)}
    found = {}
    for kind, start in ("static", static), ("modulated", upgraded):
        queries = {"queries.kind": kind, "init": str(start)}
        if kind == "modulated":
            queries["queries.ratio"] = given.ratio
        run = dqdet.train(given.preset, out=given.out / kind, **RECIPE | options | data | queries)
        found[kind] = dqdet.evaluate(run)["AP"]
    print(", ".join(f"{kind} AP {value:.3f}" for kind, value in found.items()))
    return found


if __name__ == "__main__":
    main()
