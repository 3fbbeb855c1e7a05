"""What is in folders, also in linked ones, and names for what goes into them."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path, PurePosixPath


def folders_below(
    root: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As ``os.walk``, through links as well, and into each folder once."""
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=onerror):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        yield Path(folder), subfolders, names


def files_below(folder: Path, suffixes: Container[str]) -> list[Path]:
    """The files in a folder and its subfolders with one of these suffixes, of small letters, sorted; no hidden ones.

    Links to nothing are among them, so that opening them says so.
    """
    files = (inside / name for inside, _, names in folders_below(folder) for name in names)
    return sorted(file for file in files if has_suffix(file, suffixes) and (file.is_file() or file.is_symlink()))


def has_suffix(file: Path, suffixes: Container[str]) -> bool:
    """Whether a file has one of them, in letters of any size, and is not hidden (``._1.xml``)."""
    return file.suffix.lower() in suffixes and not file.name.startswith(".")


def numbered(names: Iterable[str]) -> list[str]:
    """The same names, with a number where one was there before: ``a.png``, ``a-2.png``."""
    distinct: dict[str, None] = {}
    for name in names:
        path, number = PurePosixPath(name), 1
        while name in distinct:
            number += 1
            name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        distinct[name] = None
    return list(distinct)
