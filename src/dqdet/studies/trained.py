"""The trained models that a study looks into: one that was given, or its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dqdet.config import Config, override_some, parse_overrides
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.runs.folder import MEASURED, NOT_MEASURED
from dqdet.runs.sources import load_model
from dqdet.studies.comparison import Arm, training
from dqdet.studies.request import Request, Subject, subjects
from dqdet.studies.running import is_finished, none_finished, run_all
from dqdet.training.evaluation import LOADED


class Examined(NamedTuple):
    """A trained model, and where a study keeps what it found of it."""

    label: str
    published: str  # the preset whose numbers the paper has
    source: str
    folder: Path


def examined(request: Request, own: Mapping[str, Subject], arm: Arm, seeds: int) -> list[Examined]:
    """The given model, or those that the study trains, trained.

    Args:
        request: of the study.
        own: what it trains by default.
        arm: the kind of queries it needs.
        seeds: of each, by default.

    Raises:
        DqdetError: a training fails, or with ``report`` none is there.
    """
    if request.model is not None:
        if request.preset is not None:
            raise DqdetError("--preset is what to train, --model is trained already; leave out one of them")
        return [Examined(request.model, "", request.model, request.out)]
    every = subjects(request, own)
    request.check_labels(every)
    chosen = request.chosen(every)
    trainings = {
        (label, seed): training(request, label, subject, next(iter(arm.options.values())), arm, seed)
        for seed in range(request.seeds or seeds)
        for label, subject in chosen.items()
    }
    if not request.report:
        run_all(list(trainings.values()), request.jobs, request.say)
    found = [
        Examined(label, chosen[label].published, str(one.folder), one.folder)
        for (label, _), one in trainings.items()
        if is_finished(one.folder)
    ]
    if not found:
        raise none_finished(request.out, request.name)
    return found


def opened(one: Examined, request: Request) -> tuple[Detector, Config]:
    """The model, on the CPU, and its configuration; of a given one with the request's options for data and inference.

    Raises:
        DqdetError: as `load_model`, or an option has no effect on a trained model.
    """
    model, config, _ = load_model(one.source)
    given: Mapping[str, Any] = parse_overrides(request.overrides) if request.model is not None else {}
    return model, override_some(config, given, (*MEASURED, *LOADED), NOT_MEASURED)
