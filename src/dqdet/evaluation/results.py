"""Results that are too large for the memory: on disk, compressed, one list of entries an image or video."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dqdet.errors import DqdetError

Entries = list[dict[str, Any]]  # of a results file in COCO's format


class StoredResults(Mapping[int, Entries]):
    """Image id -> its entries. The last ones that are given for an image count.

    They lie in a file without a name in the system's folder for temporary files, which ends with the process,
    however that ends.
    """

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115, it stays open
        self.places: dict[int, tuple[int, int]] = {}  # image id -> start and length in the file

    def __setitem__(self, image_id: int, entries: Entries) -> None:
        """Raises DqdetError when the disk is full."""
        self._append(image_id, zlib.compress(json.dumps(entries).encode(), level=1))

    def _append(self, image_id: int, packed: bytes) -> None:
        try:
            start = self.file.seek(0, 2)
            self.file.write(packed)
            self.file.flush()
        except OSError as error:
            raise DqdetError(
                f"{tempfile.gettempdir()}: results cannot be written ({error.strerror}); make space, or choose "
                "another folder by the environment variable TMPDIR"
            ) from error
        self.places[image_id] = (start, len(packed))

    def _packed(self, image_id: int) -> bytes:
        start, length = self.places[image_id]
        self.file.seek(start)
        return self.file.read(length)

    def __getitem__(self, image_id: int) -> Entries:
        return json.loads(zlib.decompress(self._packed(image_id)))

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def write(self, file: Path) -> None:
        """All entries as a results file, an image at a time. Raises OSError when it cannot be written."""
        with file.open("w") as out:
            separator = "["
            for entries in self.values():
                for entry in entries:
                    out.write(separator + json.dumps(entry))
                    separator = ",\n"
            out.write("[]" if separator == "[" else "]")

    def gather(self) -> None:
        """Give the first process the results of all processes; of an image that several saw, one result."""
        if not dist.is_initialized():
            return
        first = dist.get_rank() == 0
        shares: list[dict[int, bytes]] | None = [{} for _ in range(dist.get_world_size())] if first else None
        dist.gather_object({} if first else {image_id: self._packed(image_id) for image_id in self.places}, shares)
        for share in shares or ():
            for image_id, packed in share.items():
                self._append(image_id, packed)
