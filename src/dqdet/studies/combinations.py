"""Table 1: a model whose learned queries are replaced by fixed combinations of them; nothing is trained."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, get_args

import numpy as np
import torch

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.queries import CombinationKind, GroupedQueries, StaticQueries, combine, random_coefficients
from dqdet.runs.folder import without_pretraining, write_file
from dqdet.runs.sources import weights_of
from dqdet.studies.comparison import METRICS, STATIC
from dqdet.studies.paired import spread
from dqdet.studies.report import OF_PAPER, Report, table
from dqdet.studies.request import Request
from dqdet.studies.small import DEFORMABLE_DETR, detector, mask2former
from dqdet.studies.trained import Examined, examined, opened
from dqdet.training.evaluation import measure

RATIOS = (2, 4)
DRAWS = 6
KINDS: tuple[CombinationKind, ...] = get_args(CombinationKind)
LEARNED = "learned"

OWN = {
    "DAB-DETR": detector("dab_detr_r50", queries__count=32),
    "Deformable-DETR": detector(DEFORMABLE_DETR, queries__count=32),
    "Mask2Former": mask2former("instance"),
}

# Mean AP of six draws; kind, r.
PAPER: Mapping[str, Mapping[tuple[str, int], float]] = {
    "dab_detr_r50": {
        ("convex", 2): 0.379,
        ("convex", 4): 0.304,
        ("non_convex", 2): 0.370,
        ("non_convex", 4): 0.295,
        ("averaged", 2): 0.370,
        ("averaged", 4): 0.284,
        ("sampled", 2): 0.397,
        ("sampled", 4): 0.339,
    },
    DEFORMABLE_DETR: {
        ("convex", 2): 0.350,
        ("convex", 4): 0.242,
        ("non_convex", 2): 0.326,
        ("non_convex", 4): 0.240,
        ("averaged", 2): 0.329,
        ("averaged", 4): 0.225,
        ("sampled", 2): 0.398,
        ("sampled", 4): 0.281,
    },
    "mask2former_r50_coco_instance": {
        ("convex", 2): 0.412,
        ("non_convex", 2): 0.407,
        ("averaged", 2): 0.409,
        ("sampled", 2): 0.417,
    },
}

Found = dict[str, list[float]]  # "kind, r = 2" -> the metric of each draw


def combined(model: Detector, config: Config, coefficients: torch.Tensor) -> tuple[Detector, Config]:
    """A model with m fixed combinations of another one's n queries; all parts of a query with the same coefficients.

    These are the queries of a static model, or, of a model that was trained with r groups of m, those of all groups:
    query i combines the i-th of each.

    Args:
        model: of any family.
        config: of that model.
        coefficients: ``[m, r]`` with ``m * r == n``.

    Raises:
        DqdetError: the queries are others, or their number is not ``m * r``.
    """
    tables = learned(model, config)
    m, r = coefficients.shape
    if any(m * r != len(rows) for rows in tables.values()):
        raise DqdetError(_indivisible(config, r))
    config = override(config, {"queries.count": m, "queries.kind": "static"})
    fewer = create_model(without_pretraining(config))
    state = model.state_dict() | {f"queries.table.{part}": combine(rows, coefficients) for part, rows in tables.items()}
    fewer.load_state_dict({name: state[name] for name in fewer.state_dict()})
    return fewer.eval(), config


def learned(model: Detector, config: Config) -> dict[str, torch.Tensor]:
    """The learned queries of a model, those that take each other's place side by side: ``[n, f]`` of each part."""
    queries = getattr(model, "queries", None)
    if isinstance(queries, GroupedQueries) and config.queries.basic == "groups":
        return {part: table.flatten(0, 1) for part, table in queries.alternatives().items()}
    if isinstance(queries, StaticQueries):
        return dict(queries.table.items())
    kind = "the encoder's proposals" if queries is None else f"queries.kind={config.queries.kind}"
    raise DqdetError(f"only static queries can be combined; this model has {kind}")


def _indivisible(config: Config, r: int) -> str:
    return f"queries.count={config.queries.count} is not divisible by the ratio r = {r}"


def run(request: Request) -> Report:
    """Measure every kind of combination, ``DRAWS`` times where chance is in it.

    Raises:
        DqdetError: as `dqdet.studies.study` and :func:`combined`.
    """
    models = examined(request, OWN, STATIC, seeds=1)
    found: dict[str, Found] = {}
    metrics = {}
    for one in models:
        metric, of_model = _measured(one, request)
        metrics[one.label] = metric
        for key, draws in of_model.items():
            found.setdefault(one.label, {}).setdefault(key, []).extend(draws)
    published = {one.label: one.published for one in models}
    rows = []
    for label, of_label in found.items():
        paper = {_key(*key): value for key, value in PAPER.get(published[label], {}).items()}
        for key, draws in of_label.items():
            known = f"{paper[key]:.3f}" if key in paper else ""
            rows.append([label, key, str(len(draws)), spread(draws), known])
    header = ["model", "queries", "draws", " or ".join(dict.fromkeys(metrics.values())), f"the {OF_PAPER}"]
    return Report(
        title="Fixed combinations of learned queries",
        results={label: {"metric": metrics[label], "draws": of_label} for label, of_label in found.items()},
        tables=[table(header, rows)],
        note="Mean and standard deviation over the draws of all models; r queries become one, so fewer are left.",
        learned=[sentence for label, of_label in found.items() for sentence in _order(label, of_label)],
    )


def _measured(one: Examined, request: Request) -> tuple[str, Found]:
    """The deciding metric, and its value for every draw; measurements that the folder has are not repeated."""
    model, config = opened(one, request)
    metric = METRICS[config.data.task][0]
    try:
        count = len(next(iter(learned(model, config).values())))
    except DqdetError as error:
        raise DqdetError(f"{one.source}: {error}") from error
    groups = count // config.queries.count
    ratios = RATIOS if groups == 1 else (groups,)
    for r in ratios:  # before anything is measured
        if count % r:
            raise DqdetError(f"{one.source}: {_indivisible(config, r)}")
    file = one.folder / "combinations.json"
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    weights = weights_of(one.source)
    options = {"source": one.source, "weights": weights, "config": config.model_dump(mode="json")}
    found: Found = kept["found"] if kept.get("options") == options else {}
    todo = [
        (LEARNED, groups, 1),
        *((kind, r, 1 if kind == "averaged" else DRAWS) for r, kind in product(ratios, KINDS)),
    ]
    for number, (kind, r, draws) in enumerate(todo, start=1):
        values = found.setdefault(_key(kind, r), [])
        for draw in range(len(values), draws):
            if request.report:
                break
            generator = torch.Generator().manual_seed(draw)
            if kind == LEARNED:  # of several groups, the first
                coefficients = torch.eye(r)[:1].repeat(count // r, 1)  # [m, r]
            else:
                coefficients = random_coefficients(kind, count // r, r, generator)  # type: ignore[arg-type]
            try:
                fewer = combined(model, config, coefficients)
            except DqdetError as error:
                raise DqdetError(f"{one.source}: {error}") from error
            with _silence():
                values.append(measure(*fewer)[metric])
            write_file(file, json.dumps({"options": options, "found": found}, indent=1).encode())
        request.say(f"{one.label}: {number} of {len(todo)} kinds of combinations, {_key(kind, r)}: {spread(values)}")
    return metric, found


def _key(kind: str, r: int) -> str:
    return f"{LEARNED}, all" if kind == LEARNED else f"{kind.replace('_', '-')}, r = {r}"


def _order(label: str, found: Found) -> list[str]:
    """The order of the kinds in Table 1, and whether it is that of the paper."""
    sentences = []
    for r in sorted({int(key.rpartition("= ")[2]) for key in found if "= " in key}):
        means = {kind: float(np.mean(found[_key(kind, r)])) for kind in KINDS if found.get(_key(kind, r))}
        if len(means) < len(KINDS):
            continue
        order = " > ".join(
            f"{kind.replace('_', '-')} {means[kind]:.3f}" for kind in sorted(KINDS, key=lambda kind: -means[kind])
        )
        others = max(means["non_convex"], means["averaged"])
        as_paper = means["sampled"] > means["convex"] >= others
        verdict = "the paper's order, sampled > convex > the others" if as_paper else "another order than the paper's"
        sentences.append(f"{label}, r = {r}: {order}: {verdict}.")
    return sentences


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the progress of evaluations."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield
