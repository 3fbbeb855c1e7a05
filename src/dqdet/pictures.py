"""Pictures for people: detections drawn into images, beside the ground truth, and coefficients of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import supervision as sv
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from dqdet.data.transforms import MEAN, STD
from dqdet.types import Target

PALETTE = sv.ColorPalette.DEFAULT  # a class has the same colour in all pictures


def _readable_on(color: sv.Color) -> sv.Color:
    """Black or white, whichever stands out against the colour (relative luminance, ITU-R BT.709)."""
    luminance = 0.2126 * color.r + 0.7152 * color.g + 0.0722 * color.b
    return sv.Color.BLACK if luminance > 130 else sv.Color.WHITE


TEXT_PALETTE = sv.ColorPalette([_readable_on(color) for color in PALETTE.colors])


def unnormalised(image: Tensor) -> Image.Image:
    """The picture that a network's input ``[3, H, W]`` shows."""
    mean, std = image.new_tensor(MEAN), image.new_tensor(STD)
    return F.to_pil_image((image * std[:, None, None] + mean[:, None, None]).clamp(0, 1))


def ground_truth(target: Target, size: tuple[int, int], classes: Sequence[str]) -> sv.Detections:
    """The objects of an image as detections, in pixels of a picture with height and width ``size``."""
    height, width = size
    boxes = box_convert(target.boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    labels = target.labels.numpy()
    return sv.Detections(boxes.numpy(), class_id=labels, data={"class_name": np.array(classes)[labels]})


def annotated(image: Image.Image, detections: sv.Detections, longer_side: int) -> Image.Image:
    """The image, resized to ``longer_side`` pixels, with boxes and labels that are legible at this size.

    Args:
        image: RGB.
        detections: in pixels of ``image``, with ``data["class_name"]``; without confidence the labels are
            names only.
        longer_side: of the returned picture.
    """
    scale = longer_side / max(image.size)
    scene = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    detections = sv.Detections(
        sv.clip_boxes(detections.xyxy * scale, scene.size),
        class_id=detections.class_id,
        confidence=detections.confidence,
        data=detections.data,
    )
    labels = [str(name) for name in detections.data["class_name"]]
    if detections.confidence is not None:
        labels = [f"{name} {score:.2f}" for name, score in zip(labels, detections.confidence, strict=True)]
    font_size = max(11, round(longer_side / 45))
    scene = sv.BoxAnnotator(PALETTE, thickness=max(2, round(longer_side / 320))).annotate(scene, detections)
    return sv.RichLabelAnnotator(
        PALETTE,
        text_color=TEXT_PALETTE,
        font_size=font_size,
        text_padding=font_size // 4,
        smart_position=True,
    ).annotate(scene, detections, labels)


def side_by_side(
    images: Sequence[Image.Image], columns: Mapping[str, Sequence[sv.Detections]], width: int = 480
) -> Image.Image:
    """A grid with a row for each image and a titled column for each source of detections.

    Args:
        images: RGB.
        columns: title -> detections of each image, for example
            ``{"ground truth": truths, "static": ..., "modulated": ...}``.
        width: of a column, pixels.
    """
    gap, title_height = width // 40, width // 12
    rows = [
        [annotated(image, found, width) for found in row] for image, *row in zip(images, *columns.values(), strict=True)
    ]
    height = title_height + sum(row[0].height + gap for row in rows)
    grid = Image.new("RGB", (gap + len(columns) * (width + gap), height), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(title_height // 2)
    lefts = [gap + column * (width + gap) for column in range(len(columns))]
    for left, title in zip(lefts, columns, strict=True):
        draw.text((left + width // 2, title_height // 2), title, "#333333", font, anchor="mm")
    top = title_height
    for row in rows:
        for left, cell in zip(lefts, row, strict=True):
            grid.paste(cell, (left + (width - cell.width) // 2, top))  # portraits are narrower
        top += row[0].height + gap
    return grid


def coefficient_figure(images: Sequence[Image.Image], coefficients: Tensor) -> Figure:
    """The combination coefficients W (Eq. 5) of each image, and their differences from the images' mean.

    A column of a map is one modulated query; its r cells are the weights of its basic queries.

    Args:
        images: B pictures.
        coefficients: ``[B, m, r]``, as in ``Predictions.coefficients``.
    """
    weights = coefficients.detach().float().cpu().numpy().transpose(0, 2, 1)  # [B, r, m]
    differences = weights - weights.mean(0)
    count, ratio, queries = weights.shape
    strongest = max(float(np.abs(differences).max()), 1e-6)
    absolute = Normalize(min(0.0, float(weights.min())), float(weights.max()))
    relative = Normalize(-strongest, strongest)
    maps = (
        (weights, "viridis", absolute, "$W$", "one row a basic query"),
        (differences, "RdBu_r", relative, "$W - \\overline{W}$", "difference from the mean of these images"),
    )

    figure = Figure(figsize=(14, 1.2 + 1.7 * count), dpi=110, layout="constrained")
    figure.suptitle(f"{queries} modulated queries, each a combination of {ratio} basic queries")
    heights = [1, 1] * count + [0.3]
    grid = figure.add_gridspec(len(heights), 3, width_ratios=[2, 5, 5], height_ratios=heights)
    for i, image in enumerate(images):
        axes = figure.add_subplot(grid[2 * i : 2 * i + 2, 0])
        axes.imshow(image)
        axes.set_axis_off()
    for j, (values, colors, scale, symbol, meaning) in enumerate(maps):
        for i in range(count):
            axes = figure.add_subplot(grid[2 * i + j, 1:])
            axes.imshow(values[i], colors, scale, aspect="auto", interpolation="nearest")
            axes.set_ylabel(symbol)
            axes.set_yticks([])
            axes.tick_params(labelbottom=False)
        bar = figure.add_subplot(grid[-1, 1 + j])
        shown = ScalarMappable(scale, colors)
        figure.colorbar(shown, bar, orientation="horizontal", label=f"{symbol}, {meaning}")
    axes = figure.axes[-2]  # the lowest map
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("modulated query")
    return figure
