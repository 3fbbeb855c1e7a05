"""Headers of image files: what is wrong with those of a whole data set, known before anything is read of it.

Files are looked at in parallel. Those that were right are remembered by their names, sizes and times in a file of the
user's cache (``XDG_CACHE_HOME``, by default ``~/.cache``), so that the next training does not look at them again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TypeAlias

import numpy as np
from PIL import Image

from dqdet.formats.image_files import one_line, pages

Size: TypeAlias = tuple[int, int]  # height, width

AT_ONCE = 8  # files: reading a header is waiting for the disk
PART = 1000  # files that a thread looks at in a row
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF


def header_fault(file: str, size: Size | None) -> str | None:
    """Why an image file cannot be used, or None; its pixels are not read.

    Args:
        file: its path.
        size: that it should have, as stored or as its EXIF orientation turns it; None: any.
    """
    try:
        # Not by its path: opening a named pipe would wait for its other end.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                return "is no regular file"
            return opened_header_fault(opened, size)
    except (OSError, ValueError) as error:
        return f"cannot be read as an image ({one_line(error)})"


def opened_header_fault(opened: IO[bytes], size: Size | None) -> str | None:
    """As `header_fault` of an opened file."""
    try:
        with Image.open(opened) as image:
            width, height = image.size
            if (count := len(pages(image))) > 1:
                return f"has {count} frames or pages, of which only one would be used"
            if size is None or size == (height, width):
                return None
            if size == (width, height) and image.getexif().get(ORIENTATION) in TURNED:
                return None
    except Exception as error:  # whatever Pillow raises on damaged bytes
        return f"cannot be read as an image ({one_line(error)})"
    return f"is {width} x {height} pixels instead of {size[1]} x {size[0]}"


def header_faults(folder: Path, names: Sequence[str], sizes: Sequence[Size] | None = None) -> list[str]:
    """All image files of a folder that cannot be used, with the reason.

    Args:
        folder: of all files.
        names: of the files, relative to ``folder``.
        sizes: that they should have.
    """
    known = _known(folder)

    def checked(start: int) -> tuple[list[int], list[str]]:
        """Keys of the files that are right, and the faults of the others."""
        keys, faults = [], []
        for index in range(start, min(start + PART, len(names))):
            file, size = os.path.join(folder, names[index]), None if sizes is None else sizes[index]
            key = _key(file, size)
            reason = None if key in known else header_fault(file, size)
            if reason is None:
                keys.append(key)
            else:
                faults.append(f"{names[index]} {reason}")
        return keys, faults

    with ThreadPoolExecutor(AT_ONCE) as threads:
        parts = list(threads.map(checked, range(0, len(names), PART)))
    keys = {key for part, _ in parts for key in part}
    if not keys <= known:
        _remember(folder, keys | known)
    return [fault for _, faults in parts for fault in faults]


def _key(file: str, size: Size | None) -> int:
    """64 bits that tell a file from all others and from itself before a change; 0 where there is none."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return 0
    text = f"{file}\n{found.st_size}\n{found.st_mtime_ns}\n{found.st_ino}\n{size}"
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest())


def _cache(folder: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
    return Path(home) / "dqdet" / "images" / name


def _known(folder: Path) -> set[int]:
    """Keys of files that were right. A cache that cannot be read, or was damaged, knows none."""
    try:
        digest, content = (packed := _cache(folder).read_bytes())[:16], packed[16:]
    except (OSError, RuntimeError):
        return set()
    if hashlib.blake2b(content, digest_size=16).digest() != digest or len(content) % 8:
        return set()
    return set(np.frombuffer(content, dtype=np.uint64).tolist()) - {0}


def _remember(folder: Path, keys: set[int]) -> None:
    """Write the cache beside the old one and put it in its place, so that several trainings may start at once."""
    content = np.array(sorted(keys), dtype=np.uint64).tobytes()
    try:
        file = _cache(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=file.parent, prefix=".", delete=False) as written:
            try:
                written.write(hashlib.blake2b(content, digest_size=16).digest() + content)
                written.close()
                os.replace(written.name, file)
            except OSError:
                os.unlink(written.name)
                raise
    except (OSError, RuntimeError):
        return  # the next training looks at the files again
