"""A model used on videos: an annotated video, and results in the official format of YouTube-VIS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import pycocotools.mask
import supervision as sv
from PIL import Image

from dqdet.errors import DqdetError
from dqdet.formats.results import video_results
from dqdet.inference.windows import best_tracks, track
from dqdet.predict.frames import Video, open_video, video_writer
from dqdet.predict.images import ResultFiles
from dqdet.predict.pictures import annotated
from dqdet.predict.predictor import SMALLEST_PICTURE, Predictor
from dqdet.predict.progress import in_progress
from dqdet.types import Track


def find_tracks(
    predictor: Predictor, video: Video, failures: list[DqdetError] | None = None
) -> tuple[list[Track], int]:
    """The tracks of a video, and how many frames it has.

    Args:
        predictor: of a model of videos.
        video: to look at.
        failures: takes the error of a frame that cannot be read, before which the video then ends.

    Raises:
        DqdetError: the model is none of videos, or, without ``failures``, a frame cannot be read.
    """
    config = predictor.config
    if config.data.task != "video":
        raise DqdetError(f"a model of data.task={config.data.task} finds no tracks; take one of data.task=video")
    width, height = video.size
    length = 0

    def frames() -> Iterator[Any]:
        nonlocal length
        readable = video if failures is None else _readable(video, failures)
        for image in in_progress(readable, "finding tracks", video.length):
            length += 1
            yield predictor.transform(image)

    tracks = best_tracks(track(predictor.model, frames(), (height, width), config), config.inference.limit)
    return tracks, length


def predict_video(
    predictor: Predictor, source: str | Path, out: str | Path, threshold: float = 0.5
) -> list[DqdetError]:
    """Detect in a video file, an animation, or a folder of frames, and write into ``out``:

    - ``NAME.mp4``: the video with what scores above ``threshold`` drawn in,
    - of a video model ``results.json``, all tracks in the official format of YouTube-VIS, and ``videos.json``, the
      video (of a folder with the names of its frames) and the categories behind the ids; a track has one colour in
      the whole video,
    - of an image model the files of `ResultFiles`, with the numbers of frames, from 1, as ids of images.

    Frames are read when they are needed, so that the memory does not depend on the length of the video. A video ends
    before the first frame that cannot be read.

    Returns:
        what was wrong with that frame, if there was one; the frames before it are done.

    Raises:
        DqdetError: the video cannot be read, ``out`` cannot be written, or the video would be overwritten; ``out`` is
            as before.
    """
    source, out = Path(source), Path(out)
    video = open_video(source)
    if (out / f"{video.name}.mp4").resolve() == source.resolve():
        raise DqdetError(f"{out}: has the video, which would be overwritten; choose another folder for the results")
    failures: list[DqdetError] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out, prefix=".") as unfinished:
            folder = Path(unfinished)
            with video_writer(folder / f"{video.name}.mp4", video.rate) as append:
                pictures = _tracked if predictor.config.data.task == "video" else _detected
                for picture in pictures(predictor, video, failures, folder, threshold):
                    append(picture)
            for file in [file for file in folder.rglob("*") if file.is_file()]:
                place = out / file.relative_to(folder)
                place.parent.mkdir(exist_ok=True)
                file.replace(place)
    except (OSError, av.FFmpegError) as error:
        raise DqdetError(f"{out}: cannot be written ({error}); choose another folder or make space") from error
    return failures


def _readable(video: Video, failures: list[DqdetError]) -> Iterator[Image.Image]:
    """The frames up to the first that cannot be read, whose error is added to ``failures``."""
    done = 0
    try:
        for done, image in enumerate(video, 1):  # noqa: B007, their number is needed
            yield image
    except DqdetError as error:
        failures.append(DqdetError(f"{error}; only the {done} frames before it are done"))


def _tracked(
    predictor: Predictor, video: Video, failures: list[DqdetError], folder: Path, threshold: float
) -> Iterator[Image.Image]:
    """Pictures of the tracks in each frame; result files."""
    tracks, length = find_tracks(predictor, video, failures)
    width, height = video.size
    described: dict[str, Any] = {"id": 1, "name": video.name, "width": width, "height": height, "length": length}
    if video.file_names is not None:
        described["file_names"] = video.file_names[:length]
    (folder / "results.json").write_text(json.dumps(video_results(1, tracks, length, predictor.category_ids)))
    (folder / "videos.json").write_text(json.dumps({"videos": [described], "categories": predictor.categories}))
    shown = {number: one for number, one in enumerate(tracks, 1) if one.score > threshold}
    for frame, image in enumerate(in_progress(islice(video, length), "drawing", length)):
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
    predictor: Predictor, video: Video, failures: list[DqdetError], folder: Path, threshold: float
) -> Iterator[Image.Image]:
    """Pictures of what an image model finds in each frame; result files."""
    results = ResultFiles(predictor, folder)
    for number, image in enumerate(in_progress(_readable(video, failures), "predicting", video.length), 1):
        (outcome,) = predictor.outcomes([image])
        name = f"{number:06d}.png" if video.file_names is None else video.file_names[number - 1]
        results.add(number, name, image, outcome)
        yield predictor.drawn(image, outcome, threshold)
    results.write()
