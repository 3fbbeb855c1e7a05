"""What an evaluation found, as a page: metrics, curves, errors, and the images with most of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dqdet.drawing.page import Page
from dqdet.metrics.errors import (
    Matches,
    Thresholds,
    calibration,
    calibration_error,
    error_costs,
    error_counts,
    f1_curve,
    precision_recall,
)
from dqdet.metrics.scores import shown

SHOWN_CLASSES = 20  # whose curves can be told apart, more or less: those with most objects


def report_page(
    title: str,
    metrics: Mapping[str, float],
    matches: Matches,
    best: Thresholds,
    confused: np.ndarray,
    pictures: Sequence[tuple[str, Image.Image]],
    speed: str,
) -> str:
    """The HTML of a page.

    Args:
        title: of the page.
        metrics: as in ``metrics.json``.
        matches: of all detections.
        best: the threshold of each class, which the tables and pictures below the metrics are made with.
        confused: see `dqdet.metrics.errors.confusion`.
        pictures: of the images with most errors, with what is said below each.
        speed: of the evaluation, in words.
    """
    page = Page(title)
    page.text(speed)
    page.heading("Metrics")
    whole = {name: value for name, value in metrics.items() if "/" not in name}
    page.table(["metric", "value"], [[name, shown(value)] for name, value in whole.items()])
    page.heading("Classes")
    page.table(*_class_table(metrics, matches, best))
    page.text(
        "Threshold: the score above which F1 is greatest at an IoU of 0.5; `dqdet predict --threshold auto` uses it. "
        "Precision and recall are those above it."
    )
    page.figure(curve_figure(matches), "Curves at an IoU of 0.5, of the classes with most objects.")
    page.heading("Errors")
    counts, costs = error_counts(matches), error_costs(matches)
    page.table(
        ["kind (TIDE)", "count", "AP50 without them"],
        [[kind, str(counts[kind]), f"+{costs[kind]:.3f}"] for kind in counts],
    )
    page.figure(confusion_figure(confused, matches.classes), "Confusion above the thresholds: rows are objects.")
    page.text(f"Calibration error (ECE): {calibration_error(matches):.3f}")
    if pictures:
        page.heading("Images with most errors")
    for caption, picture in pictures:
        page.picture(picture, caption)
    return page.html()


def _class_table(metrics: Mapping[str, float], matches: Matches, best: Thresholds) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name.partition("/")[0] for name in metrics if "/" in name))
    rows = []
    for label, name in enumerate(matches.classes):
        of_class = [shown(metrics.get(f"{metric}/{name}")) for metric in names]
        values = (best.thresholds, best.f1, best.precision, best.recall)
        rows.append([name, str(matches.objects(label)), *of_class, *(f"{column[label]:.3f}" for column in values)])
    return ["class", "objects", *names, "threshold", "F1", "precision", "recall"], rows


def curve_figure(matches: Matches) -> Figure:
    """Precision against recall and F1 against the threshold of each class; calibration of all."""
    figure = Figure(figsize=(12, 4), dpi=100)
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.13, top=0.91, wspace=0.2)
    precisions, f1, calibrated = figure.subplots(1, 3)
    counts = np.bincount(matches.object_labels, minlength=len(matches.classes))
    for label in np.argsort(-counts, kind="stable")[:SHOWN_CLASSES].tolist():
        if not counts[label]:
            continue
        scores, right = matches.of_class(label)
        name = matches.classes[label].lstrip("_")[:30].replace("$", r"\$")
        recall, precision = precision_recall(scores, right, int(counts[label]))
        precisions.plot(recall, precision, linewidth=1, label=name)
        f1.plot(scores, f1_curve(scores, right, int(counts[label])), linewidth=1)
    mean, share, _ = calibration(matches)
    calibrated.plot([0, 1], [0, 1], color="#aaaaaa", linewidth=1)
    calibrated.plot(mean, share, "o-", color="black")
    precisions.set(title="precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    f1.set(title="F1", xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02))
    calibrated.set(title="calibration", xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    if precisions.lines:
        precisions.legend(fontsize="x-small")
    return figure


def confusion_figure(confused: np.ndarray, classes: Sequence[str]) -> Figure:
    """The matrix ``[C + 1, C + 1]``, rows scaled to 1; of few classes with the counts."""
    names = [name[:20].replace("$", r"\$") for name in classes]
    side = min(12.0, 3.5 + 0.35 * len(confused))
    figure = Figure(figsize=(side, side), dpi=100)
    figure.subplots_adjust(left=0.22, right=0.97, bottom=0.22, top=0.97)
    axes = figure.add_subplot()
    axes.imshow(confused / np.maximum(confused.sum(1, keepdims=True), 1), "Blues", vmin=0, vmax=1)
    places = range(len(confused))
    axes.set_xticks(places, [*names, "nothing"], rotation=90, fontsize="small")
    axes.set_yticks(places, [*names, "nothing"], fontsize="small")
    axes.set(xlabel="found as", ylabel="object")
    if len(confused) <= 15:
        for row, column in np.argwhere(confused > 0).tolist():
            dark = confused[row, column] > confused[row].sum() / 2
            colour = "white" if dark else "black"
            axes.text(column, row, str(confused[row, column]), ha="center", va="center", color=colour, fontsize="small")
    return figure
