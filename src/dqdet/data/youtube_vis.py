"""YouTube-VIS (Yang et al., "Video Instance Segmentation", ICCV 2019), as downloaded.

The frames of a split are ``{split}/JPEGImages/{video}/{frame}.jpg`` under the root folder; its annotations are found
in one of these files:

- ``{split}.json`` (2019 edition),
- ``{split}/instances.json`` (2021 edition),
- ``annotations/instances_{split}.json`` or ``annotations/instances_{split}_sub.json`` (as others prepare it).

The annotations of the official validation split are not public. It can be opened all the same, because its results
can be written and sent to the official evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torchvision import tv_tensors

from dqdet.config import DataConfig
from dqdet.data.clips import Clip, VideoDataset
from dqdet.data.coco_files import CocoImages, find_split, refuse
from dqdet.data.dataset import Split
from dqdet.errors import value_text
from dqdet.formats.masks import EMPTY, CompressedMasks, compress, mask_area, segmentation_fault
from dqdet.formats.records import (
    category_faults,
    crowd_fault,
    is_id,
    is_text,
    read_document,
    record_faults,
    size_fault,
)

logger = logging.getLogger(__name__)


def _layouts(root: Path, name: str) -> Iterator[tuple[Path, list[Path]]]:
    frames = [root / name / "JPEGImages"]
    yield root / f"{name}.json", frames
    yield root / name / "instances.json", frames
    yield root / "annotations" / f"instances_{name}.json", frames
    yield root / "annotations" / f"instances_{name}_sub.json", frames


def _video_fault(video: dict[str, Any]) -> str | None:
    names = video.get("file_names")
    if not (isinstance(names, list) and names and all(map(is_text, names))):
        return "has no file_names"
    length = video.get("length", len(names))
    if not is_id(length) or length != len(names):
        return f"has the length {value_text(length)}, but {len(names)} file_names"
    return size_fault(video)


def _track_fault(track: dict[str, Any], videos: dict[int, dict[str, Any]], category_ids: set[int]) -> str | None:
    for key, known in (("video_id", videos), ("category_id", category_ids)):
        if not (is_id(track.get(key)) and track[key] in known):
            return f"has the unknown {key} {value_text(track.get(key))}"
    video = videos[track["video_id"]]
    if _video_fault(video) is not None:
        return None  # the video is at fault
    length = len(video["file_names"])
    for key in ("segmentations", "bboxes", "areas"):
        entries = track.get(key, [] if key == "segmentations" else [None] * length)
        if not (isinstance(entries, list) and len(entries) == length):
            count = len(entries) if isinstance(entries, list) else "no"
            return f"has {count} {key} for the {length} frames of video {video['id']}"
    visible = 0
    for frame, segmentation in enumerate(track["segmentations"]):
        reason = segmentation_fault(segmentation, video["height"], video["width"]) if segmentation else EMPTY
        if reason is None:
            visible += 1
        elif reason != EMPTY:
            return f"{reason} (segmentations[{frame}])"
    return crowd_fault(track) if visible else "is visible in no frame"


def _find_faults(document: dict[str, Any]) -> list[str]:
    """All records that cannot be used, with the reason."""
    bad_videos, _ = record_faults("video", document["videos"], _video_fault)
    bad_categories, category_ids = category_faults(document["categories"])
    videos = {video["id"]: video for video in document["videos"] if isinstance(video, dict) and is_id(video.get("id"))}
    bad_tracks, _ = record_faults(
        "annotation", document["annotations"], lambda track: _track_fault(track, videos, category_ids)
    )
    return bad_videos + bad_categories + bad_tracks


def _frames(videos: list[Any]) -> list[dict[str, Any]]:
    """A record like one of an image for every frame of the videos without fault, under the id of its video."""
    return [
        {"id": video["id"], "height": video["height"], "width": video["width"], "file_name": name}
        for video in videos
        if isinstance(video, dict) and is_id(video.get("id")) and _video_fault(video) is None
        for name in video["file_names"]
    ]


class YoutubeVisDataset(VideoDataset):
    """A split of YouTube-VIS; see the module's docstring for the files.

    Videos are in the order of their ids, labels in the order of the category ids. Crowd tracks are no targets, but
    part of ``ground_truth``. Boxes are those around the masks. Frames must have the size of their video.

    Raises:
        DqdetError: the data is missing or faulty.
    """

    def __init__(self, config: DataConfig, split: Split, seed: int = 0) -> None:
        super().__init__(config, split, seed)
        self.annotation_file, folder = find_split(config, split, _layouts)
        document = read_document(self.annotation_file, "video")
        frames = _frames(document["videos"])
        refuse(self.annotation_file, _find_faults(document), {"frames": (folder, frames)})
        if not document["annotations"]:
            logger.warning(
                f"{self.annotation_file}: has no annotations: results can be written, but nothing can be learned "
                "from it, and metrics of it say nothing"
            )

        categories = sorted(document["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        videos = sorted(document["videos"], key=lambda video: video["id"])
        lengths = np.array([len(video["file_names"]) for video in videos])
        # Frame t of video v is number first_frames[v] + t of all.
        self.first_frames = np.cumsum([0, *lengths])
        self.frames = CocoImages(frames, self.annotation_file, folder, "video")
        self._set_tracks([a for a in document["annotations"] if not a.get("iscrowd")], [v["id"] for v in videos])
        self.set_videos([v["id"] for v in videos], lengths, self.frames.aspect_ratios[self.first_frames[:-1]])

    def _set_tracks(self, tracks: list[dict[str, Any]], video_ids: list[int]) -> None:
        """Arrays with a row for each object in each frame that shows it, those of a frame one after the other."""
        first_frame = dict(zip(video_ids, self.first_frames.tolist(), strict=False))
        label = {category_id: label for label, category_id in enumerate(self.category_ids)}
        places: list[tuple[int, int, int]] = []  # frame, track, label
        counts: list[bytes] = []
        boxes: list[np.ndarray] = []
        for number, track in enumerate(tracks):
            for frame, segmentation in enumerate(track["segmentations"], start=first_frame[track["video_id"]]):
                if not segmentation:
                    continue
                height, width = self.frames.sizes[frame].tolist()
                compressed = compress(segmentation, height, width)
                if mask_area(compressed, height, width):
                    places.append((frame, number, label[track["category_id"]]))
                    counts.append(compressed)
                    boxes.append(pycocotools.mask.toBbox({"size": [height, width], "counts": compressed}))
        frames, numbers, labels = np.array(places, dtype=np.int64).reshape(-1, 3).T
        order = np.argsort(frames, kind="stable")
        self.tracks, self.labels = numbers[order], labels[order]
        self.boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)[order]
        self.boxes[:, 2:] += self.boxes[:, :2]  # x, y, w, h -> x0, y0, x1, y1
        self.masks = CompressedMasks([counts[row] for row in order])
        # Rows of frame i of all: starts[i] .. starts[i + 1] - 1
        self.starts = np.searchsorted(frames[order], np.arange(self.first_frames[-1] + 1))

    def file_faults(self) -> list[str]:
        return self.frames.file_faults()

    def read_clip(self, video: int, frames: Sequence[int], masks: bool) -> Clip:
        numbers = [int(self.first_frames[video]) + frame for frame in frames]
        height, width = self.frames.sizes[numbers[0]].tolist()
        spans = [self.starts[number : number + 2].tolist() for number in numbers]  # of rows
        rows = np.concatenate([np.arange(first, stop) for first, stop in spans])  # [M]
        boxes = torch.from_numpy(self.boxes[rows])
        clip: Clip = {
            "image": tv_tensors.Video(torch.stack([self.frames.read(number) for number in numbers])),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(self.labels[rows]),
            "tracks": torch.from_numpy(self.tracks[rows]),
            "frames": torch.repeat_interleave(torch.tensor([stop - first for first, stop in spans])),
        }
        if masks:
            of_frames = [self.masks.decode(first, stop, height, width) for first, stop in spans]
            clip["masks"] = tv_tensors.Mask(torch.cat(of_frames))  # [M, H, W]
        return clip

    def has_objects(self) -> bool:
        return len(self.labels) > 0

    def ground_truth(self) -> dict[str, Any]:
        """The annotation file, with the fields that evaluation needs and some tools leave out."""
        document = read_document(self.annotation_file, "video")
        document.setdefault("info", {})
        for video in document["videos"]:
            video.setdefault("length", len(video["file_names"]))
        for annotation in document["annotations"]:
            annotation["iscrowd"] = int(annotation.get("iscrowd", 0))
            annotation["segmentations"] = [segmentation or None for segmentation in annotation["segmentations"]]
        return document
