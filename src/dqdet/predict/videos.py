"""A model used on videos: an annotated video, and results in the official format of YouTube-VIS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask
import supervision as sv
from PIL import Image

from dqdet.drawing.pictures import Threshold, annotated
from dqdet.errors import DqdetError
from dqdet.formats.remote import public
from dqdet.formats.results import video_results
from dqdet.formats.writing import replacing
from dqdet.inference.windows import best_tracks, track
from dqdet.predict.addresses import is_stream
from dqdet.predict.frames import Video, open_video, video_writer
from dqdet.predict.images import ResultFiles, found_in
from dqdet.predict.output import Output, results_folder
from dqdet.predict.predictor import SMALLEST_PICTURE, Predictor, objects
from dqdet.predict.prefetch import ahead
from dqdet.predict.progress import Tally, in_progress
from dqdet.predict.streams import Stream
from dqdet.predict.tracking import Tracker, check_installed
from dqdet.types import Outcome, Track


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
    predictor: Predictor,
    source: str | Path,
    out: str | Path,
    threshold: Threshold | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    tracking: bool = False,
    address: str | None = None,
) -> list[DqdetError]:
    """Detect in a video file, an animation, a folder of frames, or a stream, and write into ``out``:

    - ``NAME.mp4``: the video with what scores above ``threshold`` (as of `predict_pictures`) drawn in,
    - of a video model ``results.json``, all tracks in the official format of YouTube-VIS, and ``videos.json``, the
      video (of a folder with the names of its frames) and the categories behind the ids; a track has one colour in
      the whole video,
    - of an image model the files of `ResultFiles`, with the numbers of frames, from 1, as ids of images; with
      ``tracking`` the detections of a `Tracker` have the ``track_id`` of their object, and these are drawn.

    ``say`` is given a line on what was done. Results name the ``address`` that the file was fetched from, if it was.
    Frames are read when they are needed, so that the memory does not depend on the length of the video. A video ends
    before the first frame that cannot be read, a stream also with the first Ctrl-C or SIGTERM; all files are then as
    if it had ended there by itself.

    Returns:
        what was wrong with that frame, if there was one; the frames before it are done.

    Raises:
        DqdetError: the video cannot be read, the video would be overwritten, or ``out`` has results of another source
            or model, which are overwritten only with ``force``; ``out`` is as before. The same with ``tracking``,
            where the model's objects cannot be tracked. ``out`` cannot be written; results that are found are kept.
        Interrupted: by Ctrl-C or SIGTERM; results that are found are kept.
    """
    out = Path(out)
    of_videos = predictor.config.data.task == "video"
    if tracking:
        check_tracking(predictor)
    video = _opened(source, of_videos)
    if (out / f"{video.name}.mp4").resolve() == Path(source).resolve():
        raise DqdetError(f"{out}: has the video, which would be overwritten; choose another folder for the results")
    tally = Tally("frames", "tracks" if of_videos or tracking else "objects")
    failures: list[DqdetError] = []
    with (
        results_folder(out, [address or source], predictor.source, force) as output,
        replacing(output.folder / f"{video.name}.mp4") as unfinished,
        video_writer(unfinished, video.rate) as append,
    ):
        if of_videos:
            pictures = _tracked(predictor, video, failures, output, threshold, tally)
        else:
            tracker = Tracker(video.rate, predictor.shown_above(threshold)) if tracking else None
            pictures = _detected(predictor, video, failures, output, threshold, tally, tracker)
        for picture in pictures:
            append(picture)
        if failures and not output.done:
            raise failures[0]
    say(f"{out / video.name}.mp4: {tally.line(predictor.shown_above(threshold))}")
    return failures


def check_tracking(predictor: Predictor) -> None:
    """Raise DqdetError where the frames of a model cannot be tracked."""
    task = predictor.config.data.task
    if task == "video":
        raise DqdetError("a model of data.task=video tracks by itself; leave out the tracking")
    if task not in ("detection", "instance"):
        raise DqdetError(f"tracking is for boxes and instance masks, not for data.task={task}; leave it out")
    check_installed()


def _opened(source: str | Path, of_videos: bool) -> Video:
    if not is_stream(str(source)):
        return open_video(Path(source))
    if of_videos:
        raise DqdetError(
            f"{public(str(source))}: a model of data.task=video reads a video twice; record it, and give the file"
        )
    return Stream(str(source))


def _readable(video: Video, failures: list[DqdetError]) -> Iterator[Image.Image]:
    """The frames up to the first that cannot be read, whose error is added to ``failures``."""
    done = 0
    try:
        for done, image in enumerate(video, 1):  # noqa: B007, their number is needed
            yield image
    except DqdetError as error:
        failures.append(DqdetError(f"{error}; only the {done} frames before it are done"))


def _tracked(
    predictor: Predictor,
    video: Video,
    failures: list[DqdetError],
    output: Output,
    threshold: Threshold | None,
    tally: Tally,
) -> Iterator[Image.Image]:
    """Pictures of the tracks in each frame; result files."""
    tracks, length = find_tracks(predictor, video, failures)
    width, height = video.size
    described: dict[str, Any] = {"id": 1, "name": video.name, "width": width, "height": height, "length": length}
    if video.file_names is not None:
        described["file_names"] = video.file_names[:length]
    document = {"info": output.info, "videos": [described], "categories": predictor.categories}
    results = video_results(1, tracks, length, predictor.category_ids)
    (output.folder / "results.json").write_text(json.dumps(results))
    (output.folder / "videos.json").write_text(json.dumps(document))
    output.done = "the tracks are found"
    limit = predictor.shown_above(threshold)
    limits = [limit] * len(predictor.config.classes) if isinstance(limit, float | int) else limit
    shown = {number: one for number, one in enumerate(tracks, 1) if one.score > limits[one.label]}
    tally.add(len(shown), length)
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


class Frame(NamedTuple):
    """A frame to look at."""

    name: str  # in results
    number: int  # from 1
    image: Image.Image


def _image(frame: Frame) -> Image.Image:
    return frame.image


def _detected(
    predictor: Predictor,
    video: Video,
    failures: list[DqdetError],
    output: Output,
    threshold: Threshold | None,
    tally: Tally,
    tracker: Tracker | None,
) -> Iterator[Image.Image]:
    """Pictures of what an image model finds in each frame; result files."""
    results = ResultFiles(predictor, output)
    live = isinstance(video, Stream)  # whoever watches a camera waits for no further frames

    def frames() -> Iterator[Frame]:
        for number, image in enumerate(in_progress(_readable(video, failures), "predicting", video.length), 1):
            if failures:
                return
            name = f"{number:06d}.png" if video.file_names is None else video.file_names[number - 1]
            yield Frame(name, number, image)

    def failed(frame: Frame, error: DqdetError) -> None:
        if not failures:
            failures.append(DqdetError(f"{video.name}, {error}; only the frames before it are done"))

    def outcomes() -> Iterator[tuple[Frame, Outcome]]:
        if live:
            for frame in frames():
                yield from ((frame, outcome) for outcome in predictor.outcomes([frame.image], threshold))
        else:
            found = found_in(predictor, frames(), _image, failed, threshold, tally)
            for number, ((frame, _, _), outcome) in enumerate(found, 1):
                if frame.number != number:  # the one before has failed
                    return
                yield frame, outcome

    def followed() -> Iterator[tuple[Frame, Outcome, int]]:
        for frame, outcome in outcomes():
            if tracker is None:
                yield frame, outcome, predictor.shown(outcome, threshold)
            else:
                tracks = tracker.count
                yield frame, tracker.followed(objects(outcome)), tracker.count - tracks

    def draw(found: tuple[Frame, Outcome, int]) -> tuple[Frame, Outcome, int, Image.Image]:
        frame, outcome, _ = found
        return *found, predictor.drawn(frame.image, outcome, threshold)

    for frame, outcome, new, picture in map(draw, followed()) if live else ahead(draw, followed(), predictor.batch):
        results.add(frame.number, frame.name, frame.image, outcome)
        output.done = f"{frame.number} frames are done"
        tally.add(new)
        yield picture
    results.finish()
