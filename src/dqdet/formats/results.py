"""Results files in the official formats, and results that are too large for the memory, kept on disk until they are
written: compressed, one list of entries an image or video."""

from __future__ import annotations

import json
import math
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from torchvision.ops import box_convert

from dqdet.errors import DqdetError
from dqdet.types import ImageDetections, PanopticMap, Track

Entries = list[dict[str, Any]]  # of a results file in COCO's format
IouType = Literal["bbox", "segm"]


def check_finite(numbers: Iterable[float]) -> None:
    """Raise DqdetError if scores or boxes are NaN or infinite, which no results file can hold."""
    if not math.isfinite(sum(numbers)):
        raise DqdetError(
            "the model predicts NaN, so its weights are too large or damaged; use another checkpoint, or "
            "train.precision=32 in training"
        )


def coco_results(
    image_id: int, detections: ImageDetections, category_ids: Sequence[int], iou_type: IouType = "bbox"
) -> Entries:
    """The detections of one image as entries of a COCO results file.

    An entry has its box (``bbox``: x, y, width, height in pixels) or its mask (``segm``: compressed RLE), never both:
    the official evaluation would take the areas of masks from the boxes. Boxes are not clipped to the image, as in
    the published evaluations. An entry that belongs to a track has its ``track_id``, which evaluations do not read.

    Raises:
        DqdetError: scores or boxes are not finite.
    """
    check_finite(chain(detections.scores.tolist(), detections.boxes.flatten().tolist()))
    shapes: list[Any]
    if iou_type == "segm":
        assert detections.masks is not None, "these detections have no masks"
        key, shapes = "segmentation", detections.masks.rles
    else:
        key, shapes = "bbox", box_convert(detections.boxes, "xyxy", "xywh").tolist()
    entries = [
        {"image_id": image_id, "category_id": category_ids[label], key: shape, "score": score}
        for score, label, shape in zip(detections.scores.tolist(), detections.labels.tolist(), shapes, strict=True)
    ]
    if detections.track_ids is not None:
        for entry, number in zip(entries, detections.track_ids.tolist(), strict=True):
            entry.update({"track_id": number} if number else {})
    return entries


def panoptic_result(image_id: int, file_name: str, panoptic: PanopticMap) -> dict[str, Any]:
    """The entry of one image in the list ``annotations`` of an official results file; ``file_name`` is its PNG map."""
    return {"image_id": image_id, "file_name": file_name, "segments_info": panoptic.segments}


def video_results(video_id: int, tracks: Iterable[Track], length: int, category_ids: Sequence[int]) -> Entries:
    """The tracks of one video of ``length`` frames as entries of an official results file: an RLE a frame, or None."""
    return [
        {
            "video_id": video_id,
            "category_id": category_ids[track.label],
            "score": track.score,
            "segmentations": [track.masks.get(frame) for frame in range(length)],
        }
        for track in tracks
    ]


class GrowingList:
    """A JSON file with a list that grows, and that is whole after every call, also when the disk is full.

    Args:
        file: to write.
        name: of the list in an object; None: the file is the list.
        others: entries of the object before the list.
    """

    def __init__(self, file: Path, name: str | None = None, **others: Any) -> None:
        self.file = file.open("wb", buffering=0)
        self.tail = b"]" if name is None else b"]}"
        self.end = 0  # where the next entry goes
        self._write("[" if name is None else json.dumps({**others, name: []})[:-2])
        self.start = self.end  # of the first entry

    def extend(self, entries: Entries) -> None:
        """Raises OSError when they cannot be written; see `cut`."""
        if entries:
            separator = "\n" if self.end == self.start else ",\n"
            self._write(separator + ",\n".join(map(json.dumps, entries)))

    def finish(self, **others: Any) -> None:
        """Close the file, with more entries of the object after the list."""
        if others:
            self.tail = b"], " + json.dumps(others)[1:].encode()
            self._write("")
        self.file.close()

    def cut(self, end: int) -> None:
        """Take back all entries from an earlier ``end`` on."""
        self.end = end
        self.file.seek(end)
        self.file.write(self.tail)  # where it was before, so there is space
        self.file.truncate()

    def _write(self, text: str) -> None:
        """Instead of the tail, with the tail behind it."""
        added = text.encode()
        self.file.seek(self.end)
        left = memoryview(added + self.tail)
        while left:
            left = left[self.file.write(left) :]
        self.end += len(added)


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
