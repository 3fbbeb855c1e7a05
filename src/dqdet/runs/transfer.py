"""Trainings that start from the weights of another model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from dqdet.config import Config, WindowedVitConfig
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.nn.backbone import SHORT_NAMES
from dqdet.queries import ModulatedQueries
from dqdet.runs.sources import load_model
from dqdet.runs.starting import learned_queries, start, with_all_proposals
from dqdet.weights.renaming import State

# Parameters that make queries of the image's context, for the pooling and the basic queries of their model only.
MADE_FOR_QUERIES = ("queries.coefficients.", "queries.generate.")
# Parameters with a row for every class: of heads, of the decoder or of proposals, and of denoising queries.
OF_CLASSES = re.compile(r"(^|\.)(proposal_)?class_head\.|^denoising\.labels")
MEANING = ("kind", "count", "ratio", "hidden", "context", "pool", "pool_padding", "coefficients")


def start_from(source: str, model: Detector, config: Config) -> str:
    """Fill a new model with the weights of another one, wherever they fit.

    Backbone, encoder, decoder and box heads are taken over whole, class heads class by class, by their names.
    Learned queries are taken over where both models have as many; static ones become the basic queries of a
    modulated model, as in `dqdet.runs.starting`. What remains stays as it was made. A model of videos may
    start from one of images.

    Args:
        source: as for `load_model`.
        model: made by ``create_model(config)``; changed in place.
        config: of that model, with its classes.

    Returns:
        what was loaded, re-made and ignored, in one line.

    Raises:
        DqdetError: as `load_model`, or the source has another family or other sizes.
    """
    before, start_config, _ = load_model(source)
    _check_sizes(source, start_config, config)
    made, found = model.state_dict(), before.state_dict()
    learned = learned_queries(getattr(before, "queries", None))
    joined = taken = False
    queries = getattr(model, "queries", None)
    if isinstance(queries, ModulatedQueries) and start_config.queries.count == config.queries.count and learned:
        taken, joined = True, start(queries, learned)
        found = {name: tensor for name, tensor in found.items() if not name.startswith("queries.")}
        found |= {name: tensor for name, tensor in made.items() if name.startswith("queries.basic.")}
    found = with_all_proposals(found, made)

    unfit: tuple[str, ...] = ()
    if not taken and any(
        getattr(start_config.queries, option) != getattr(config.queries, option) for option in MEANING
    ):
        unfit += MADE_FOR_QUERIES
    of_classes = {name for name in made.keys() & found.keys() if OF_CLASSES.search(name)}
    other_classes = of_classes if start_config.classes != config.classes else set()
    loaded = {
        name: tensor
        for name, tensor in found.items()
        if name in made
        and made[name].shape == tensor.shape
        and name not in other_classes
        and not name.startswith(unfit)
    }
    model.load_state_dict(made | loaded)
    remade, ignored = (_parts(whole.keys() - loaded.keys() - of_classes) for whole in (made, found))
    if start_config.classes != config.classes:
        kept = _keep_classes(model, config, found, start_config)
        remade.append(f"class_head (with {kept} of {len(config.classes)} classes known by name)")
        ignored.append(f"{len(start_config.classes) - kept} of {len(start_config.classes)} classes")
    times = f", the queries {config.queries.ratio} times" if taken else ""
    if joined:
        times = f", {config.queries.ratio} groups of queries as basic ones"
    return (
        f"init={source}: loaded {len(loaded)} of {len(made)} tensors{times}; re-made {', '.join(remade) or 'nothing'}; "
        f"ignored {', '.join(ignored) or 'nothing'}"
    )


def _keep_classes(model: Detector, config: Config, found: State, start: Config) -> int:
    """Take over the rows of `OF_CLASSES` for classes that both models have, by name; says how many."""
    old, new = start.classes, config.classes
    labels = {label: old.index(name) for label, name in enumerate(new) if old.count(name) == new.count(name) == 1}
    outputs = labels | ({len(new): len(old)} if config.model.no_object else {})
    proposals = f"class_head.{config.model.decoder_layers}."  # of two-stage models: output 0 means any object there
    for name, rows in model.state_dict().items():  # weights [outputs, c], biases [outputs], labels [C, c]
        if OF_CLASSES.search(name) and name in found:
            for label, before in ({0: 0} if name.startswith(proposals) else outputs).items():
                rows[label] = found[name][before]
    return len(labels)


def _check_sizes(source: str, start: Config, config: Config) -> None:
    theirs, ours = _sizes(start), _sizes(config)
    if config.model.starts_from == start.model.family:
        theirs["model.family"] = config.model.family
    if theirs != ours:
        differing = {option: value for option, value in ours.items() if theirs.get(option) != value}
        raise DqdetError(
            f"init={source}: looks like {_listed(theirs)}; the model to train differs in {_listed(differing)}; "
            "choose another preset, set these options, or take other weights"
        )


def _sizes(config: Config) -> dict[str, Any]:
    """The options that decide which parameters a model has, and what they mean, the colours of its images included."""
    backbone = config.model.backbone
    architecture = SHORT_NAMES.get(backbone.name, backbone.name).split(".")[0]
    options = config.model.model_dump(exclude={"backbone", "dropout", "see_padding", "norm_epsilon"})
    options |= {"backbone.name": architecture, "backbone.freeze": bool(backbone.freeze)}
    if isinstance(backbone, WindowedVitConfig):
        attention = backbone.model_dump(include={"patch", "positions", "windows", "global_blocks", "taps"})
        options |= {f"backbone.{option}": value for option, value in attention.items()}
    colours = {f"data.{name}": [round(value, 4) for value in getattr(config.data, name)] for name in ("mean", "std")}
    return {f"model.{option}": value for option, value in options.items()} | colours


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{option}={value}" for option, value in options.items())


def _parts(names: Iterable[str]) -> list[str]:
    """Where in a model these parameters are, without repetition: queries.coefficients."""
    return sorted({".".join(name.split(".")[:2]) for name in names})
