"""A model used on videos: an annotated video, and results in the official format of YouTube-VIS."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import av
import numpy as np
import pycocotools.mask
import supervision as sv
from PIL import Image
from rich.console import Console
from rich.progress import track as progress

from dqdet.errors import DqdetError
from dqdet.evaluation import rle
from dqdet.evaluation.results import Entries
from dqdet.evaluation.windows import WindowTracks, track
from dqdet.image_folder import SMALLEST_PICTURE, ResultFiles
from dqdet.pictures import annotated
from dqdet.predictor import Predictor
from dqdet.video import FrameFolder, VideoFile, open_video, video_writer

Item = TypeVar("Item")


@dataclass
class Track:
    """An object of a video; its masks are compressed."""

    label: int
    windows: list[tuple[float, int]] = field(default_factory=list)  # score in each window, and frames of it
    masks: dict[int, rle.Rle] = field(default_factory=dict)  # frame -> mask, where it is visible

    @property
    def score(self) -> float:
        """The mean over the frames of its windows."""
        return sum(score * frames for score, frames in self.windows) / sum(frames for _, frames in self.windows)


def best_tracks(windows: Iterable[WindowTracks], limit: int) -> list[Track]:
    """The ``limit`` best tracks of a whole video, best first, without those that are never visible.

    As `dqdet.evaluation.windows.whole`, but masks are kept compressed, and only of as many tracks as may still be
    among the best.
    """
    tracks: dict[int, Track] = {}
    ended: list[Track] = []
    for window in windows:
        found = window.tracks
        going_on = {number: tracks.pop(number) for number in window.ids if number in tracks}
        ended = _best([*ended, *tracks.values()], limit)
        tracks = going_on
        for number, label, score, masks in zip(
            window.ids, found.labels.tolist(), found.scores.tolist(), found.masks, strict=True
        ):
            one = tracks.setdefault(number, Track(label))
            one.windows.append((score, len(masks)))
            visible = masks.flatten(1).any(1).nonzero()[:, 0]  # frames of the window
            frames = (visible + window.start).tolist()
            one.masks.update(zip(frames, rle.encode(masks[visible]), strict=True))
    return [one for one in _best([*ended, *tracks.values()], limit) if one.masks]


def _best(tracks: list[Track], limit: int) -> list[Track]:
    return sorted(tracks, key=lambda one: -one.score)[:limit]


def find_tracks(predictor: Predictor, video: VideoFile | FrameFolder) -> tuple[list[Track], int]:
    """The tracks of a video, and how many frames it has.

    Raises:
        DqdetError: the model is none of videos, or a frame cannot be read.
    """
    config = predictor.config
    if config.data.task != "video":
        raise DqdetError(f"a model of data.task={config.data.task} finds no tracks; take one of data.task=video")
    width, height = video.size
    length = 0

    def frames() -> Iterator[Any]:
        nonlocal length
        for image in in_progress(video, "finding tracks", video.length):
            length += 1
            yield predictor.transform(image)

    tracks = best_tracks(track(predictor.model, frames(), (height, width), config), config.inference.limit)
    return tracks, length


def video_entries(video_id: int, tracks: Iterable[Track], length: int, category_ids: list[int]) -> Entries:
    """The tracks of one video of ``length`` frames as entries of an official results file."""
    return [
        {
            "video_id": video_id,
            "category_id": category_ids[one.label],
            "score": one.score,
            "segmentations": [one.masks.get(frame) for frame in range(length)],
        }
        for one in tracks
    ]


def predict_video(predictor: Predictor, source: str | Path, out: str | Path, threshold: float = 0.5) -> None:
    """Detect in a video file, or in a folder of its frames, and write into ``out``:

    - ``NAME.mp4``: the video with what scores above ``threshold`` drawn in,
    - of a video model ``results.json``, all tracks in the official format of YouTube-VIS, and ``videos.json``, the
      video and the categories behind the ids; a track has one colour in the whole video,
    - of an image model the files of `ResultFiles`, with the numbers of frames, from 1, as ids of images.

    Frames are read when they are needed, so that the memory does not depend on the length of the video.

    Raises:
        DqdetError: the video cannot be read, ``out`` cannot be written, or the video would be overwritten; ``out`` is
            as before.
    """
    source, out = Path(source), Path(out)
    video = open_video(source)
    if (out / f"{video.name}.mp4").resolve() == source.resolve():
        raise DqdetError(f"{out}: has the video, which would be overwritten; choose another folder for the results")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out, prefix=".") as unfinished:
            folder = Path(unfinished)
            with video_writer(folder / f"{video.name}.mp4", video.rate) as append:
                pictures = _tracked if predictor.config.data.task == "video" else _detected
                for picture in pictures(predictor, video, folder, threshold):
                    append(picture)
            for file in [file for file in folder.rglob("*") if file.is_file()]:
                place = out / file.relative_to(folder)
                place.parent.mkdir(exist_ok=True)
                file.replace(place)
    except (OSError, av.FFmpegError) as error:
        raise DqdetError(f"{out}: cannot be written ({error}); choose another folder or make space") from error


def _tracked(
    predictor: Predictor, video: VideoFile | FrameFolder, folder: Path, threshold: float
) -> Iterator[Image.Image]:
    """Pictures of the tracks in each frame; result files."""
    tracks, length = find_tracks(predictor, video)
    width, height = video.size
    described = {
        "videos": [{"id": 1, "name": video.name, "width": width, "height": height, "length": length}],
        "categories": predictor.categories,
    }
    (folder / "results.json").write_text(json.dumps(video_entries(1, tracks, length, predictor.category_ids)))
    (folder / "videos.json").write_text(json.dumps(described))
    shown = {number: one for number, one in enumerate(tracks, 1) if one.score > threshold}
    for frame, image in enumerate(in_progress(video, "drawing", length)):
        seen = {number: one for number, one in shown.items() if frame in one.masks}
        yield annotated(image, _in_frame(seen, frame, predictor.config.classes), max(SMALLEST_PICTURE, *image.size))


def _in_frame(tracks: dict[int, Track], frame: int, classes: list[str]) -> sv.Detections:
    """What a frame shows of the tracks that are visible in it."""
    if not tracks:
        return sv.Detections.empty()
    masks = np.stack([pycocotools.mask.decode(one.masks[frame]) for one in tracks.values()]).astype(bool)  # [K, H, W]
    labels = np.array([one.label for one in tracks.values()])
    return sv.Detections(
        sv.mask_to_xyxy(masks).astype(np.float32),
        masks,
        class_id=labels,
        confidence=np.array([one.score for one in tracks.values()]),
        tracker_id=np.array(list(tracks)),
        data={"class_name": np.array(classes)[labels]},
    )


def _detected(
    predictor: Predictor, video: VideoFile | FrameFolder, folder: Path, threshold: float
) -> Iterator[Image.Image]:
    """Pictures of what an image model finds in each frame; result files."""
    results = ResultFiles(predictor, folder)
    for number, image in enumerate(in_progress(video, "predicting", video.length), 1):
        (outcome,) = predictor.outcomes([image])
        results.add(number, f"{number:06d}.png", image, outcome)
        yield annotated(image, predictor.shown(outcome, threshold), max(SMALLEST_PICTURE, *image.size))
    results.write()


def in_progress(items: Iterable[Item], what: str, length: int) -> Iterable[Item]:
    """The items, with a progress bar in a terminal; length 0: unknown."""
    console = Console(stderr=True)
    return progress(items, what, total=length or None, console=console, transient=True, disable=not console.is_terminal)
