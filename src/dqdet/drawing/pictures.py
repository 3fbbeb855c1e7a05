"""Pictures for people: boxes, masks and tracks drawn into images, beside the ground truth; coefficients of queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import supervision as sv
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from dqdet.errors import printable
from dqdet.types import ImageDetections, PanopticMap, RleMasks, Target

Threshold: TypeAlias = float | Sequence[float]  # of scores: one, or one of each class

PALETTE = sv.ColorPalette.DEFAULT  # a class has the same colour in all pictures
SHADES = (0.0, 0.5, -0.4, 0.25, -0.2)  # of the objects of one class, in turn
INDEX = sv.ColorLookup.INDEX  # the colour k of a palette is that of detection k


def _readable_on(color: sv.Color) -> sv.Color:
    """Black or white, whichever stands out against the colour (relative luminance, ITU-R BT.709)."""
    luminance = 0.2126 * color.r + 0.7152 * color.g + 0.0722 * color.b
    return sv.Color.BLACK if luminance > 130 else sv.Color.WHITE


def ground_truth(target: Target, size: tuple[int, int], classes: Sequence[str]) -> sv.Detections:
    """The objects of an image as detections, in pixels of a picture with height and width ``size``."""
    height, width = size
    boxes = box_convert(target.boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    masks = None
    if target.masks is not None:
        masks = F.resize_mask(target.masks.to(torch.uint8), [height, width]).bool().numpy()  # [N, height, width]
    labels = target.labels.numpy()
    return sv.Detections(boxes.numpy(), masks, class_id=labels, data={"class_name": np.array(classes)[labels]})


def picture(image: Image.Image | Tensor) -> Image.Image:
    """The image of a ``Sample``, which may be a tensor ``[3, H, W]`` (uint8), as Pillow has it."""
    return F.to_pil_image(image) if isinstance(image, Tensor) else image


def objects(boxes: Tensor, labels: Tensor, classes: Sequence[str], masks: Tensor | None = None) -> sv.Detections:
    """The objects of a ``Sample`` that is not augmented: boxes ``[N, 4]`` (x0, y0, x1, y1) in pixels of its image."""
    numbers = labels.numpy()
    shapes = None if masks is None else masks.bool().numpy()  # [N, H, W]
    return sv.Detections(boxes.numpy(), shapes, class_id=numbers, data={"class_name": np.array(classes)[numbers]})


def above(found: ImageDetections, threshold: Threshold) -> Tensor:
    """Which detections ``[K]`` (bool) to show: those in a track, or else above a threshold or that of their class."""
    if found.track_ids is not None:
        return found.track_ids > 0
    if isinstance(threshold, float | int):
        return found.scores > threshold
    return found.scores > torch.tensor(threshold, device=found.scores.device)[found.labels]


def detected(
    found: ImageDetections, classes: Sequence[str], threshold: Threshold, size: tuple[int, int] | None = None
) -> sv.Detections:
    """The detections above ``threshold`` with their class names; masks of the image reduced to ``size``, if given.

    Args:
        found: in an image.
        classes: the name of each label.
        threshold: in 0..1, or one of each class.
        size: width and height.
    """
    kept = above(found, threshold)
    labels = found.labels[kept].cpu().numpy()
    masks = None
    if found.masks is not None:
        of_kept = found.masks[kept.nonzero()[:, 0].tolist()]
        masks = of_kept.decoded() if size is None else resized(of_kept, size)
    return sv.Detections(
        xyxy=found.boxes[kept].cpu().numpy(),
        mask=masks,
        class_id=labels,
        confidence=found.scores[kept].cpu().numpy(),
        tracker_id=None if found.track_ids is None else found.track_ids[kept].cpu().numpy(),
        data={"class_name": np.array(classes)[labels]},
    )


def segments(panoptic: PanopticMap, category_ids: Sequence[int], classes: Sequence[str]) -> sv.Detections:
    """The segments of a panoptic map, things and stuff, as detections that `annotated` draws.

    Args:
        panoptic: of one image; where its segments have a ``score``, the detections have their confidence.
        category_ids: the category id of each label.
        classes: the name of each label.
    """
    numbers = np.array([segment["id"] for segment in panoptic.segments], dtype=panoptic.ids.dtype)
    masks = panoptic.ids == numbers[:, None, None]  # [K, H, W]
    labels = np.array([category_ids.index(segment["category_id"]) for segment in panoptic.segments], dtype=int)
    scores = [segment["score"] for segment in panoptic.segments if "score" in segment]
    return sv.Detections(
        sv.mask_to_xyxy(masks).astype(np.float32),
        masks,
        class_id=labels,
        confidence=np.array(scores) if len(scores) == len(labels) else None,
        data={"class_name": np.array(classes)[labels]},
    )


def annotated(image: Image.Image, detections: sv.Detections, longer_side: int) -> Image.Image:
    """The image, resized to ``longer_side`` pixels, with what was found and labels that are legible at this size.

    Masks are drawn where there are any, otherwise boxes. A class has one colour, of which its objects have
    different shades where they have masks; tracks (``tracker_id``) have a colour each.

    Args:
        image: RGB.
        detections: in pixels of ``image``, with ``data["class_name"]``; without confidence the labels are
            names only.
        longer_side: of the returned picture.
    """
    scale = longer_side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    scene = image.resize(size, Image.Resampling.BICUBIC)
    if detections.mask is None:
        masks = None
    else:
        masks = resized(np.asarray(detections.mask), scene.size)  # [K, H, W]
        seen = masks.any((1, 2))
        detections, masks = detections[np.flatnonzero(seen)], masks[seen]  # type: ignore[assignment]
    if not len(detections):
        return scene
    detections = sv.Detections(
        sv.clip_boxes(detections.xyxy * scale, scene.size),
        masks,
        class_id=detections.class_id,
        confidence=detections.confidence,
        tracker_id=detections.tracker_id,
        data=detections.data,
    )
    colours = _colours(detections)
    palette, text_palette = sv.ColorPalette(colours), sv.ColorPalette([_readable_on(colour) for colour in colours])
    thickness = max(2, round(longer_side / 320))
    if masks is None:
        scene = sv.BoxAnnotator(palette, thickness, color_lookup=INDEX).annotate(scene, detections)
        anchors, position = detections, sv.Position.TOP_LEFT
    else:
        scene = sv.MaskAnnotator(palette, opacity=0.45, color_lookup=INDEX).annotate(scene, detections)
        scene = _outlined(scene, masks, colours, thickness)
        centres = np.array([_innermost(mask) for mask in masks])  # [K, 2] x, y
        anchors, position = sv.Detections(np.concatenate([centres, centres], 1)), sv.Position.CENTER
    font_size = max(11, round(longer_side / 45))
    return sv.RichLabelAnnotator(
        palette,
        text_color=text_palette,
        color_lookup=INDEX,
        font_size=font_size,
        text_padding=font_size // 4,
        text_position=position,
        smart_position=True,
    ).annotate(scene, anchors, _labels(detections))


def _labels(detections: sv.Detections) -> list[str]:
    labels = [printable(str(name)) for name in detections.data["class_name"]]
    if detections.tracker_id is not None:
        labels = [f"{label} {number}" for label, number in zip(labels, detections.tracker_id, strict=True)]
    if detections.confidence is not None:
        labels = [f"{label} {score:.2f}" for label, score in zip(labels, detections.confidence, strict=True)]
    return labels


def _colours(detections: sv.Detections) -> list[sv.Color]:
    """The colour of each detection: of its track, or of its class, shaded by how many came before in that class."""
    if detections.tracker_id is not None:
        return [PALETTE.by_idx(int(number)) for number in detections.tracker_id]
    assert detections.class_id is not None
    labels = detections.class_id.tolist()
    if detections.mask is None:
        return [PALETTE.by_idx(label) for label in labels]
    before = [labels[:k].count(label) for k, label in enumerate(labels)]
    return [_shade(PALETTE.by_idx(label), SHADES[k % len(SHADES)]) for label, k in zip(labels, before, strict=True)]


def _shade(color: sv.Color, shade: float) -> sv.Color:
    """Lighter (above 0) or darker (below 0) by this part of what there is up to white or black."""
    end = 255 if shade > 0 else 0
    return sv.Color(*(round(channel + abs(shade) * (end - channel)) for channel in color.as_rgb()))


def resized(masks: np.ndarray | RleMasks, size: tuple[int, int]) -> np.ndarray:
    """Masks ``[K, H, W]`` at another size (width, height), with smooth outlines."""
    resized = np.zeros((len(masks), size[1], size[0]), dtype=bool)
    for mask, out in zip(masks, resized, strict=True):
        out[:] = np.asarray(Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BILINEAR)) > 127
    return resized


def _outlined(scene: Image.Image, masks: np.ndarray, colours: Sequence[sv.Color], thickness: int) -> Image.Image:
    pixels = np.array(scene)  # [H, W, 3]
    for mask, colour in zip(masks, colours, strict=True):
        for place in find_objects(mask.astype(np.uint8)):
            inner = binary_erosion(mask[place], iterations=thickness)
            pixels[place][mask[place] & ~inner] = colour.as_rgb()
    return Image.fromarray(pixels)


def _innermost(mask: np.ndarray) -> tuple[int, int]:
    """The point (x, y) of a mask that is farthest from its outline and from the border of the image."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    return int(x), int(y)


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
