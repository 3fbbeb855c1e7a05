"""The formats as data: what each one can carry, and why not. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dqdet.config import Config, from_yaml
from dqdet.errors import DqdetError


@dataclass(frozen=True)
class Request:
    """What is to be exported."""

    config: Config
    size: tuple[int, int] | None  # height and width; None: any
    half: bool


@dataclass(frozen=True)
class Unable:
    """What a format cannot carry."""

    where: Callable[[Request], bool]
    because: str  # with what to do


@dataclass(frozen=True)
class Format:
    """A kind of file for one runtime."""

    suffix: str
    module: str  # of this package, which writes and opens such files
    writing: tuple[str, ...]  # packages that it needs to write them,
    opening: tuple[str, ...]  # and to open them
    extra: str  # of dqdet, that installs these
    unable: tuple[Unable, ...] = ()


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


def check_installed(what: str, wanted: Format, packages: tuple[str, ...]) -> None:
    """Raise DqdetError if packages that ``what`` needs are missing."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise DqdetError(f"{what} needs {' and '.join(missing)}: pip install 'dqdet[{wanted.extra}]'")


def check_able(name: str, request: Request) -> None:
    """Raise DqdetError if the format cannot carry what is asked for."""
    for unable in FORMATS[name].unable:
        if unable.where(request):
            raise DqdetError(f"--format {name}: cannot carry this {request.config.model.family}: {unable.because}")


def check_source(name: str, source: Path, size: tuple[int, int] | None, half: bool) -> None:
    """Raise DqdetError if the format cannot carry what the configuration of a run says, before the run is loaded."""
    if is_exported(source):
        raise DqdetError(f"{source}: is exported already; give the run that it was made from")
    file = source / "config.yaml"
    if file.is_file():
        check_able(name, Request(from_yaml(file.read_text(encoding="utf-8"), str(file)), size, half))


def is_exported(path: str | Path) -> bool:
    """Whether a path is that of an exported file, by its suffix."""
    return any(Path(path).suffix == one.suffix for one in FORMATS.values())
