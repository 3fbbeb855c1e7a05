"""From a trained model to a modulated one that computes the same."""

from __future__ import annotations

from pathlib import Path

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.queries import ModulatedQueries
from dqdet.runs.folder import without_pretraining
from dqdet.runs.sources import write_derived
from dqdet.runs.starting import Groups, check_start, learned_queries, perturb, start, with_all_proposals

RATIO = 4  # basic queries behind each modulated one, where a model has one group of queries


def upgrade(
    model: Detector,
    config: Config,
    ratio: int | None = None,
    perturbation: float = 0.0,
    groups: Groups = "first",
) -> tuple[Detector, Config]:
    """A modulated model with the outputs of another one, ready for fine-tuning, and its configuration.

    The learned queries of inference are repeated as basic ones, and the coefficients start as in a new model: they make
    no difference until the basic queries differ. A model that was trained with several groups of as many queries
    (``queries.kind=grouped``, ``queries.basic=groups``) keeps all of them as basic queries; see `dqdet.runs.starting`.

    Args:
        model: of any family.
        config: of that model.
        ratio: r, basic queries behind each modulated one; None: `RATIO`, or the groups that there are.
        perturbation: standard deviation of noise added to the basic queries, relative to theirs. 0 keeps the
            outputs; more lets the queries of a group go different ways from the first step on.
        groups: of several ones, where the coefficients start; ``mean`` changes the outputs.

    Raises:
        DqdetError: the model has other queries, or another number of groups than ``ratio``; or ``perturbation`` or
            ``groups`` are none.
    """
    learned = learned_queries(getattr(model, "queries", None))
    if learned is None:
        found = f"{config.queries.kind} ones" if config.queries.kind != "static" else "the encoder's proposals"
        raise DqdetError(f"only static queries can be upgraded; this model has {found}")
    trained = next(iter(learned.values())).shape[1]  # groups
    check_start(perturbation, groups, trained)
    if trained > 1 and ratio not in (None, trained):
        raise DqdetError(f"has {trained} groups of queries, which all become basic ones; leave out --ratio {ratio}")
    options = {
        "queries.kind": "modulated",
        "queries.ratio": ratio if ratio is not None else trained if trained > 1 else RATIO,
        "queries.coefficients": "softmax",
    }
    if config.queries.context == "none":  # means nothing for the queries that there were
        options["queries.context"] = "backbone"
    config = override(config, options)
    upgraded = create_model(without_pretraining(config))
    assert isinstance(upgraded.queries, ModulatedQueries)
    start(upgraded.queries, learned, groups)
    perturb(upgraded.queries, perturbation)
    made = upgraded.state_dict()
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("queries.")}
    upgraded.load_state_dict(made | with_all_proposals(kept, made))
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
