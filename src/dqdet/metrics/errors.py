"""What a detector does wrong: matches of every detection, from which curves, thresholds and kinds of errors follow.

Matches are those of COCO's evaluation at one IoU. The kinds of errors are those of TIDE (Bolya et al., "TIDE: A General
Toolbox for Identifying Object Detection Errors", ECCV 2020): a detection that matches nothing

- ``localisation``: overlaps an object of its class, but too little,
- ``classification``: lies on an object of another class,
- ``duplicate``: lies on an object that a better one has found,
- ``background``: overlaps nothing,
- ``both``: overlaps an object of another class, too little;

and an object is ``missed`` if neither a detection nor one with a wrong place or class is on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycocotools.mask

from dqdet.formats.masks import as_rle
from dqdet.formats.results import IouType

IOU, BACKGROUND = 0.5, 0.1  # of a match, and below which nothing is overlapped
MOST = 100  # detections of an image and class, as the official evaluation counts them
RECALLS = np.linspace(0, 1, 101)  # at which it takes the precision

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
RIGHT, IGNORED = "", "ignored"  # kinds of detections that are no errors; the second ones lie on crowds


@dataclass
class Matches:
    """Every detection and every object of a split, at one IoU. Crowds are no objects."""

    classes: list[str]  # names in label order
    image_ids: np.ndarray  # [D] of each detection
    labels: np.ndarray  # [D] index of its class
    scores: np.ndarray  # [D]
    kinds: np.ndarray  # [D] str: `RIGHT`, `IGNORED` or the kind of error
    fixed: np.ndarray  # [D] the object that it would find without its error of class or place, else -1
    found: np.ndarray  # [D] the object that it has found, else -1
    object_images: np.ndarray  # [N]
    object_labels: np.ndarray  # [N]

    def of_class(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores, and whether each is right, of the detections of a class that count, best first."""
        kept = np.flatnonzero((self.labels == label) & (self.kinds != IGNORED))
        kept = kept[np.argsort(-self.scores[kept], kind="stable")]
        return self.scores[kept], self.kinds[kept] == RIGHT

    def objects(self, label: int) -> int:
        return int((self.object_labels == label).sum())

    def missed(self) -> np.ndarray:
        """Which objects ``[N]`` neither a detection nor one with a wrong place or class is on."""
        missed = np.ones(len(self.object_labels), dtype=bool)
        for of_detections in (self.found, self.fixed):
            missed[of_detections[of_detections >= 0]] = False
        return missed


def match(
    ground_truth: Mapping[str, Any],
    results: Mapping[int, Sequence[Mapping[str, Any]]],
    iou_type: IouType = "bbox",
    iou: float = IOU,
    background: float = BACKGROUND,
) -> Matches:
    """Match detections as COCO's evaluation does.

    Args:
        ground_truth: COCO's document.
        results: entries of a results file of each image, of one at least; categories that the data has not do not
            count.
        iou_type: what is compared, ``bbox`` or ``segm``.
        iou: that makes a match.
        background: at and below which a detection overlaps nothing.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    number = {category["id"]: label for label, category in enumerate(categories)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    truths = _by_image(ground_truth["annotations"])
    parts: list[tuple[np.ndarray, ...]] = []
    object_images: list[int] = []
    object_labels: list[int] = []
    for image_id, found in results.items():
        entries = _limited([entry for entry in found if entry["category_id"] in number])
        of_image = truths.get(image_id, [])
        labels = np.array([number[entry["category_id"]] for entry in entries], dtype=np.int64)
        truth_labels = np.array([number[one["category_id"]] for one in of_image], dtype=np.int64)
        crowd = np.array([bool(one.get("iscrowd")) for one in of_image], dtype=bool)
        overlaps = _overlaps(entries, of_image, iou_type, sizes[image_id])
        taken, kinds, fixed = _of_image(labels, truth_labels, crowd, overlaps, iou, background)
        # Objects are numbered over all images, crowds left out.
        numbers = np.full(len(of_image) + 1, -1)
        numbers[:-1][~crowd] = len(object_labels) + np.arange(int((~crowd).sum()))
        scores = np.array([entry["score"] for entry in entries], dtype=np.float64)
        parts.append((np.full(len(entries), image_id), labels, scores, kinds, numbers[fixed], numbers[taken]))
        object_images += [image_id] * int((~crowd).sum())
        object_labels += truth_labels[~crowd].tolist()
    images, labels, scores, kinds, fixed, taken = (np.concatenate(column) for column in zip(*parts, strict=True))
    names = [category["name"] for category in categories]
    objects = (np.array(column, dtype=np.int64) for column in (object_images, object_labels))
    return Matches(names, images, labels, scores, kinds, fixed, taken, *objects)


def _limited(entries: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of an image, best first, at most `MOST` of a category."""
    counts: dict[int, int] = {}
    kept = []
    for entry in sorted(entries, key=lambda entry: -entry["score"]):
        counts[entry["category_id"]] = count = counts.get(entry["category_id"], 0) + 1
        if count <= MOST:
            kept.append(entry)
    return kept


def _overlaps(
    entries: Sequence[Mapping[str, Any]], truths: Sequence[Mapping[str, Any]], iou_type: IouType, size: tuple[int, int]
) -> np.ndarray:
    """IoUs ``[D, N]`` of detections and annotations of an image; with crowds, the share of the detection inside."""
    if not entries or not truths:
        return np.zeros((len(entries), len(truths)))
    detections, objects = ([_shape(one, iou_type, size) for one in some] for some in (entries, truths))
    crowds = [int(bool(one.get("iscrowd"))) for one in truths]
    return np.asarray(pycocotools.mask.iou(detections, objects, crowds))


def _shape(entry: Mapping[str, Any], iou_type: IouType, size: tuple[int, int]) -> Any:
    return entry["bbox"] if iou_type == "bbox" else as_rle(entry["segmentation"], *size)


def _of_image(
    labels: np.ndarray, truths: np.ndarray, crowd: np.ndarray, overlaps: np.ndarray, iou: float, background: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of detections, best first, the object that each takes, its kind, and the object that it would take; -1: none."""
    count = len(labels)
    taken, fixed = np.full(count, -1), np.full(count, -1)
    kinds = np.full(count, RIGHT, dtype=object)
    free = ~crowd
    for d in range(count):
        candidates = np.flatnonzero(free & (truths == labels[d]) & (overlaps[d] >= iou))
        if len(candidates):
            # Of equal overlaps the official evaluation takes the last one.
            best = int(candidates[len(candidates) - 1 - np.argmax(overlaps[d, candidates][::-1])])
            taken[d], free[best] = best, False
        elif (crowd & (truths == labels[d]) & (overlaps[d] >= iou)).any():
            kinds[d] = IGNORED
    for d in np.flatnonzero((taken < 0) & (kinds == RIGHT)).tolist():
        kinds[d], fixed[d] = _error(overlaps[d], truths == labels[d], crowd, free, iou, background)
    return taken, kinds, fixed


def _error(
    overlaps: np.ndarray, own: np.ndarray, crowd: np.ndarray, free: np.ndarray, iou: float, background: float
) -> tuple[str, int]:
    """The kind of error of a detection, and the object it would find without it, by its overlaps ``[N]`` with all."""

    def nearest(which: np.ndarray) -> tuple[float, int]:
        places = np.flatnonzero(which & ~crowd)
        if not len(places):
            return 0.0, -1
        best = places[overlaps[places].argmax()]
        return float(overlaps[best]), int(best)

    overlap, place = nearest(own)
    if background <= overlap < iou:
        return "localisation", place if free[place] else -1
    overlap, place = nearest(~own)
    if overlap >= iou:
        return "classification", place if free[place] else -1
    if nearest(own)[0] >= iou:
        return "duplicate", -1
    return ("background" if nearest(np.ones_like(own))[0] <= background else "both"), -1


def average_precision(scores: np.ndarray, right: np.ndarray, objects: int) -> float:
    """COCO's AP at one IoU of the detections of a class; -1 without objects."""
    if not objects:
        return -1.0
    recall, precision = precision_recall(scores, right, objects)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(places < len(recall), np.append(envelope, 0.0)[places], 0.0).mean())


def precision_recall(scores: np.ndarray, right: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision ``[D]`` above the score of each detection, best first."""
    found = np.cumsum(right)
    return found / max(objects, 1), found / np.arange(1, len(scores) + 1)


def mean_precision(matches: Matches, labels: Sequence[int] | None = None) -> float:
    """The mean AP of some classes, 0 for one without objects; by default of all that have any. -1 of no class."""
    if labels is None:
        labels = np.unique(matches.object_labels).tolist()
    values = [max(0.0, average_precision(*matches.of_class(label), matches.objects(label))) for label in labels]
    return float(np.mean(values)) if values else -1.0


def error_counts(matches: Matches) -> dict[str, int]:
    """How many errors there are of each kind."""
    counts = {kind: int((matches.kinds == kind).sum()) for kind in KINDS}
    return counts | {"missed": int(matches.missed().sum())}


def error_costs(matches: Matches) -> dict[str, float]:
    """How much AP at the IoU of the matches would gain without the errors of each kind alone (dAP of TIDE)."""
    labels = np.unique(matches.object_labels).tolist()
    before = mean_precision(matches, labels)
    costs = {}
    for kind in KINDS:
        if kind == "missed":
            kept = ~matches.missed()
            changed = replace(
                matches, object_images=matches.object_images[kept], object_labels=matches.object_labels[kept]
            )
        else:
            changed = _without(matches, kind)
        costs[kind] = mean_precision(changed, labels) - before
    return costs


def _without(matches: Matches, kind: str) -> Matches:
    """The matches if detections with a kind of error had none: they are right, or gone where a better one would be.

    The better one may have an error of another kind, as in the published code.
    """
    kinds, labels = matches.kinds.copy(), matches.labels.copy()
    best: dict[int, int] = {}  # object -> detection
    for d in np.argsort(-matches.scores, kind="stable").tolist():
        best.setdefault(int(matches.fixed[d]), d)
    for d in np.flatnonzero(kinds == kind).tolist():
        place = int(matches.fixed[d])
        if place >= 0 and best[place] == d:
            kinds[d], labels[d] = RIGHT, matches.object_labels[place]
        else:
            kinds[d] = IGNORED
    return replace(matches, kinds=kinds, labels=labels)


@dataclass
class Thresholds:
    """The score above which the F1 of a class is greatest, and what it is there."""

    thresholds: list[float]  # of each class; 1 where it has no object or nothing is found
    f1: list[float]
    precision: list[float]
    recall: list[float]


def f1_curve(scores: np.ndarray, right: np.ndarray, objects: int) -> np.ndarray:
    """F1 ``[D]`` of all detections down to each one."""
    return 2 * np.cumsum(right) / (np.arange(1, len(scores) + 1) + max(objects, 1))


def best_thresholds(matches: Matches) -> Thresholds:
    """The threshold of each class with the greatest F1, halfway between the last score above it and the next one."""
    best = Thresholds([], [], [], [])
    for label in range(len(matches.classes)):
        scores, right = matches.of_class(label)
        objects = matches.objects(label)
        row = (1.0, 0.0, 0.0, 0.0)
        if objects and right.any():
            # Where scores are equal, all of them are above a threshold or none.
            last = np.append(scores[1:] != scores[:-1], True)
            curve = np.where(last, f1_curve(scores, right, objects), 0)
            place = int(curve.argmax())
            following = float(scores[place + 1]) if place + 1 < len(scores) else 0.0
            recall, precision = precision_recall(scores, right, objects)
            threshold = (float(scores[place]) + following) / 2
            row = (threshold, float(curve[place]), float(precision[place]), float(recall[place]))
        columns = (best.thresholds, best.f1, best.precision, best.recall)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return best


def calibration(matches: Matches, bins: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of detections in bins of the score: their mean score, the share that is right, and how many they are ``[bins]``.

    Bins without detections have NaN. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    counted = matches.kinds != IGNORED
    scores, right = matches.scores[counted], (matches.kinds == RIGHT)[counted]
    number = np.clip((scores * bins).astype(int), 0, bins - 1)
    counts = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        return (
            np.bincount(number, scores, bins) / counts,
            np.bincount(number, right, bins) / counts,
            counts,
        )


def calibration_error(matches: Matches, bins: int = 10) -> float:
    """The mean difference between score and share that is right, over detections (ECE of Guo et al.)."""
    scores, right, counts = calibration(matches, bins)
    return float(np.nansum(np.abs(scores - right) * counts) / max(counts.sum(), 1))


def confusion(
    ground_truth: Mapping[str, Any],
    results: Mapping[int, Sequence[Mapping[str, Any]]],
    kept: Callable[[Mapping[str, Any]], bool],
    iou_type: IouType = "bbox",
    iou: float = IOU,
) -> np.ndarray:
    """How often an object of one class is found as another ``[C + 1, C + 1]``: rows are objects, columns detections.

    Each detection, best first, takes the object with the greatest overlap that is free, whatever its class. The last
    row has detections that lie on no object, the last column objects without a detection. Crowds do not count, nor do
    detections that find none but a crowd of their class.

    Args:
        ground_truth: COCO's document.
        results: as of `match`.
        kept: whether an entry counts; at most the best `MOST` of an image do.
        iou_type: see `match`.
        iou: that makes a match.
    """
    categories = sorted(category["id"] for category in ground_truth["categories"])
    number = {category_id: label for label, category_id in enumerate(categories)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    truths = _by_image(ground_truth["annotations"])
    none = len(categories)
    matrix = np.zeros((none + 1, none + 1), dtype=np.int64)
    for image_id, entries in results.items():
        found = sorted((e for e in entries if e["category_id"] in number and kept(e)), key=lambda e: -e["score"])[:MOST]
        of_image = truths.get(image_id, [])
        truth_labels = np.array([number[one["category_id"]] for one in of_image], dtype=np.int64)
        crowd = np.array([bool(one.get("iscrowd")) for one in of_image], dtype=bool)
        free = ~crowd
        overlaps = _overlaps(found, of_image, iou_type, sizes[image_id])
        for entry, row in zip(found, overlaps, strict=True):
            own = number[entry["category_id"]]
            places = np.flatnonzero(free & (row >= iou))
            label = none
            if len(places):
                best = int(places[row[places].argmax()])
                free[best] = False
                label = int(truth_labels[best])
            elif (crowd & (truth_labels == own) & (row >= iou)).any():
                continue
            matrix[label, own] += 1
        np.add.at(matrix[:, none], truth_labels[free], 1)
    return matrix


def _by_image(annotations: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for annotation in annotations:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    return by_image


def errors_by_image(matches: Matches, thresholds: Sequence[float]) -> dict[int, int]:
    """Of each image, detections above the threshold of their class that are wrong, and objects that are not found."""
    above = matches.scores > np.array(thresholds)[matches.labels.astype(int)]
    wrong = above & (matches.kinds != RIGHT) & (matches.kinds != IGNORED)
    found = np.zeros(len(matches.object_labels), dtype=bool)
    found[matches.found[above & (matches.found >= 0)].astype(int)] = True
    errors = dict.fromkeys([*matches.image_ids.tolist(), *matches.object_images.tolist()], 0)
    for image_id in [*matches.image_ids[wrong].tolist(), *matches.object_images[~found].tolist()]:
        errors[image_id] += 1
    return errors
