"""What is in a data set, as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dqdet.data.overview import Overview
from dqdet.drawing.page import Page

COLUMNS = 3  # of a sheet of pictures
GAP = 8  # pixels between them


def overview_page(
    title: str,
    splits: Mapping[str, Overview],
    sheets: Mapping[str, Image.Image],
    rows: Sequence[Sequence[str]],
    faults: Sequence[str],
) -> str:
    """The HTML of a page.

    Args:
        title: of the page.
        splits: what is in each.
        sheets: pictures of each.
        rows: of the table of the splits, see `table`.
        faults: of the data.
    """
    page = Page(title)
    page.table(["", *splits], rows)
    for fault in faults:
        page.text(f"Fault: {fault}")
    if splits:
        page.figure(class_figure(splits), "Objects of each class, largest first.")
        page.figure(size_figure(splits), "Sizes of images, sizes of boxes when images are resized, and what they hold.")
    for split, sheet in sheets.items():
        page.heading(f"{split}: images drawn at random")
        page.picture(sheet, f"Annotations of {split}.")
    return page.html()


def class_figure(splits: Mapping[str, Overview], most: int = 40) -> Figure:
    """Objects of each class as bars, of the ``most`` classes with most of them."""
    totals = {name: sum(s.classes.get(name, 0) for s in splits.values()) for s in splits.values() for name in s.classes}
    names = sorted(totals, key=lambda name: -totals[name])[:most]
    places = np.arange(len(names))
    figure = Figure(figsize=(10, 1 + 0.28 * max(len(names), 4)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(splits)
    for number, (split, found) in enumerate(splits.items()):
        axes.barh(places + number * height, [found.classes.get(name, 0) for name in names], height, label=split)
    axes.set_yticks(places + 0.4 - height / 2, [name[:40].replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("objects")
    axes.legend()
    return figure


def size_figure(splits: Mapping[str, Overview]) -> Figure:
    """Scatter of image and box sizes; histograms of objects an image and of aspect ratios."""
    figure = Figure(figsize=(10, 7), dpi=100, layout="constrained")
    images, boxes, counts, ratios = figure.subplots(2, 2).flat
    for split, found in splits.items():
        images.scatter(found.sizes[:, 1], found.sizes[:, 0], s=12, alpha=0.5, label=split)
        boxes.scatter(found.resized[:, 1], found.resized[:, 0], s=4, alpha=0.3, label=split)
        bins = np.arange(found.counts.max(initial=0) + 2) - 0.5 if found.counts.max(initial=0) < 60 else 60
        counts.hist(found.counts, bins, histtype="step", density=True, label=split)
        ratios.hist(np.log2(found.aspect_ratios), 40, histtype="step", density=True, label=split)
    images.set(title="images", xlabel="width, pixels", ylabel="height, pixels")
    boxes.set(title="boxes for the model", xlabel="width, pixels", ylabel="height, pixels")
    counts.set(title="objects an image", xlabel="objects", ylabel="share of images")
    ratios.set(title="aspect ratios of boxes", xlabel="log2(width / height)", ylabel="density")
    images.legend()
    return figure


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows, in columns of one width."""
    width = max(picture.width for picture in pictures)
    rows = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
    height = sum(max(picture.height for picture in row) + GAP for row in rows)
    whole = Image.new("RGB", (COLUMNS * (width + GAP), height), "white")
    top = 0
    for row in rows:
        for column, picture in enumerate(row):
            whole.paste(picture, (column * (width + GAP), top))
        top += max(picture.height for picture in row) + GAP
    return whole
