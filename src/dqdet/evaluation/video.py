"""Video instance metrics as YouTube-VIS defines them (Yang et al., "Video Instance Segmentation", ICCV 2019).

They are COCO's with tracks for objects: the IoU of two tracks is the intersection over the union of all frames
together. With the frames of a video side by side, a track is one mask and a video one image, so that COCO's
evaluation computes them. Two things differ: sizes are those of a track's visible frames on average, with other
limits, and crowd tracks are met by IoU, as all others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from dqdet.evaluation import rle
from dqdet.evaluation.detection import summary
from dqdet.evaluation.processes import from_first
from dqdet.evaluation.results import Entries, StoredResults

# Limits of the mean area of a track, in pixels
AREAS = {"small": [0, 128**2], "medium": [128**2, 256**2], "large": [256**2, 1e5**2]}


@dataclass
class VideoTracks:
    """What was found in one video, best score first."""

    scores: Tensor  # [K] in 0..1
    labels: Tensor  # [K] int64, index into the class list
    masks: Tensor  # [K, T, H, W] bool, empty where a track is not visible


def video_results(video_id: int, tracks: VideoTracks, category_ids: Sequence[int]) -> Entries:
    """The tracks of one video as entries of an official results file: one compressed RLE a frame, or None."""
    entries = []
    for score, label, masks in zip(tracks.scores.tolist(), tracks.labels.tolist(), tracks.masks, strict=True):
        visible = masks.flatten(1).any(1).tolist()  # [T]
        segmentations = [mask if seen else None for mask, seen in zip(rle.encode(masks), visible, strict=True)]
        entries.append(
            {"video_id": video_id, "category_id": category_ids[label], "score": score, "segmentations": segmentations}
        )
    return entries


def decode_frames(segmentations: Sequence[dict[str, Any] | list | None], height: int, width: int) -> np.ndarray:
    """The masks [T, H, W] (bool) of a track: of each frame RLE, compressed or not, polygons, or None (not visible)."""
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        if isinstance(segmentation, list):
            segmentation = pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, height, width))
        elif segmentation is not None and isinstance(segmentation["counts"], list):
            segmentation = pycocotools.mask.frPyObjects(segmentation, height, width)
        if segmentation is not None:
            mask[:] = pycocotools.mask.decode(segmentation)
    return masks


def _side_by_side(masks: Tensor) -> list[dict[str, Any]]:
    """What COCO's evaluation has to know of the masks [K, T, H, W] of tracks."""
    frame_areas = masks.flatten(2).sum(2)  # [K, T]
    areas = frame_areas.sum(1) / (frame_areas > 0).sum(1).clamp(min=1)  # [K]
    encoded = rle.encode(masks.transpose(1, 2).flatten(2))  # [K, H, T * W]
    return [{"segmentation": mask, "area": area} for mask, area in zip(encoded, areas.tolist(), strict=True)]


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
        self.category_ids = list(category_ids)
        self.categories = ground_truth["categories"]
        self.videos = [
            {"id": video["id"], "height": video["height"], "width": video["width"] * video["length"]}
            for video in ground_truth["videos"]
        ]
        sizes = {video["id"]: (video["height"], video["width"]) for video in ground_truth["videos"]}
        tracks = []
        for number, annotation in enumerate(ground_truth["annotations"], 1):  # the evaluation takes id 0 for none
            masks = decode_frames(annotation["segmentations"], *sizes[annotation["video_id"]])
            tracks.append(
                {
                    "id": number,
                    "image_id": annotation["video_id"],
                    "category_id": annotation["category_id"],
                    "iscrowd": annotation.get("iscrowd", 0),
                    **_side_by_side(torch.from_numpy(masks).unsqueeze(0))[0],
                }
            )
        self.ground_truth = self._dataset(tracks)
        self.reset()

    def _dataset(self, tracks: list[dict[str, Any]]) -> COCO:
        return COCO({"images": self.videos, "annotations": tracks, "categories": self.categories})

    def reset(self) -> None:
        self.results = StoredResults()

    def update(self, video_ids: Sequence[int], tracks: Sequence[VideoTracks]) -> None:
        for video_id, found in zip(video_ids, tracks, strict=True):
            scores, labels = found.scores.tolist(), found.labels.tolist()
            self.results[video_id] = [
                {"image_id": video_id, "category_id": self.category_ids[label], "score": score, "iscrowd": 0, **shape}
                for score, label, shape in zip(scores, labels, _side_by_side(found.masks), strict=True)
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
        evaluation.params.imgIds = sorted(self.results)
        evaluation.run()
        return summary(evaluation)
