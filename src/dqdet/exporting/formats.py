"""The formats as data: their suffixes and what they need. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from dqdet.errors import DqdetError


@dataclass(frozen=True)
class Format:
    """A kind of file for one runtime."""

    suffix: str
    module: str  # of this package, which writes and opens such files
    writing: tuple[str, ...]  # packages that it needs to write them,
    opening: tuple[str, ...]  # and to open them
    extra: str  # of dqdet, that installs these


Resolution = Literal["quarter", "full"]  # of masks, as a share of that of the images

# By data.task: why a file has no masks of the full resolution.
WITHOUT_FULL_MASKS = {
    "detection": "has no masks",
    "panoptic": "gives the masks of all queries, which would be sixteen times as large before dqdet joins them",
    "video": "gives the masks of all queries and frames, which would be sixteen times as large before dqdet joins them",
}

FORMATS = {
    "onnx": Format(".onnx", "onnx_files", ("onnx", "onnxscript"), ("onnxruntime",), "export"),
    "openvino": Format(".xml", "openvino_files", ("onnx", "onnxscript", "openvino"), ("openvino",), "openvino"),
    "torch": Format(".pt2", "torch_files", (), (), ""),
}


def format_of(name: str | None, out: Path) -> str:
    """The format that is asked for, by its name or by the suffix of the file.

    Raises:
        DqdetError: there is no such format, its files have another suffix, or a package is missing.
    """
    if name is None:
        name = next((known for known, one in FORMATS.items() if one.suffix == out.suffix), None)
        if name is None:
            suffixes = ", ".join(one.suffix for one in FORMATS.values())
            raise DqdetError(f"{out}: no format is known by its suffix; end the name in one of {suffixes}")
    if name not in FORMATS:
        raise DqdetError(f"--format {name}: no such format; there are {', '.join(FORMATS)}")
    wanted = FORMATS[name]
    if out.suffix != wanted.suffix:
        raise DqdetError(f"{out}: files of format {name} end in {wanted.suffix}; name it {out.stem}{wanted.suffix}")
    check_installed(f"--format {name}", wanted, wanted.writing)
    return name


def check_masks(resolution: str, task: str) -> None:
    """Raise DqdetError if a model of ``data.task`` gives no masks of this resolution."""
    if resolution not in get_args(Resolution):
        raise DqdetError(f"--masks {resolution}: no such resolution; there are {', '.join(get_args(Resolution))}")
    if resolution == "full" and (reason := WITHOUT_FULL_MASKS.get(task)):
        raise DqdetError(f"--masks full: a model of data.task={task} {reason}; leave it out")


def check_installed(what: str, wanted: Format, packages: tuple[str, ...]) -> None:
    """Raise DqdetError if packages that ``what`` needs are missing."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise DqdetError(f"{what} needs {' and '.join(missing)}: pip install 'dqdet[{wanted.extra}]'")


def is_exported(path: str | Path) -> bool:
    """Whether a path is that of an exported file, by its suffix."""
    return any(Path(path).suffix == one.suffix for one in FORMATS.values())
