"""Objects that an image model finds in the frames of a video, joined to tracks.

By ByteTrack (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022) of the
``trackers`` package: boxes are predicted from frame to frame, and detections with low scores go on with tracks that
have no better ones. Each class is tracked by itself, so that a track has one class.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import supervision as sv
import torch

from dqdet.drawing.pictures import Threshold
from dqdet.errors import DqdetError
from dqdet.types import ImageDetections

if TYPE_CHECKING:
    from trackers import ByteTrackTracker

LEAST_SCORE = 0.1  # of detections that go on with a track, as published


def check_installed() -> None:
    """Raise DqdetError where the ``trackers`` package, or what it needs, is not installed."""
    try:
        import trackers  # noqa: F401
    except ImportError as error:  # of OpenCV, too, which needs libraries of the system
        raise DqdetError(f"tracking needs the trackers package: pip install 'dqdet[track]' ({error})") from error


class Tracker:
    """Numbers the objects of a video from 1, whatever their class.

    A track begins with the second of two frames in a row that have the object, and ends after a second without it.

    Args:
        rate: frames a second.
        threshold: score that a track begins with.

    Attributes:
        count: how many tracks there are so far.
    """

    def __init__(self, rate: Fraction, threshold: Threshold) -> None:
        check_installed()
        self.rate = float(rate)
        self.threshold = threshold
        self.of_classes: dict[int, ByteTrackTracker] = {}
        self.numbers: dict[tuple[int, int], int] = {}  # (label, number in that class) -> number

    @property
    def count(self) -> int:
        return len(self.numbers)

    def followed(self, found: ImageDetections) -> ImageDetections:
        """What was found in the next frame, with the tracks that it belongs to."""
        scores, labels, boxes = (x.cpu().numpy() for x in (found.scores, found.labels, found.boxes))
        numbers = np.zeros(len(scores), dtype=np.int64)
        for label in {*self.of_classes, *labels.tolist()}:
            rows = np.flatnonzero((labels == label) & (scores > min(LEAST_SCORE, self._begins(label))))
            given = sv.Detections(boxes[rows], confidence=scores[rows], data={"row": rows})
            followed = self._of_class(label).update(given)
            ids = followed.tracker_id if followed.tracker_id is not None else ()
            for row, number in zip(followed.data.get("row", ()), ids, strict=True):
                if number >= 0:
                    numbers[row] = self.numbers.setdefault((label, int(number)), len(self.numbers) + 1)
        return replace(found, track_ids=torch.from_numpy(numbers).to(found.scores.device))

    def _begins(self, label: int) -> float:
        return self.threshold if isinstance(self.threshold, float | int) else self.threshold[label]

    def _of_class(self, label: int) -> ByteTrackTracker:
        if label not in self.of_classes:
            from trackers import ByteTrackTracker

            begins = self._begins(label)
            self.of_classes[label] = ByteTrackTracker(
                frame_rate=self.rate, track_activation_threshold=begins, high_conf_det_threshold=begins
            )
        return self.of_classes[label]
