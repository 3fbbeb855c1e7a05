"""Weights of backbones alone, from files."""

from __future__ import annotations

from pathlib import Path

from dqdet.errors import DqdetError
from dqdet.weights.detectron2 import RESNET
from dqdet.weights.reading import read_checkpoint
from dqdet.weights.renaming import State, rename


def read_backbone(file: Path, name: str) -> State:
    """The parameters in a file, with the names of torchvision where detectron2 has its own for them.

    Args:
        file: as for `dqdet.weights.reading.read_checkpoint`.
        name: of the backbone, for messages.

    Raises:
        DqdetError: there is no such file, or it has no parameters.
    """
    if not file.is_file():
        raise DqdetError(f"model.backbone.weights={file}: no such file")
    try:
        state, _ = read_checkpoint(file)
    except DqdetError as error:
        raise DqdetError(f"model.backbone.weights={file}: not weights of {name} ({error})") from error
    if "stem.conv1.norm.weight" not in state:
        return state
    state = rename({f"backbone.{parameter}": tensor for parameter, tensor in state.items()}, RESNET)
    return {parameter.removeprefix("backbone.body."): tensor for parameter, tensor in state.items()}
