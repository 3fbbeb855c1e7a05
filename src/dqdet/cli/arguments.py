"""Arguments that several commands take, and how they are read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dqdet.config import Precision, parse_overrides, preset_names
from dqdet.errors import DqdetError

OPTION = re.compile(r"[a-z_]+(\.[a-z_]+)*=")  # what an argument begins with that is an option, and no file


def complete_preset(typed: str) -> list[str]:
    """Names of presets that begin with this."""
    return [name for name in preset_names() if name.startswith(typed)]


def complete_training(typed: str) -> list[str]:
    """The same, and auto."""
    return [*(["auto"] if "auto".startswith(typed) else []), *complete_preset(typed)]


PRESET = {
    "metavar": "[PRESET]",
    "help": "A name from `dqdet presets`, auto to choose one by data and machine, or a config.yaml.",
    "autocompletion": complete_training,
}

Options = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OPTION=VALUE]...",
        help="For example train.epochs=12 queries.kind=static; `dqdet presets NAME` prints all options.",
    ),
]
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a run, its last.ckpt for the newest weights, or a file from `dqdet export`."
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder of a run, official checkpoint, folder of a Hugging Face model, its name on the hub, or a file "
        "from `dqdet export`.",
    ),
]
FastPrecision = Annotated[
    Precision, typer.Option(help="Precision of weights and features; bf16 is the fastest on machines that have it.")
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network first: takes a minute, then runs faster; for many images."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite results of another source or model.")]
NewRun = Annotated[Path, typer.Option(help="Folder for the new run.")]


def overrides_of(of: Callable[..., Any], options: list[str] | None) -> dict[str, Any]:
    """Options for a function that takes them beside arguments of its own, which are no options."""
    overrides = parse_overrides(options or [])
    for path in overrides.keys() & inspect.signature(of).parameters.keys():
        raise DqdetError(f"unknown option '{path}'; `dqdet presets NAME` prints all options; others begin with --")
    return overrides


def sides_of(text: str) -> tuple[int, int]:
    """Height and width of ``640`` or ``480x640``."""
    sides = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if sides is None:
        raise DqdetError(f"--size {text}: not a size; give one number, such as 640, or height x width, such as 480x640")
    height, width = sides.groups()
    return int(height), int(width or height)
