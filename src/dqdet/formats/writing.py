"""Files that appear whole: written beside their place, and put there when they are finished."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dqdet.errors import DqdetError

# The last ones are those of version 0.1.0.
UNFINISHED = re.compile(
    r"\.(?P<process>\d+)-\d+\.unfinished(\..*)?"
    r"|\.(config\.yaml|model\.safetensors|metrics\.json|last\.ckpt)\.(?P<old>\d+)"
)

_numbers = itertools.count()


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A path with the same suffix beside ``place``; the file or folder written there takes its place at the end.

    A link at ``place`` is replaced, not followed. After an error everything is as before.

    Raises:
        OSError: it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(place.parent, place.suffix)
    try:
        yield unfinished
        unfinished.replace(place)
    finally:
        _remove(unfinished)  # it is there after an error only


def check_place(file: Path) -> None:
    """Try whether a file can be written, before the long work whose result it is to hold; its folder is made.

    Raises:
        DqdetError: it cannot.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _unfinished(file.parent)
        unfinished.touch()
        _remove(unfinished)
    except OSError as error:
        raise DqdetError(f"{file}: cannot be written ({error.strerror}); choose another place") from error


@contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """A new folder inside another one, which is gone at the end, for what is moved to its place when it is finished.

    Raises:
        OSError: it cannot be made.
    """
    folder = _unfinished(parent)
    try:
        folder.mkdir()
        yield folder
    finally:
        _remove(folder)


def _unfinished(parent: Path, suffix: str = "") -> Path:
    return parent / f".{os.getpid()}-{next(_numbers)}.unfinished{suffix}"


def move_files(source: Path, target: Path) -> None:
    """Move the files of a folder and of its subfolders; files and links that are in their place are replaced."""
    for file in sorted(file for file in source.rglob("*") if file.is_file()):
        place = target / file.relative_to(source)
        if place.parent != target:
            own_folder(place.parent)
        file.replace(place)


def own_folder(path: Path) -> None:
    """Make a folder inside one that is being written; a link in its place is replaced, not followed."""
    if path.is_symlink():
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that have died were writing in a folder (not in its subfolders)."""
    for path in list(folder.iterdir()):
        if (match := UNFINISHED.fullmatch(path.name)) and not _lives(int(match["process"] or match["old"])):
            _remove(path)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user; no number of a process
        return True
    return True
