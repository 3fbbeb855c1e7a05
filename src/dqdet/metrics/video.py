"""Video instance metrics as YouTube-VIS defines them (Yang et al., "Video Instance Segmentation", ICCV 2019).

They are COCO's with tracks for objects: the IoU of two tracks is the intersection over the union of all frames
together. Both are summed frame by frame, of compressed masks, as soon as a video has been looked at, and of its tracks
nothing but these numbers is kept. Two other things differ from COCO: sizes are those of a track's visible frames on
average, with other limits, and crowd tracks are met by IoU, as all others are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pycocotools.mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dqdet.formats.masks import as_rle
from dqdet.formats.results import StoredResults
from dqdet.metrics.detection import numbers, summary
from dqdet.metrics.processes import from_first
from dqdet.types import Rle, Track

# Limits of the mean area of a track, in pixels
AREAS = [[0, 1e5**2], [0, 128**2], [128**2, 256**2], [256**2, 1e5**2]]  # all, small, medium, large

Masks = dict[int, Rle]  # frame -> mask of a track


def _areas(masks: Iterable[Rle]) -> np.ndarray:
    """Pixels of each mask, which pycocotools counts of one mask or of 255, but not of more."""
    return np.array([pycocotools.mask.area(mask) for mask in masks], dtype=np.int64)


def _mean_area(areas: np.ndarray) -> float:
    """Of the frames that show a track."""
    visible = areas[areas > 0]
    return float(visible.mean()) if len(visible) else 0.0


def track_ious(found: Sequence[Masks], truth: Sequence[Masks]) -> np.ndarray:
    """The IoU of each pair of tracks over all frames, ``[K, N]``; 0 of two empty ones."""
    shared = np.zeros((len(found), len(truth)))  # pixels
    for frame in sorted({frame for masks in truth for frame in masks}):
        rows = [k for k, masks in enumerate(found) if frame in masks]
        columns = [n for n, masks in enumerate(truth) if frame in masks]
        if not rows:
            continue
        ours, theirs = [found[k][frame] for k in rows], [truth[n][frame] for n in columns]
        # With crowds, pycocotools divides by our area alone: times that it is the intersection.
        of_ours = pycocotools.mask.iou(ours, theirs, [1] * len(theirs))
        areas = _areas(ours)[:, None]
        shared[np.ix_(rows, columns)] += np.rint(of_ours * areas)
    totals = [np.array([_areas(masks.values()).sum() for masks in tracks]) for tracks in (found, truth)]
    union = totals[0][:, None] + totals[1] - shared
    return shared / np.maximum(union, 1)


class TrackEvaluation(COCOeval):
    """COCO's evaluation of tracks that know their IoU with those of the ground truth."""

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:
        best = sorted(self._dts[imgId, catId], key=lambda track: -track["score"])[: self.params.maxDets[-1]]
        return np.array([track["ious"] for track in best])


class VideoMetric:
    """Collects tracks video by video and compares them with the ground truth.

    Works over several processes like ``DetectionMetric``: each updates with its own videos, every process gets the
    metrics of all, and a video that several processes saw counts once. Results are kept on disk.

    Args:
        ground_truth: a data set in the JSON structure of YouTube-VIS, at the size to which tracks refer.
        category_ids: the category id of each label.
    """

    best = "AP"

    def __init__(self, ground_truth: dict[str, Any], category_ids: Sequence[int]) -> None:
        # As in `DetectionMetric`, all ids are numbers from 1 for the evaluation.
        self.video_numbers = numbers(ground_truth["videos"])
        categories = numbers(ground_truth["categories"])
        self.category_numbers = [categories.get(category_id, 0) for category_id in category_ids]
        self.categories = [{**c, "id": categories[c["id"]]} for c in ground_truth["categories"]]
        self.names = [c["name"] for c in sorted(self.categories, key=lambda category: category["id"])]
        self.videos = [
            {"id": self.video_numbers[video["id"]], "height": video["height"], "width": video["width"]}
            for video in ground_truth["videos"]
        ]
        sizes = {video["id"]: (video["height"], video["width"]) for video in ground_truth["videos"]}
        self.truths: dict[tuple[int, int], list[Masks]] = {}  # of the numbers of video and category
        self.tracks = []
        for annotation in ground_truth["annotations"]:
            size = sizes[annotation["video_id"]]
            masks = {frame: as_rle(s, *size) for frame, s in enumerate(annotation["segmentations"]) if s is not None}
            video, category = self.video_numbers[annotation["video_id"]], categories[annotation["category_id"]]
            self.truths.setdefault((video, category), []).append(masks)
            self.tracks.append(
                {
                    "image_id": video,
                    "category_id": category,
                    "iscrowd": annotation.get("iscrowd", 0),
                    "area": _mean_area(_areas(masks.values())),
                }
            )
        self.reset()

    def _dataset(self, tracks: list[dict[str, Any]]) -> COCO:
        """Tracks, with ids of their own from 1, as the evaluation reads them."""
        dataset = COCO()
        numbered = [{"id": number, **track} for number, track in enumerate(tracks, 1)]
        dataset.dataset = {"images": self.videos, "annotations": numbered, "categories": self.categories}
        dataset.createIndex()
        return dataset

    def reset(self) -> None:
        self.results = StoredResults()

    def update(self, video_ids: Sequence[int], found: Sequence[Sequence[Track]]) -> None:
        for video_id, tracks in zip(video_ids, found, strict=True):
            video = self.video_numbers[video_id]
            ious: dict[int, list[float]] = {}  # track -> with each of the ground truth of its class
            for label in {track.label for track in tracks}:
                ours = [number for number, track in enumerate(tracks) if track.label == label]
                truth = self.truths.get((video, self.category_numbers[label]), [])
                rows = track_ious([tracks[number].masks for number in ours], truth)
                ious |= zip(ours, rows.tolist(), strict=True)
            self.results[video_id] = [
                {
                    "image_id": video,
                    "category_id": self.category_numbers[track.label],
                    "score": track.score,
                    "iscrowd": 0,
                    "area": _mean_area(_areas(track.masks.values())),
                    "ious": ious[number],
                }
                for number, track in enumerate(tracks)
            ]

    def compute(self) -> dict[str, float]:
        """The metrics over all videos given to ``update``, in any process, since the last ``reset``.

        Returns:
            ``AP``, ``AP50``, ``AP75``, ``AR1``, ``AR10`` and the others of ``DetectionMetric.compute``, of tracks.
        """
        self.results.gather()
        return from_first(self._evaluate)

    def _evaluate(self) -> dict[str, float]:
        tracks = [track for video in self.results.values() for track in video]
        with redirect_stdout(None):
            evaluation = TrackEvaluation(self._dataset(self.tracks), self._dataset(tracks), "bbox")
            evaluation.params.areaRng = AREAS
            evaluation.params.imgIds = [self.video_numbers[video_id] for video_id in self.results]
            evaluation.evaluate()
            evaluation.accumulate()
        return summary(evaluation.eval["precision"], evaluation.eval["recall"], self.names)
