"""Where a trained model can come from: a run, an official checkpoint, a Hugging Face folder, a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.runs.folder import (
    CONFIG,
    differences,
    load_folder,
    load_metrics,
    prepare_folder,
    save_folder,
    without_pretraining,
)
from dqdet.runs.hub import download
from dqdet.weights.detectron2 import from_detectron2
from dqdet.weights.huggingface import (
    MODEL_TYPES,
    THEIR_CONFIG,
    from_huggingface,
    read_config,
    their_classes,
    their_heads,
    their_options,
)
from dqdet.weights.official import from_official
from dqdet.weights.reading import read_checkpoint
from dqdet.weights.renaming import State
from dqdet.weights.seqformer import from_seqformer
from dqdet.weights.shapes import OFFICIAL_SIGNS, describe

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # user/name
LISTED = 20  # names of parameters that a message spells out


class Trained(NamedTuple):
    """A trained model, on the CPU and ready for inference."""

    model: Detector
    config: Config
    metrics: dict[str, float]  # measured of it; empty when nothing was


def load_model(source: str | Path) -> Trained:
    """The model of a source.

    Args:
        source: the folder of a run; an official checkpoint of any family (``.pth``, ``.pkl``, or ``.safetensors``
            with the same names), or one of the published code with dynamic queries; the folder of a Hugging Face model
            (``config.json`` and ``model.safetensors``); or the name of one of these folders on the hub.

    Raises:
        DqdetError: there is no such source, it cannot be read without executing code, it is no model of any family
            here, or parameters are missing or left over.
    """
    path = Path(source)
    if not path.exists():
        if not HUB_NAME.fullmatch(str(source)):
            raise DqdetError(f"{source}: no such folder or file; give a run, a checkpoint, or a name on the hub")
        path = download(str(source))
    read: Callable[[Path], tuple[State, Config]]
    if path.is_file():
        read = _read_official
    elif (path / THEIR_CONFIG).is_file() and not (path / CONFIG).exists():
        read = _read_huggingface
    else:
        return Trained(*load_folder(path), load_metrics(path))
    try:
        state, config = read(path)
        model = create_model(without_pretraining(config))
        if found := differences(model.state_dict(), state, LISTED):
            raise DqdetError(f"looks like {config.model.family}, but has other parameters: {found}")
    except DqdetError as error:
        raise DqdetError(f"{source}: {error}") from error
    model.load_state_dict(state)
    return Trained(model.eval(), config.model_copy(update={"init": str(source)}), {})


def convert(source: str | Path, out: Path) -> None:
    """Write the model of any source as a run folder.

    Raises:
        DqdetError: as `load_model`, or ``out`` has a run already.
    """
    model, config, metrics = load_model(source)
    prepare_folder(out, config)
    save_folder(out, model, config, metrics)


def translate(official: State) -> tuple[State, str]:
    """Our parameters from those of an official checkpoint, and the family that their names tell.

    Raises:
        DqdetError: they are of no family here, or two different ones become one of ours.
    """
    family = next((family for family, sign in OFFICIAL_SIGNS.items() if sign in official), None)
    match family:
        case None:
            some = ", ".join(map(str, list(official)[:3]))
            raise DqdetError(f"not an official checkpoint of {', '.join(OFFICIAL_SIGNS)}; has {some}, ...")
        case "mask2former":
            return from_detectron2(official), family
        case "seqformer":
            return from_seqformer(official), family
        case _:
            return from_official(official, family), family


def _read_official(file: Path) -> tuple[State, Config]:
    official, arguments = read_checkpoint(file)
    if arguments.get("dilation"):
        raise DqdetError("trained with --dilation (DC5), which is not supported")
    state, family = translate(official)
    return state, describe(state, family, arguments.get("nheads", 8), arguments.get("num_queries"))


def _read_huggingface(folder: Path) -> tuple[State, Config]:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DqdetError("has no model.safetensors; Hugging Face models are read from that only")
    theirs = read_config(folder)
    state = from_huggingface(read_checkpoint(weights)[0], theirs)
    config = describe(state, MODEL_TYPES[theirs["model_type"]], their_heads(theirs), names=their_classes(theirs))
    return state, override(config, their_options(theirs))
