"""Dynamic queries inside models of the ``transformers`` library.

>>> model = dqdet.modulate(AutoModelForObjectDetection.from_pretrained("facebook/detr-resnet-50"), ratio=4)
>>> Trainer(model=model, ...).train()
>>> model.save_pretrained("mine")
>>> model = dqdet.transformers.load("mine")

The model keeps its class, its forward, its loss and its names of parameters; ``docs/transformers.md`` says which
classes there are. ``dqdet.transformers.ModulatedDetrForObjectDetection`` and so on are classes as any of the library's.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError

from dqdet.adapters.transformers.conversion import convert, to_transformers
from dqdet.adapters.transformers.modulated import PREFIX, Modulated, modulated
from dqdet.adapters.transformers.seams import SEAMS, check_seam, seam_of
from dqdet.config import QueriesConfig
from dqdet.config.effects import TRAINED, unread
from dqdet.errors import DqdetError, value_text
from dqdet.queries import GroupedQueries, ModulatedQueries, QuerySource
from dqdet.runs.starting import Groups, Learned, check_start, perturb, start

# Options of queries that the models of the library decide, or whose training has no such thing.
OF_OUR_TRAINING = {"count", "denoising", "label_noise", "box_noise"}

__all__ = ["Modulated", "convert", "load", "modulate", "to_transformers"]


def __getattr__(name: str) -> type[Modulated]:
    """The modulated classes, ``ModulatedDetrForObjectDetection`` and so on."""
    of_library = name.removeprefix(PREFIX)
    if of_library == name or of_library not in SEAMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return modulated(getattr(transformers, of_library))


def modulate(
    model: transformers.PreTrainedModel,
    ratio: int | None = None,
    *,
    beta: float | None = 1.0,
    perturbation: float = 0.0,
    groups: Groups = "first",
    **options: Any,
) -> Modulated:
    """Give a model of ``transformers`` modulated queries, in place, without changing its outputs.

    Every query of the model is repeated ``ratio`` times, as basic queries: any convex combination of them is that
    query. LW-DETR and RF-DETR have trained groups of queries, which become the basic ones.

    Args:
        model: of a class that `SEAMS` has.
        ratio: r, basic queries behind each modulated one; by default 4, or the number of the model's own groups.
        beta: weight of the basic queries' loss (Eq. 7); None: all groups weigh the same, 1 together.
        perturbation: standard deviation of noise added to the basic queries, relative to theirs; more than 0 lets the
            queries of a group go different ways from the first step on, and changes the outputs.
        groups: where the combinations of a model with groups of its own start: at the first group, with the outputs of
            before, or at the mean of all groups.
        options: of `dqdet.config.QueriesConfig`, such as ``pool="max"``, ``basic="groups"``, ``context="none"``,
            ``hidden=256``, or ``kind="grouped"``. With ``kind`` ``shared`` or ``generated`` queries are learned anew.

    Returns:
        the same model, of the class ``Modulated...``. In training mode its ``loss`` is that of all groups of queries.

    Raises:
        DqdetError: the class is not supported, an option is unknown or wrong, or transformers has changed; the model
            is as it was.
    """
    name = type(model).__name__
    if isinstance(model, Modulated):
        raise DqdetError(f"{name}: has modulated queries already")
    seam = seam_of(model)
    fixed = seam.options(model.config)
    given = ({} if ratio is None else {"ratio": ratio}) | options
    for option, value in given.items():
        if fixed.get(option, value) != value:
            raise DqdetError(
                f"{name}: {option}={value}: its own groups of queries are the basic ones; leave it at {fixed[option]}"
            )
    if refused := OF_OUR_TRAINING & given.keys():
        raise DqdetError(f"{name}: {', '.join(sorted(refused))}: only dqdet's own training has that; leave it out")
    config = _queries(name, {"count": 1, **fixed, **given})
    trained = seam.groups_of(model.config)
    try:
        check_start(perturbation, groups, trained)
    except DqdetError as error:
        raise DqdetError(f"{name}: {error}") from error
    if beta is not None and not (isinstance(beta, int | float) and 0 <= beta < math.inf):
        raise DqdetError(f"{name}: beta={value_text(beta)}: should be a number, 0 or more, or None")
    needless = {"perturbation": perturbation != 0 and config.kind != "modulated"}
    needless |= {"beta": beta != 1 and config.kind not in TRAINED}
    unused = [f"{option} has no effect with queries.kind={config.kind}" for option, is_so in needless.items() if is_so]
    for line in [*unread(config, given), *unused]:
        warnings.warn(f"{name}: {line}", stacklevel=2)
    if config.kind == "static":
        raise DqdetError(f"{name}: kind=static: that is what the model has; choose modulated, shared, ...")
    check_seam(model, seam, config.context)
    reader = seam.reader_of(model)
    tables = {table: getattr(reader, table).weight.detach() for table in seam.tables}
    config.count = len(next(iter(tables.values()))) // trained
    changed: Any = model
    before = changed.__class__
    changed.config.modulated = config.model_dump() | {"beta": beta}
    changed.__class__ = modulated(before)
    try:
        changed._take_over()
    except DqdetError:  # before anything else is changed
        changed.__class__ = before
        del changed.config.modulated
        raise
    learned = {
        part: columns.unflatten(0, (trained, -1)).transpose(0, 1)  # [m, g, f]
        for table, names in seam.tables.items()
        for part, columns in zip(names, tables[table].chunk(len(names), 1), strict=True)
    }
    _start(changed.queries, learned, perturbation, groups)
    return changed


def load(folder: str | Path, **options: Any) -> Modulated:
    """A modulated model from the folder that its ``save_pretrained`` wrote, or from the hub.

    Args:
        folder: or a name on the hub, ``user/name``.
        options: of ``from_pretrained``, such as ``dtype`` or ``device_map``.

    Raises:
        DqdetError: the folder has no model of a modulated class, or its weights are not those of one.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = (config.architectures or ["nothing"])[0]
    if architecture.removeprefix(PREFIX) not in SEAMS or not hasattr(config, "modulated"):
        raise DqdetError(
            f"{folder}: has a {architecture}, which has no modulated queries; load it with transformers, then "
            "dqdet.modulate(model)"
        )
    kind = modulated(getattr(transformers, architecture.removeprefix(PREFIX)))
    model, found = kind.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(key for key in found["missing_keys"] if key.startswith("queries.")):
        raise DqdetError(f"{folder}: has no {', '.join(missing)}; it was not saved by a {kind.__name__}")
    return model


def _queries(name: str, options: dict[str, Any]) -> QueriesConfig:
    try:
        return QueriesConfig(**options)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise DqdetError(f"{name}: {'; '.join(problems)}") from error


@torch.no_grad()
def _start(source: QuerySource, learned: Learned, perturbation: float, groups: Groups) -> None:
    """Fill the source of queries with what a model has learned."""
    if isinstance(source, GroupedQueries):
        for part, table in source.table.items():
            table.copy_(learned[part][:, 0])
    if isinstance(source, ModulatedQueries):
        start(source, learned, groups)
        perturb(source, perturbation)
