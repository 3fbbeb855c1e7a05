"""Time and memory of measuring a whole validation split, and the official evaluation's beside ours.

    python benchmarks/metrics.py --images 5000

Each metric runs in a process of its own: seconds of its CPU for giving it all outcomes and for computing, and by how
much they raise its peak memory; making the outcomes counts for neither. Images have 640x480 pixels and 7 objects:

- boxes: 100 an image, half of them near an object and of its class;
- masks: 100 an image, random blobs, compressed. After 100 images they come again with other scores;
- panoptic: maps of 20 segments, half of them near those of the truth; the maps of 50 images, again and again;
- tracks: videos of 30 frames of 1280x720 with 2 objects; 10 tracks are found, blobs that move, half of them like an
  object, with a lag. After 20 videos they come again with other scores.

pycocotools evaluates the first ``--compared`` images of the same, in this run, and must come to the same AP.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional as F

from dqdet.formats import rle
from dqdet.formats.results import coco_results
from dqdet.metrics.detection import DetectionMetric
from dqdet.metrics.panoptic import PanopticMetric
from dqdet.metrics.video import VideoMetric
from dqdet.types import ImageDetections, PanopticMap, Rle, RleMasks, Track

HEIGHT, WIDTH = 480, 640
CLASSES = 80
OBJECTS = 7  # an image, as in COCO
FOUND = 100  # an image
BLOBS = 300  # that the masks of all images are made of, by shifts
DISTINCT = 100  # images with masks of their own
SEGMENTS, MAPS = 20, 50  # a panoptic map, and how many of these there are
VIDEO, FRAMES = (720, 1280), 30
TRACKED, TRACKS = 2, 10  # objects of a video, and tracks found in it
DISTINCT_VIDEOS = 20

Scene = tuple[list[dict], Iterator[ImageDetections]]  # annotations of a data set, and what is found in each image


def boxes(images: int) -> Scene:
    random = np.random.default_rng(0)
    annotations, outcomes = [], []
    for image in range(images):
        corners = np.concatenate([random.uniform(0, 300, (OBJECTS, 2)), random.uniform(4, 200, (OBJECTS, 2))], 1)
        labels = random.integers(0, CLASSES, OBJECTS)
        for box, label in zip(corners.tolist(), labels.tolist(), strict=True):
            shape = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"image_id": image, "category_id": label, **shape})
        near = random.integers(0, OBJECTS, FOUND)
        found = corners[near] + random.normal(0, 12, (FOUND, 4))
        found[:, 2:] = found[:, :2] + found[:, 2:].clip(1)
        ours = np.where(random.random(FOUND) < 0.5, labels[near], random.integers(0, CLASSES, FOUND))
        scores = np.sort(random.random(FOUND))[::-1].copy()
        outcomes.append(ImageDetections(*map(torch.from_numpy, (scores, ours, found))))
    return annotations, iter(outcomes)


def blobs(count: int = BLOBS, size: tuple[int, int] = (HEIGHT, WIDTH), seed: int = 0) -> Tensor:
    """``[count, h, w]`` bool: smooth noise above a threshold, near random places."""
    torch.manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
    pool = torch.zeros(count, *size, dtype=torch.bool)
    for blob in pool:
        noise = F.interpolate(torch.randn(1, 1, 9, 12), size=size, mode="bicubic")[0, 0]
        row, column, extent = torch.rand(3).tolist()
        distance = ((y - row + 0.5) ** 2 + (x - column + 0.5) ** 2).sqrt() / (0.1 + 0.4 * extent)
        blob.copy_(noise / 2 + 2 * (1 - distance) > 0)
    return pool


def masks(images: int) -> Scene:
    pool = blobs()
    annotations, distinct = [], []
    for image in range(min(images, DISTINCT)):
        random = np.random.default_rng(image)
        shift = (int(random.integers(HEIGHT)), int(random.integers(WIDTH)))
        chosen = torch.from_numpy(random.permutation(BLOBS)[:FOUND])
        shifted = pool[chosen].roll(shift, (1, 2))
        encoded = rle.encode(shifted)
        distinct.append((chosen % CLASSES, encoded))
        areas = shifted[:OBJECTS].flatten(1).sum(1).tolist()
        for mask, label, area in zip(encoded, (chosen % CLASSES).tolist(), areas, strict=False):
            shape = {"segmentation": mask, "area": area, "bbox": [0, 0, 1, 1], "iscrowd": 0}
            same = range(image, images, DISTINCT)
            annotations += [{"image_id": number, "category_id": label, **shape} for number in same]
    annotations = json.loads(json.dumps(annotations))  # as from a file: nothing is shared between annotations

    def outcomes() -> Iterator[ImageDetections]:
        for image in range(images):
            labels, encoded = distinct[image % DISTINCT]
            scores = torch.rand(FOUND, dtype=torch.float64).sort(descending=True).values
            yield ImageDetections(scores, labels, torch.zeros(FOUND, 4), RleMasks((HEIGHT, WIDTH), encoded))

    return annotations, outcomes()


def ground_truth(images: int, annotations: list[dict]) -> dict:
    return {
        "images": [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(images)],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": label, "name": str(label)} for label in range(CLASSES)],
    }


def peak() -> float:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measured(task: Callable[[], float]) -> dict[str, float]:
    """CPU seconds and additional MiB of a task, and the score that it comes to."""
    memory, start = peak(), time.process_time()
    score = task()
    return {"seconds": time.process_time() - start, "mib": peak() - memory, "score": score}


def average_precision(make: Callable[[int], Scene], iou_type, images: int) -> dict[str, float]:
    annotations, outcomes = make(images)
    truth = ground_truth(images, annotations)

    def task() -> float:
        metric = DetectionMetric(truth, range(CLASSES), iou_type)
        for image, found in enumerate(outcomes):
            metric.update([image], [found])
        return metric.compute()["AP"]

    return measured(task)


def official(make: Callable[[int], Scene], iou_type, images: int) -> dict[str, float]:
    annotations, outcomes = make(images)
    truth = ground_truth(images, annotations)
    entries = [e for image, found in enumerate(outcomes) for e in coco_results(image, found, range(CLASSES), iou_type)]

    def task() -> float:
        with redirect_stdout(None):
            dataset = COCO()
            dataset.dataset = truth
            dataset.createIndex()
            evaluation = COCOeval(dataset, dataset.loadRes(entries), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats[0]

    return measured(task)


def panoptic_map(random: np.random.Generator, centres: np.ndarray) -> PanopticMap:
    """Every pixel belongs to the nearest centre; ids are as large as those of official files."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    nearest = np.argmin([(y - row) ** 2 + (x - column) ** 2 for row, column in centres], axis=0)
    ids = random.choice(256**3, len(centres), replace=False).astype(np.uint32)
    categories = np.arange(len(centres)) % CLASSES
    segments = [{"id": i, "category_id": c} for i, c in zip(ids.tolist(), categories.tolist(), strict=True)]
    return PanopticMap(ids[nearest], segments)


def panoptic(images: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    pairs = []
    for _ in range(MAPS):
        centres = random.uniform(0, [HEIGHT, WIDTH], (SEGMENTS, 2))
        moved = centres + random.normal(0, [[2], [60]] * (SEGMENTS // 2), centres.shape)
        pairs.append((panoptic_map(random, centres), panoptic_map(random, moved)))

    def task() -> float:
        things = [{"id": label, "name": str(label), "isthing": 1} for label in range(CLASSES)]
        metric = PanopticMetric(things)
        for image in range(images):
            truth, found = pairs[image % MAPS]
            metric.update([image], [truth], [found])
        return metric.compute()["PQ"]

    return measured(task)


def moving(blob: Tensor, lag: int = 0) -> list[Rle]:
    """A blob ``[h, w]`` that wanders through the frames of a video; ``lag`` pixels behind."""
    return rle.encode(torch.stack([blob.roll((4 * frame - lag, 8 * frame - lag), (0, 1)) for frame in range(FRAMES)]))


def tracks(videos: int) -> dict[str, float]:
    random = np.random.default_rng(0)
    truths, distinct = [], []
    for video in range(min(videos, DISTINCT_VIDEOS)):
        own = blobs(TRACKS, VIDEO, seed=video)
        labels = random.integers(0, CLASSES, TRACKS)
        like = np.arange(TRACKS) % TRACKED  # the object that a track may be like
        truths.append([(labels[n], moving(own[n])) for n in range(TRACKED)])
        near = [(labels[like[n]], moving(own[like[n]], lag=2 * n)) for n in range(TRACKS // 2)]
        distinct.append(near + [(labels[n], moving(own[n])) for n in range(TRACKS // 2, TRACKS)])
    records, annotations = [], []
    for video in range(videos):
        records.append({"id": video, "height": VIDEO[0], "width": VIDEO[1]})
        for label, masks in truths[video % DISTINCT_VIDEOS]:
            entry = {"video_id": video, "category_id": int(label), "segmentations": masks, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **entry})
    categories = [{"id": label, "name": str(label)} for label in range(CLASSES)]
    truth = json.loads(json.dumps({"videos": records, "annotations": annotations, "categories": categories}))

    def task() -> float:
        metric = VideoMetric(truth, range(CLASSES))
        for video in range(videos):
            found = distinct[video % DISTINCT_VIDEOS]
            metric.update([video], [[Track(int(n), random.random(), dict(enumerate(masks))) for n, masks in found]])
        return metric.compute()["AP"]

    return measured(task)


TASKS: dict[str, Callable[[int], dict[str, float]]] = {
    "boxes": lambda images: average_precision(boxes, "bbox", images),
    "boxes, pycocotools": lambda images: official(boxes, "bbox", images),
    "masks": lambda images: average_precision(masks, "segm", images),
    "masks, pycocotools": lambda images: official(masks, "segm", images),
    "panoptic": panoptic,
    "tracks": tracks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--compared", type=int, default=500, help="images that pycocotools evaluates, too")
    parser.add_argument("--videos", type=int, default=300, help="and four times as many, to see what the memory does")
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(TASKS[options.only](options.images)))
        return

    def run(name: str, images: int) -> dict[str, float]:
        command = [sys.executable, __file__, "--only", name, "--images", str(images)]
        return json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )

    found: dict[str, dict[str, float]] = {}
    for name in ("boxes", "masks", "panoptic"):
        found[f"{name}, {options.images} images"] = run(name, options.images)
    for videos in (options.videos, 4 * options.videos):
        found[f"tracks, {videos} videos"] = run("tracks", videos)
    for name in TASKS:
        if name not in ("panoptic", "tracks") and options.compared:
            found[f"{name}, {options.compared} images"] = run(name, options.compared)
    print(f"{'':36}{'CPU s':>10}{'MiB':>8}{'score':>10}")
    for name, row in found.items():
        print(f"{name:36}{row['seconds']:10.2f}{row['mib']:8.0f}{row['score']:10.4f}")
    for name in ("boxes", "masks") if options.compared else ():
        ours, theirs = (found[f"{n}, {options.compared} images"] for n in (name, f"{name}, pycocotools"))
        assert abs(ours["score"] - theirs["score"]) < 1e-9
        print(f"{name}: pycocotools takes {theirs['seconds'] / ours['seconds']:.1f} times as long")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
