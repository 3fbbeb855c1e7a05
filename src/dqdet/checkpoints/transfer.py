"""Trainings that start from the weights of another model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from dqdet.checkpoints.sources import load_model
from dqdet.checkpoints.upgrade import repeat_queries
from dqdet.config import Config
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.nn.backbone import SHORT_NAMES

# Parameters that make queries of the image's context, for the pooling and the basic queries of their model only.
MADE_FOR_QUERIES = ("queries.coefficients.", "queries.generate.")


def start_from(source: str, model: Detector, config: Config) -> str:
    """Fill a new model with the weights of another one, wherever they fit.

    Backbone, encoder, decoder and box heads are taken over whole, class heads class by class, by their names.
    Learned queries are taken over where both models have as many; static ones become the basic queries of a
    modulated model, as in `dqdet.checkpoints.upgrade`. What remains stays as it was made.

    Args:
        source: as for `load_model`.
        model: made by ``create_model(config)``; changed in place.
        config: of that model, with its classes.

    Returns:
        what was loaded, re-made and ignored, in one line.

    Raises:
        DqdetError: as `load_model`, or the source has another family or other sizes.
    """
    start, start_config, _ = load_model(source)
    _check_sizes(source, start_config, config)
    made, found = model.state_dict(), start.state_dict()
    repeated = start_config.queries.kind == "static" and config.queries.kind == "modulated"
    if repeated:
        found = repeat_queries(found, config.queries.ratio)

    labels = _same_classes(start_config.classes, config.classes)
    outputs = labels | {len(config.classes): len(start_config.classes)}  # "no object", in families that have it
    proposals = f"class_head.{config.model.decoder_layers}."  # of two-stage models; output 0 means any object there
    heads = {
        name: _head(made[name], found[name], {0: 0} if name.startswith(proposals) else outputs)
        for name in made
        if name.startswith("class_head.")
    }
    fixed = () if start_config.queries == config.queries else MADE_FOR_QUERIES
    loaded = {
        name: tensor
        for name, tensor in found.items()
        if name in made and made[name].shape == tensor.shape and not name.startswith(("class_head.", *fixed))
    }
    model.load_state_dict(made | loaded | heads)

    same_classes = start_config.classes == config.classes
    taken = loaded.keys() | (heads.keys() if same_classes else set())
    remade, ignored = _parts(made.keys() - taken - heads.keys()), _parts(found.keys() - taken - heads.keys())
    if not same_classes:
        remade.append(f"class_head (with {len(labels)} of {len(config.classes)} classes known by name)")
        ignored.append(f"{len(start_config.classes) - len(labels)} classes")
    times = f", the queries {config.queries.ratio} times" if repeated else ""
    return (
        f"init={source}: loaded {len(taken)} of {len(made)} tensors{times}; re-made {', '.join(remade) or 'nothing'}; "
        f"ignored {', '.join(ignored) or 'nothing'}"
    )


def _same_classes(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """New label -> old label of the classes in both lists. Names that a list has twice are nobody's."""
    if old == new:
        return {label: label for label in range(len(new))}
    return {label: old.index(name) for label, name in enumerate(new) if old.count(name) == 1 and new.count(name) == 1}


def _head(made: Tensor, found: Tensor, outputs: dict[int, int]) -> Tensor:
    """A class head's weight or bias as it was made, with some outputs (new -> old) of another one."""
    head = made.clone()
    for new, old in outputs.items():
        if new < len(head):
            head[new] = found[old]
    return head


def _check_sizes(source: str, start: Config, config: Config) -> None:
    theirs, ours = _sizes(start), _sizes(config)
    if theirs != ours:
        differing = {option: value for option, value in ours.items() if theirs.get(option) != value}
        raise DqdetError(
            f"init={source}: looks like {_listed(theirs)}; the model to train differs in {_listed(differing)}; "
            "choose another preset, set these options, or take other weights"
        )


def _sizes(config: Config) -> dict[str, Any]:
    """The options that decide what a model computes from its parameters, and which ones it has."""
    backbone = config.model.backbone
    architecture = SHORT_NAMES.get(backbone.name, backbone.name).split(".")[0]
    options = config.model.model_dump(exclude={"backbone", "dropout"})
    options |= {"backbone.name": architecture, "backbone.freeze": backbone.freeze}
    return {f"model.{option}": value for option, value in options.items()}


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{option}={value}" for option, value in options.items())


def _parts(names: Iterable[str]) -> list[str]:
    """Where in a model these parameters are, without repetition: queries.coefficients."""
    return sorted({".".join(name.split(".")[:2]) for name in names})
