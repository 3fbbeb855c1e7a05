"""Where a trained model can come from: a run, an official checkpoint, a Hugging Face folder, a name on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dqdet.config import Config
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.runs.folder import (
    CONFIG,
    check_finite,
    differences,
    load_folder,
    load_metrics,
    new_run,
    run_folder,
    save_folder,
    without_pretraining,
)
from dqdet.runs.hub import download
from dqdet.weights import read_huggingface, read_official
from dqdet.weights.huggingface import THEIR_CONFIG

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # user/name
NOT_TRAINED = {"step": 0}  # metrics of a model that was converted, or derived from another one
LISTED = 20  # names of parameters that a message spells out


class Trained(NamedTuple):
    """A trained model, on the CPU and ready for inference."""

    model: Detector
    config: Config
    metrics: dict[str, float]  # measured of it, and the ``step`` of its training that it is from, as far as is known


def weights_of(source: str | Path) -> list[list[str | int]]:
    """What changes when the weights of a source do: name, size and time of each file that has some."""
    place = Path(source)
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place] * place.is_file()
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def load_model(source: str | Path) -> Trained:
    """The model of a source.

    Args:
        source: the folder of a run, or a file in it (``last.ckpt``: its newest weights); an official checkpoint of any
            family (``.pth``, ``.pkl``, or ``.safetensors`` with the same names), or one of the published code with
            dynamic queries; the folder of a Hugging Face model (``config.json`` and ``model.safetensors``); or the name
            of one of these folders on the hub.

    Raises:
        DqdetError: there is no such source, it cannot be read without executing code, it is no model of any family
            here, or parameters are missing or left over.
    """
    path = Path(source)
    if not os.path.exists(path):
        if not HUB_NAME.fullmatch(str(source)):
            raise DqdetError(f"{source}: no such folder or file; give a run, a checkpoint, or a name on the hub")
        path = download(str(source))
    folder = run_folder(path)
    if not folder.is_file() and ((folder / CONFIG).exists() or not (folder / THEIR_CONFIG).is_file()):
        return Trained(*load_folder(path), load_metrics(path))
    try:
        state, config = read_official(path) if path.is_file() else read_huggingface(path)
        model = create_model(without_pretraining(config))
        if found := differences(model.state_dict(), state, LISTED):
            raise DqdetError(f"looks like {config.model.family}, but has other parameters: {found}")
    except DqdetError as error:
        raise DqdetError(f"{source}: {error}") from error
    model.load_state_dict(state)
    check_finite(model.state_dict(), str(source))
    return Trained(model.eval(), config.model_copy(update={"init": str(source)}), dict(NOT_TRAINED))


def write_derived(
    source: str | Path, out: Path, derive: Callable[[Detector, Config], tuple[Detector, Config]], same: bool = True
) -> None:
    """Write what is made of the model of any source as a run folder.

    Args:
        source: as for `load_model`.
        out: the folder.
        derive: makes another model and its configuration.
        same: whether outputs stay the same, so that what was measured of the source holds for it, too.

    Raises:
        DqdetError: as `load_model` and ``derive``, or ``out`` has a run already.
    """
    model, config, metrics = load_model(source)
    try:
        model, config = derive(model, config)
    except DqdetError as error:
        raise DqdetError(f"{source}: {error}") from error
    config.init = str(source)
    with new_run(out, config):
        save_folder(out, model, config, (metrics if same else {}) | NOT_TRAINED)


def convert(source: str | Path, out: Path) -> None:
    """Write the model of any source as a run folder.

    Raises:
        DqdetError: as `load_model`, or ``out`` has a run already.
    """
    model, config, metrics = load_model(source)
    with new_run(out, config):
        save_folder(out, model, config, metrics)
