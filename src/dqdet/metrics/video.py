"""Video instance metrics as YouTube-VIS defines them (Yang et al., "Video Instance Segmentation", ICCV 2019).

They are COCO's with tracks for objects: the IoU of two tracks is the intersection over the union of all frames
together. With the frames of a video side by side, a track is one mask and a video one image, so that COCO's
evaluation computes them. Two things differ: sizes are those of a track's visible frames on average, with other
limits, and crowd tracks are met by IoU, as all others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from faster_coco_eval import COCO, COCOeval_faster

from dqdet.formats import rle
from dqdet.formats.masks import as_rle
from dqdet.formats.results import StoredResults
from dqdet.metrics.detection import numbers, summary
from dqdet.metrics.processes import from_first
from dqdet.types import Rle, Track

# Limits of the mean area of a track, in pixels
AREAS = {"small": [0, 128**2], "medium": [128**2, 256**2], "large": [256**2, 1e5**2]}


def _side_by_side(masks: Sequence[Rle | None], height: int, width: int) -> dict[str, Any]:
    """What COCO's evaluation has to know of a track with these masks in its frames."""
    areas = pycocotools.mask.area([mask for mask in masks if mask is not None])  # [visible frames]
    visible = areas[areas > 0]
    area = float(visible.mean()) if len(visible) else 0.0
    return {"segmentation": rle.side_by_side(masks, height, width), "area": area}


class TrackEvaluation(COCOeval_faster):
    """COCO's evaluation without the rule that measures what lies in a crowd by intersection over detection."""

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list[float]:
        truth, found = (
            dataset.get_instances([imgId], [catId], True)[0][0] for dataset in (self.gt_dataset, self.dt_dataset)
        )
        best = sorted(found, key=lambda track: -track["score"])[: self.params.maxDets[-1]]
        masks, true_masks = ([track["segmentation"] for track in tracks] for tracks in (best, truth))
        return pycocotools.mask.iou(masks, true_masks, [0] * len(truth))


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
        self.videos = [
            {
                "id": self.video_numbers[video["id"]],
                "height": video["height"],
                "width": video["width"] * video["length"],
            }
            for video in ground_truth["videos"]
        ]
        self.sizes = {video["id"]: (video["height"], video["width"]) for video in ground_truth["videos"]}
        self.lengths = {video["id"]: video["length"] for video in ground_truth["videos"]}
        tracks = []
        for number, annotation in enumerate(ground_truth["annotations"], 1):
            size = self.sizes[annotation["video_id"]]
            masks = [None if s is None else as_rle(s, *size) for s in annotation["segmentations"]]
            tracks.append(
                {
                    "id": number,
                    "image_id": self.video_numbers[annotation["video_id"]],
                    "category_id": categories[annotation["category_id"]],
                    "iscrowd": annotation.get("iscrowd", 0),
                    **_side_by_side(masks, *size),
                }
            )
        self.ground_truth = self._dataset(tracks)
        self.reset()

    def _dataset(self, tracks: list[dict[str, Any]]) -> COCO:
        return COCO({"images": self.videos, "annotations": tracks, "categories": self.categories})

    def reset(self) -> None:
        self.results = StoredResults()

    def update(self, video_ids: Sequence[int], found: Sequence[Sequence[Track]]) -> None:
        for video_id, tracks in zip(video_ids, found, strict=True):
            frames = range(self.lengths[video_id])
            self.results[video_id] = [
                {
                    "image_id": self.video_numbers[video_id],
                    "category_id": self.category_numbers[track.label],
                    "score": track.score,
                    "iscrowd": 0,
                    **_side_by_side([track.masks.get(frame) for frame in frames], *self.sizes[video_id]),
                }
                for track in tracks
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
        numbered = [{"id": number, **track} for number, track in enumerate(tracks, 1)]
        evaluation = TrackEvaluation(self.ground_truth, self._dataset(numbered), iouType="segm", ranges=AREAS)
        evaluation.params.imgIds = sorted(self.video_numbers[video_id] for video_id in self.results)
        evaluation.run()
        return summary(evaluation)
