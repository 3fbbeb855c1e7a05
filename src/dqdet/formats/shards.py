"""Shards: uncompressed tar files with many images and their annotations, as the webdataset library has them.

The files of a sample have one key, their path up to the first dot of its last part: ``000017.jpg``, ``000017.json``. So
``a.2.jpg`` accompanies ``a.jpg`` or ``a.json`` and is not used; without these its key has dots, and is ``a.2``.
Where each image lies is known from an index, so that it is read alone, in any order, from a disk or over HTTP.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from dqdet.errors import DqdetError, listed, printable
from dqdet.formats.image_files import IMAGE_SUFFIXES, Encoded
from dqdet.formats.image_headers import AT_ONCE, opened_header_fault
from dqdet.formats.remote import is_address, read_part
from dqdet.formats.writing import replacing

USED = (*IMAGE_SUFFIXES, ".json")  # of the files of a sample
BLOCK = 512  # bytes, of which tar files are made; one of zeros is the end
BEGINNING = 2**16  # bytes of an image that most headers fit into
REPAIR = "copy the shard again"
ANEW = "copy the shards again, or remove the index, which is then made anew"
THERE = "copy the shards and their index there again"  # behind an address, where none is made


@dataclass(frozen=True)
class Member:
    """An image inside a shard.

    Attributes:
        shard: its path or address.
        name: of the image.
        offset: of its first byte, in the shard.
        length: in bytes.
        crc32: of them.
        kept: file that has a copy of what was fetched; None: it is fetched each time.
    """

    shard: str
    name: str
    offset: int
    length: int
    crc32: int
    kept: Path | None = None

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def read_bytes(self) -> bytes:
        """Raises DqdetError where the shard cannot be read, ends before, or has something else there."""
        if self.kept is not None:
            with suppress(OSError):
                content = self.kept.read_bytes()
                if zlib.crc32(content) == self.crc32:
                    return content
        content = self.part(self.length)
        if len(content) < self.length:
            raise DqdetError(f"{self}: the shard is cut short there; {REPAIR}")
        if zlib.crc32(content) != self.crc32:
            advice = THERE if is_address(self.shard) else ANEW
            raise DqdetError(f"{self}: is not what the index of the shards says; {advice}")
        if self.kept is not None:
            with suppress(OSError), replacing(self.kept) as unfinished:  # a full disk is no reason to stop
                unfinished.write_bytes(content)
        return content

    def part(self, length: int) -> bytes:
        """The first bytes, fewer where the shard ends before; raises DqdetError where it cannot be read."""
        if is_address(self.shard):
            return read_part(self.shard, self.offset, length)[0]
        try:
            with open(self.shard, "rb", buffering=0) as opened:
                return os.pread(opened.fileno(), length, self.offset)
        except OSError as error:
            raise DqdetError(f"{self}: cannot be read ({error.strerror}); {REPAIR}") from error

    def encoded(self) -> Encoded:
        """The image file, read."""
        return Encoded(str(self), self.read_bytes())

    def header_fault(self, size: tuple[int, int]) -> str | None:
        """Why the image cannot be used, as far as its header tells, or None; ``size`` is its height and width."""
        try:
            beginning = self.part(min(self.length, BEGINNING))
            fault = opened_header_fault(BytesIO(beginning), size)
            if fault and self.length > BEGINNING:  # long notes before the size
                fault = opened_header_fault(BytesIO(self.read_bytes()), size)
        except DqdetError as error:
            return str(error)
        return fault and f"{self} {fault}"


class Shards(Sequence[Member]):
    """The images in the shards of a split, in the order of the index.

    They are kept in arrays, which processes of a loader share.

    Args:
        root: folder or address of the shards.
        index: of each shard its ``name``, ``bytes``, and of its images ``members``, ``offsets``, ``lengths`` and
            ``crc32``.
        folder: for copies of what is fetched from an address.
        keep: bytes of them at most: those of the first images. All images are read once an epoch, so that it does not
            matter which are kept, and always the same are better than the last ones.

    Raises:
        ValueError: it is no such index.
    """

    def __init__(self, root: str, index: Any, folder: Path, keep: int = 0) -> None:
        self.root, self.folder = root, folder
        if not isinstance(index, list):
            raise ValueError("has no list of shards")
        try:
            self.names = [shard["name"] for shard in index]
            self.sizes = [int(shard["bytes"]) for shard in index]
            sizes = np.array(self.sizes, dtype=np.int64)
            columns = [
                [entry for shard in index for entry in shard[name]]
                for name in ("members", "offsets", "lengths", "crc32")
            ]
            counts = [len(shard["members"]) for shard in index]
            self.members = np.array(columns[0], dtype=np.str_)  # [images]
            self.offsets, self.lengths, self.crc32 = (np.array(column, dtype=np.int64) for column in columns[1:])
        except KeyError as error:
            raise ValueError(f"has no {error}") from error
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from error
        if not all(isinstance(name, str) and name == PurePosixPath(name).name for name in self.names):
            raise ValueError("has names that are none of files")
        shapes = {array.shape for array in (self.members, self.offsets, self.lengths, self.crc32)}
        if len(shapes) > 1 or min(self.offsets.min(initial=0), self.lengths.min(initial=0)) < 0:
            raise ValueError("has lists that do not fit each other")
        self.shards = np.repeat(np.arange(len(self.names)), counts)  # [images]
        if (self.lengths > sizes[self.shards] - self.offsets).any():
            raise ValueError("has images beyond the end of their shard")
        self.kept = np.cumsum(self.lengths) <= (keep if is_address(root) else 0)  # [images]

    def place(self, name: str) -> str:
        """The path or address of a shard."""
        return f"{self.root.rstrip('/')}/{quote(name)}" if is_address(self.root) else str(Path(self.root) / name)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        name = self.names[self.shards[index]]
        offset, crc32 = int(self.offsets[index]), int(self.crc32[index])
        kept = self.folder / name / f"{offset}-{crc32:08x}" if self.kept[index] else None
        return Member(self.place(name), str(self.members[index]), offset, int(self.lengths[index]), crc32, kept)

    def check(self) -> None:
        """Raises DqdetError for all shards that are missing or have other lengths than the index says, or no answer."""

        def fault(name: str, size: int) -> str | None:
            place = self.place(name)
            try:
                found = read_part(place, 0, 1)[1] if is_address(place) else os.stat(place).st_size
            except OSError as error:
                return f"{place}: cannot be read ({error.strerror})"
            if found == size:
                return None
            return f"{place}: has {found} bytes instead of {size}, so it is cut short or another one"

        with ThreadPoolExecutor(AT_ONCE) as threads:
            faults = [found for found in threads.map(fault, self.names, self.sizes) if found]
        if faults:
            raise DqdetError(f"{listed(faults, '; ')}; {THERE if is_address(self.root) else ANEW}")


@dataclass
class Sample:
    """What a shard has of a sample."""

    image: Member | None = None
    record: Any = None  # what its JSON file says
    place: str = ""  # of that


def read_samples(shard: Path) -> tuple[list[Sample], list[str]]:
    """All samples of a shard in the order of their first files, and what is wrong with them.

    Raises:
        DqdetError: it is no uncompressed tar file, or is cut short.
    """
    samples: dict[str, Sample] = {}
    faults: list[str] = []
    end, last = 0, ""
    files: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                end, last = info.offset_data + -(-info.size // BLOCK) * BLOCK, info.name
                if info.isfile() and not PurePosixPath(info.name).name.startswith("."):
                    files.append(info)
            for info, key in zip(files, keys_of([info.name for info in files]), strict=True):
                if key is None:
                    continue
                opened = tar.extractfile(info)
                assert opened is not None, "a file can be extracted"
                faults += _add(samples.setdefault(key, Sample()), shard, info, opened.read())
        with shard.open("rb") as file:
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("no end of the archive")
    except (tarfile.TarError, EOFError) as error:
        place = f"after {printable(last)} " if last else ""
        raise DqdetError(
            f"{shard}: cannot be read as an uncompressed tar file {place}({error}); it is cut short or none: {REPAIR}"
        ) from error
    except OSError as error:
        raise DqdetError(f"{shard}: cannot be read ({error.strerror}); {REPAIR}") from error
    for key, sample in samples.items():
        if sample.image is None:
            faults.append(f"{shard.name}: {key}.json has no image of that name")
        elif not sample.place:
            faults.append(f"{shard.name}: {sample.image.name} has no annotations, {key}.json")
    return list(samples.values()), faults


def _add(sample: Sample, shard: Path, info: tarfile.TarInfo, content: bytes) -> Iterator[str]:
    """Yields what is wrong with it."""
    place = f"{shard.name}: {info.name}"
    if not info.name.lower().endswith(".json"):
        if sample.image is not None:
            yield f"{place} is another image of {sample.image.name}"
        if info.issparse():
            yield f"{place} is stored with holes"
        sample.image = Member(str(shard), info.name, info.offset_data, len(content), zlib.crc32(content))
        return
    if sample.place:
        yield f"{place} is there twice"
    sample.place = place
    try:
        sample.record = json.loads(content)
    except (ValueError, RecursionError) as error:
        yield f"{place} is no JSON ({error})"


def keys_of(names: Sequence[str]) -> list[str | None]:
    """The keys of files in a shard, as this module's docstring says; None: a file is not used."""
    parted = [_split(name) for name in names]
    plain = {key for key, suffix in parted if suffix in USED}
    keys: list[str | None] = []
    for name, (key, suffix) in zip(names, parted, strict=True):
        if suffix in USED:
            keys.append(key)
        else:
            keys.append(name.rpartition(".")[0] if suffix.endswith(USED) and key not in plain else None)
    return keys


def _split(name: str) -> tuple[str, str]:
    """The path of a file up to the first dot of its last part, and what follows, of small letters."""
    folder, slash, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    return f"{folder}{slash}{key}", f".{suffix.lower()}"


class ShardWriter:
    """Writes samples into shards ``NAME-000000.tar``, ... of a folder, one after the other.

    Args:
        folder: that is there.
        name: of the split.
        largest: bytes of images that a shard has at most, unless one alone has more.
    """

    def __init__(self, folder: Path, name: str, largest: int) -> None:
        self.folder, self.name, self.largest = folder, name, largest
        self.written: list[Path] = []
        self.count = self.bytes = 0
        self.tar: tarfile.TarFile | None = None

    def add(self, suffix: str, image: bytes, record: dict[str, Any]) -> None:
        """Raises OSError when it cannot be written."""
        if self.tar is None or self.bytes + len(image) > self.largest > 0 < self.bytes:
            self.close()
            self.written.append(self.folder / f"{self.name}-{len(self.written):06}.tar")
            self.tar, self.bytes = tarfile.open(self.written[-1], "w", format=tarfile.USTAR_FORMAT), 0  # noqa: SIM115, it stays open
        for ending, content in ((suffix.lower(), image), (".json", json.dumps(record).encode())):
            info = tarfile.TarInfo(f"{self.count:09}{ending}")
            info.size = len(content)
            self.tar.addfile(info, BytesIO(content))
        self.count += 1
        self.bytes += len(image)

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()
            self.tar = None
