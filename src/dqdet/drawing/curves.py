"""How a training goes: losses, learning rates and scores over its steps, from the table that it logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SHOWN_CLASSES = 20  # as many curves can be told apart, more or less


def curves(rows: Sequence[Mapping[str, str]], metric: str) -> Figure:
    """Losses, learning rates, and the validation's metric with that of each class.

    Args:
        rows: of ``logs/csv/version_0/metrics.csv``: ``step`` and what was logged then; empty where nothing was.
        metric: that says which of two models is better.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    figure = Figure(figsize=(12, 4), dpi=100)
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.13, top=0.91, wspace=0.2)  # a layout would take longer
    losses, rates, scores = figure.subplots(1, 3)
    _draw(losses, rows, {"train/loss": "loss"})
    terms = [name for name in columns if name.startswith("train/") and name != "train/loss"]
    _draw(losses, rows, {name: name.removeprefix("train/") for name in terms}, linewidth=0.7)
    _draw(rates, rows, {name: name.removeprefix("lr-") for name in columns if name.startswith("lr-")})
    _draw(scores, rows, {f"val/{metric}": metric}, color="black", linewidth=2, marker=".")
    classes = [name for name in columns if name.startswith(f"val/{metric}/")][:SHOWN_CLASSES]
    _draw(scores, rows, {name: name.removeprefix(f"val/{metric}/") for name in classes}, linewidth=0.8)
    losses.set(title="loss of training steps", yscale="log")
    rates.set(title="learning rates", yscale="log")
    scores.set(title=f"{metric} of validations")
    for axes in (losses, rates, scores):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(fontsize="x-small")
    return figure


def _draw(axes: Axes, rows: Sequence[Mapping[str, str]], names: Mapping[str, str], **style: Any) -> None:
    for name, label in names.items():
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name) and row["step"].isdecimal()]
        if points:
            # A label that begins with _ is hidden, and $ begins a formula.
            axes.plot(*zip(*points, strict=True), label=label.lstrip("_")[:40].replace("$", r"\$"), **style)
