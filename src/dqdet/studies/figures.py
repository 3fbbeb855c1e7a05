"""The figures of studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dqdet.studies.paired import Difference

WIDTH, HEIGHT = 4.5, 3.4  # inches, of one subject's part


def curves(subjects: Mapping[str, Mapping[str, Sequence[Sequence[tuple[float, float]]]]], metric: str) -> Figure:
    """A metric along the training: of every arm the mean over its seeds, and their range.

    Args:
        subjects: label -> arm -> of each seed the points (step, metric).
        metric: its name.
    """
    figure, parts = _parts(list(subjects))
    for axes, arms in zip(parts, subjects.values(), strict=True):
        for arm, seeds in arms.items():
            steps = sorted({step for points in seeds for step, _ in points})
            values = [[value for points in seeds for at, value in points if at == step] for step in steps]
            (line,) = axes.plot(steps, [np.mean(some) for some in values], marker=".", label=arm)
            axes.fill_between(
                steps, [min(some) for some in values], [max(some) for some in values], color=line.get_color(), alpha=0.2
            )
        axes.set(xlabel="step", ylabel=metric)
        axes.legend()
    return figure


def places(
    subjects: Mapping[str, Mapping[str, Sequence[tuple[float | None, Sequence[float]]]]], axis: str, metric: str
) -> Figure:
    """A metric against a number: one line of means with standard deviations for each kind of queries.

    Args:
        subjects: label -> line -> points: place, None for a line at all places, and the metric of all seeds.
        axis: what the number is.
        metric: its name.
    """
    figure, parts = _parts(list(subjects))
    for axes, lines in zip(parts, subjects.values(), strict=True):
        for label, points in lines.items():
            measured = [(x, values) for x, values in points if values]
            if measured and measured[0][0] is None:
                axes.axhline(float(np.mean(measured[0][1])), linestyle="--", color="grey", label=label)
                continue
            axes.errorbar(
                [x for x, _ in measured if x is not None],
                [float(np.mean(values)) for _, values in measured],
                [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for _, values in measured],
                marker="o",
                capsize=3,
                label=label,
            )
        axes.set(xlabel=axis, ylabel=metric)
        axes.legend()
    return figure


def differences(subjects: Mapping[str, Mapping[str, Difference]], reference: str) -> Figure:
    """Mean differences to the reference with their intervals, one line each.

    Args:
        subjects: label -> arm -> its difference.
        reference: its name.
    """
    figure, parts = _parts(list(subjects))
    for axes, arms in zip(parts, subjects.values(), strict=True):
        for place, found in enumerate(arms.values()):
            low, high = found.interval or (found.mean, found.mean)
            axes.plot([low, high], [place, place], color="C0" if found.shown else "grey")
            axes.plot([found.mean], [place], "o", color="C0" if found.shown else "grey")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(arms)), list(arms))
        axes.invert_yaxis()
        axes.set(xlabel=f"difference to {reference}")
    return figure


def _parts(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure without any display, with a part for each title."""
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure((WIDTH * columns, HEIGHT * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    parts = list(grid.flat)
    for axes, title in zip(parts, titles, strict=False):
        axes.set_title(title)
    for axes in parts[len(titles) :]:
        axes.remove()
    return figure, parts[: len(titles)]
