"""From a trained static model to a modulated one that computes the same."""

from __future__ import annotations

from pathlib import Path

import torch

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.queries import ModulatedQueries
from dqdet.runs.folder import new_run, save_folder, without_pretraining
from dqdet.runs.sources import load_model
from dqdet.weights.renaming import State


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


def upgrade(model: Detector, config: Config, ratio: int = 4, perturbation: float = 0.0) -> tuple[Detector, Config]:
    """A modulated model with the outputs of a static one, ready for fine-tuning, and its configuration.

    The coefficients start as in a new model; they make no difference until the basic queries differ.

    Args:
        model: with learned static queries, of any family.
        config: of that model.
        ratio: r, basic queries behind each modulated one.
        perturbation: standard deviation of noise added to the basic queries, relative to theirs. 0 keeps the
            outputs; more lets the queries of a group go different ways from the first step on.

    Raises:
        DqdetError: the model has no static queries.
    """
    if config.queries.kind != "static" or not hasattr(model, "queries"):
        found = f"{config.queries.kind} ones" if config.queries.kind != "static" else "the encoder's proposals"
        raise DqdetError(f"only static queries can be upgraded; this model has {found}")
    options = {"queries.kind": "modulated", "queries.ratio": ratio, "queries.coefficients": "softmax"}
    if config.queries.context == "none":  # means nothing for static queries
        options["queries.context"] = "backbone"
    config = override(config, options)
    upgraded = create_model(without_pretraining(config))
    upgraded.load_state_dict(upgraded.state_dict() | repeat_queries(model.state_dict(), ratio))
    assert isinstance(upgraded.queries, ModulatedQueries)
    with torch.no_grad():
        for table in upgraded.queries.basic.values():
            table += perturbation * table.std() * torch.randn_like(table)
    return upgraded.eval(), config


def upgrade_folder(source: str | Path, out: Path, ratio: int = 4, perturbation: float = 0.0) -> None:
    """Write the upgraded model of any source as a run folder, with its metrics where they stay the same.

    Raises:
        DqdetError: as `load_model` and `upgrade`, or ``out`` has a run already.
    """
    model, config, metrics = load_model(source)
    try:
        model, config = upgrade(model, config, ratio, perturbation)
    except DqdetError as error:
        raise DqdetError(f"{source}: {error}") from error
    config.init = str(source)
    with new_run(out, config):
        save_folder(out, model, config, metrics if perturbation == 0 else {})
