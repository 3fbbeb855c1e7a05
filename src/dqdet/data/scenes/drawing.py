"""How scenes are drawn: shapes made of coloured polygons, and a canvas that keeps track of what a pixel shows.

Shapes are given in their own coordinates, x to the right and y downwards, and fill about -0.5..0.5 in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import PIL.Image
import PIL.ImageDraw

Colour = tuple[int, int, int]
Part = tuple[Colour, np.ndarray]  # colour and polygon [P, 2]

WHITE, BLACK, SKIN, WOOD = (245, 245, 240), (30, 30, 35), (224, 176, 140), (120, 82, 50)
GLASS, METAL, LAMP = (176, 214, 232), (150, 152, 158), (255, 236, 150)
COFFEE, TEA = (92, 56, 34), (206, 150, 70)
OVERSAMPLING = 2  # of the canvas, for smooth edges


@dataclass(frozen=True)
class Look:
    """What varies between the objects of a class."""

    colour: Colour
    second: Colour
    pose: float  # -1..1, what it moves depends on the class


def tint(colour: Colour, factor: float) -> Colour:
    """Darker for a factor below 1, lighter above."""
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


def polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points)


def rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    """A rectangle with the upper left corner (x, y)."""
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


@cache
def circle(corners: int) -> np.ndarray:
    """The unit circle as a polygon [corners, 2], clockwise from the right."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)


def ellipse(x: float, y: float, width: float, height: float, corners: int = 24) -> np.ndarray:
    """An ellipse around (x, y) as a polygon [corners, 2]."""
    return circle(corners) * (width / 2, height / 2) + (x, y)


def limb(x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    """A thick line from (x0, y0) to (x1, y1)."""
    across = np.array([y0 - y1, x1 - x0])
    across *= width / 2 / np.hypot(*across)
    start, end = np.array([x0, y0]), np.array([x1, y1])
    return np.stack([start + across, end + across, end - across, start - across])


def person(look: Look) -> list[Part]:
    stride, trousers = 0.2 + 0.22 * abs(look.pose), look.second
    return [
        (tint(trousers, 0.8), limb(0, 0.08, -stride, 0.5, 0.2)),
        (trousers, limb(0, 0.08, stride, 0.5, 0.2)),
        (tint(look.colour, 0.75), limb(-0.2, -0.2, -0.36, 0.04 + 0.1 * look.pose, 0.14)),
        (tint(look.colour, 0.75), limb(0.2, -0.2, 0.36, 0.04 - 0.1 * look.pose, 0.14)),
        (look.colour, polygon((-0.28, -0.26), (0.28, -0.26), (0.22, 0.13), (-0.22, 0.13))),
        (SKIN, ellipse(0, -0.38, 0.38, 0.24)),
        (trousers, polygon((-0.2, -0.4), (-0.14, -0.5), (0.14, -0.5), (0.2, -0.4))),
    ]


def car(look: Look) -> list[Part]:
    tail = -0.42 if look.pose > 0 else -0.3  # estate or saloon
    return [
        (tint(look.colour, 0.85), polygon((tail, -0.1), (-0.24, -0.5), (0.12, -0.5), (0.3, -0.1))),
        (GLASS, polygon((tail + 0.07, -0.12), (-0.2, -0.42), (-0.08, -0.42), (-0.08, -0.12))),
        (GLASS, polygon((-0.03, -0.12), (-0.03, -0.42), (0.1, -0.42), (0.23, -0.12))),
        (look.colour, polygon((-0.5, -0.1), (0.36, -0.1), (0.5, 0.02), (0.5, 0.32), (-0.5, 0.32))),
        (LAMP, polygon((0.43, 0.02), (0.5, 0.02), (0.5, 0.14), (0.43, 0.14))),
        (BLACK, ellipse(-0.28, 0.3, 0.22, 0.4)),
        (BLACK, ellipse(0.28, 0.3, 0.22, 0.4)),
        (METAL, ellipse(-0.28, 0.3, 0.1, 0.18)),
        (METAL, ellipse(0.28, 0.3, 0.1, 0.18)),
    ]


def sheep(look: Look) -> list[Part]:
    head = -0.14 + 0.22 * look.pose  # grazing or looking up
    wool = look.colour
    return [
        (BLACK, limb(-0.2, 0.1, -0.22, 0.5, 0.08)),
        (BLACK, limb(0.16, 0.1, 0.18, 0.5, 0.08)),
        (tint(wool, 0.85), ellipse(-0.1, 0.06, 0.74, 0.5)),
        (wool, ellipse(-0.26, -0.1, 0.44, 0.56)),
        (wool, ellipse(0.0, -0.18, 0.42, 0.56)),
        (wool, ellipse(0.14, -0.04, 0.4, 0.5)),
        (BLACK, ellipse(0.36, head, 0.26, 0.34)),
        (wool, ellipse(0.3, head - 0.14, 0.16, 0.16)),
    ]


def boat(look: Look) -> list[Part]:
    bulge = 0.06 * look.pose
    return [
        (WOOD, limb(0.0, -0.5, 0.0, 0.3, 0.04)),
        (look.second, polygon((0.03, -0.48), (0.26 + bulge, -0.1), (0.42, 0.2), (0.03, 0.2))),
        (tint(look.second, 0.85), polygon((-0.04, -0.4), (-0.04, 0.2), (-0.36, 0.2), (-0.24 + bulge, -0.06))),
        (look.colour, polygon((-0.5, 0.26), (0.5, 0.26), (0.36, 0.5), (-0.36, 0.5))),
        (tint(look.colour, 0.7), polygon((-0.42, 0.39), (0.43, 0.39), (0.36, 0.5), (-0.36, 0.5))),
    ]


def kite(look: Look) -> list[Part]:
    wave = 0.12 * look.pose
    tail = [(0.0, 0.2), (wave, 0.3), (-wave, 0.4), (wave, 0.5)]
    top, right, bottom, left, middle = (0.0, -0.5), (0.4, -0.14), (0.0, 0.24), (-0.4, -0.14), (0.0, -0.14)
    return [
        *((WHITE, limb(*start, *end, 0.035)) for start, end in pairwise(tail)),
        (look.second, ellipse(*tail[1], 0.14, 0.06, 8)),
        (look.second, ellipse(*tail[3], 0.14, 0.06, 8)),
        (look.colour, polygon(top, middle, left)),
        (look.second, polygon(top, right, middle)),
        (look.second, polygon(left, middle, bottom)),
        (look.colour, polygon(middle, right, bottom)),
    ]


def balloon(look: Look) -> list[Part]:
    return [
        (WOOD, polygon((-0.12, 0.34), (0.12, 0.34), (0.1, 0.5), (-0.1, 0.5))),
        (BLACK, limb(-0.22, 0.1, -0.1, 0.36, 0.025)),
        (BLACK, limb(0.22, 0.1, 0.1, 0.36, 0.025)),
        (look.colour, polygon((-0.44, 0.0), (0.44, 0.0), (0.14, 0.26), (-0.14, 0.26))),
        (look.colour, ellipse(0, -0.12, 1.0, 0.76)),
        (look.second, ellipse(0, -0.12, 0.62, 0.76)),
        (look.second, polygon((-0.26, 0.0), (0.26, 0.0), (0.08, 0.26), (-0.08, 0.26))),
        (look.colour, ellipse(0, -0.12, 0.24, 0.76)),
        (look.colour, polygon((-0.1, 0.0), (0.1, 0.0), (0.04, 0.26), (-0.04, 0.26))),
    ]


def plate(look: Look) -> list[Part]:
    return [
        (tint(look.colour, 0.8), ellipse(0, 0.02, 1.0, 0.96)),
        (look.colour, ellipse(0, -0.02, 1.0, 0.94)),
        (look.second, ellipse(0, -0.02, 0.82, 0.76)),
        (look.colour, ellipse(0, -0.02, 0.74, 0.68)),
        (tint(look.colour, 0.92), ellipse(0, 0.02, 0.6, 0.54)),
    ]


def cup(look: Look) -> list[Part]:
    drink = COFFEE if look.pose > 0 else TEA
    # The right half of an ellipse and, backwards, that of a smaller one: the table is seen through the handle.
    half = circle(24)[np.arange(-6, 7)]
    handle = np.concatenate([half * (0.22, 0.25), half[::-1] * (0.11, 0.15)])
    handle[:, 0] += 0.2
    return [
        (tint(look.colour, 0.8), handle),
        (look.colour, polygon((-0.5, -0.36), (0.26, -0.36), (0.16, 0.42), (-0.4, 0.42))),
        (look.colour, ellipse(-0.12, 0.42, 0.56, 0.16)),
        (tint(look.colour, 1.25), ellipse(-0.12, -0.36, 0.76, 0.28)),
        (drink, ellipse(-0.12, -0.35, 0.62, 0.2)),
    ]


SHAPES: dict[str, Callable[[Look], list[Part]]] = {
    "person": person,
    "car": car,
    "sheep": sheep,
    "boat": boat,
    "kite": kite,
    "balloon": balloon,
    "plate": plate,
    "cup": cup,
}


class Canvas:
    """A square picture, and for each of its pixels the number of the segment that is visible there.

    Coordinates of polygons are 0..1 of the side.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.side = size * OVERSAMPLING
        self._picture = PIL.Image.new("RGB", (self.side, self.side))
        self._segments = PIL.Image.new("L", (self.side, self.side))
        self._draw = PIL.ImageDraw.Draw(self._picture)
        self._draw_segments = PIL.ImageDraw.Draw(self._segments)

    def fill(self, points: np.ndarray, colour: Colour, segment: int) -> None:
        corners = (points * self.side).ravel().tolist()
        self._draw.polygon(corners, colour)
        self._draw_segments.polygon(corners, segment)

    def shade(self, points: np.ndarray, top: Colour, bottom: Colour, segment: int) -> None:
        """Fill with a vertical gradient."""
        self.fill(points, top, segment)
        if top == bottom:
            return
        start, end = (int(edge * self.side) for edge in (points[:, 1].min(), points[:, 1].max()))
        rows = np.linspace(top, bottom, end - start + 1).astype(np.uint8)  # [rows, 3]
        gradient = PIL.Image.fromarray(rows[:, None]).resize((self.side, len(rows)), PIL.Image.Resampling.NEAREST)
        inside = PIL.Image.new("L", gradient.size)
        PIL.ImageDraw.Draw(inside).polygon((points * self.side - (0, start)).ravel().tolist(), 255)
        self._picture.paste(gradient, (0, start), inside)

    def picture(self) -> np.ndarray:
        """What is visible: ``[size, size, 3]`` uint8."""
        return np.asarray(self._picture.reduce(OVERSAMPLING))

    def segments(self) -> np.ndarray:
        """The number of the segment that is visible: ``[size, size]`` uint8."""
        return np.asarray(self._segments)[::OVERSAMPLING, ::OVERSAMPLING]
