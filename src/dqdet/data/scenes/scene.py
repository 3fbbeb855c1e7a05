"""The scenes of the built-in data set: pictures drawn from a seed on the fly.

There are five kinds of scene, which differ in what appears and where: kites are in the sky, cars on the road,
plates on the table. Whoever knows the kind of scene knows where to look for what, and this is what queries that
depend on the image can learn.

A ``Scene`` is described first, by functions of a random generator, and drawn afterwards. Drawing gives the picture
and the segment that is visible at each pixel, from which boxes, masks and regions of stuff follow.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import PIL.Image

from dqdet.data.scenes.drawing import SHAPES, WHITE, Canvas, Colour, Look, Part, ellipse, rectangle, tint

CLASSES = list(SHAPES)
STUFF = ["sky", "hills", "grass", "building", "pavement", "road", "forest", "water", "wall", "table"]
OVERLAP = 0.25  # an object's box may share this part of the smaller box with another's
ATTEMPTS = 20  # at placing an object without more overlap; it is left out after that
GRAIN = 5  # noise of a pixel, of 255
LIT, UNLIT = (250, 220, 140), (92, 106, 126)  # windows


@dataclass(frozen=True)
class Region:
    """Part of the background, painted before the objects: stuff such as sky or grass."""

    name: str
    outline: np.ndarray  # polygon [P, 2] in 0..1 of the image
    top: Colour  # of the vertical gradient
    bottom: Colour
    details: list[Part] = field(default_factory=list)  # painted upon it, in 0..1 of the image


@dataclass(frozen=True)
class SceneObject:
    """A thing. Positions and lengths are in 0..1 of the image."""

    category: str
    x: float  # centre
    y: float
    width: float
    height: float
    angle: float  # radians, clockwise
    mirrored: bool
    look: Look

    def outline(self, points: np.ndarray) -> np.ndarray:
        """Points ``[P, 2]`` from the coordinates of the shape to those of the image."""
        points = points * [-self.width if self.mirrored else self.width, self.height]
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return points @ np.array([[cos, sin], [-sin, cos]]) + [self.x, self.y]


@dataclass
class Scene:
    """Background and objects, each from the farthest to the nearest.

    Segments are numbered in this order too: first the regions, then the objects.
    """

    regions: list[Region]
    objects: list[SceneObject] = field(default_factory=list)
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factor of each colour channel
    grain: int = 0  # seed of the pixel noise


def render(scene: Scene, size: int) -> tuple[PIL.Image.Image, np.ndarray]:
    """Draw a scene.

    Returns:
        the picture, and the visible segment at each pixel ``[size, size]`` (uint8): ``i`` is ``scene.regions[i]``,
        ``len(scene.regions) + j`` is ``scene.objects[j]``.
    """
    canvas = Canvas(size)
    for segment, region in enumerate(scene.regions):
        canvas.shade(region.outline, region.top, region.bottom, segment)
        for colour, points in region.details:
            canvas.fill(points, colour, segment)
    for segment, thing in enumerate(scene.objects, start=len(scene.regions)):
        for colour, points in SHAPES[thing.category](thing.look):
            canvas.fill(thing.outline(points), colour, segment)
    noise = np.random.default_rng(scene.grain).integers(-GRAIN, GRAIN + 1, (size, size, 1), np.int16)
    pixels = canvas.picture() * np.array(scene.light, dtype=np.float32) + noise
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), canvas.segments()


def _hue(random: np.random.Generator, hue: float, spread: float, saturation: float, value: float) -> Colour:
    """A colour near ``hue`` (0..1); saturation and value vary a little."""
    a, b = random.uniform(-0.12, 0.12, 2)
    saturation, value = np.clip((saturation + a, value + b), 0, 1)
    red, green, blue = colorsys.hsv_to_rgb((hue + random.uniform(-spread, spread)) % 1, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def _vivid(random: np.random.Generator) -> Colour:
    return _hue(random, 0, 0.5, 0.75, 0.85)


def _pale(random: np.random.Generator) -> Colour:
    return _hue(random, 0, 0.5, 0.12, 0.9)


def _dark(random: np.random.Generator) -> Colour:
    return _hue(random, 0, 0.5, 0.4, 0.35)


def _wool(random: np.random.Generator) -> Colour:
    return _hue(random, 0.1, 0.03, 0.12, 0.86)


class Traits(NamedTuple):
    """What the objects of a class have in common."""

    proportion: float  # width / height
    tilt: float  # greatest angle, radians
    colour: Callable[[np.random.Generator], Colour]
    second: Callable[[np.random.Generator], Colour]


TRAITS = {
    "person": Traits(0.5, 0.05, _vivid, _dark),
    "car": Traits(1.9, 0.0, _vivid, _dark),
    "sheep": Traits(1.3, 0.05, _wool, _wool),
    "boat": Traits(0.95, 0.08, _vivid, _pale),
    "kite": Traits(0.75, 0.5, _vivid, _vivid),
    "balloon": Traits(0.75, 0.08, _vivid, _vivid),
    "plate": Traits(1.5, 0.0, _pale, _vivid),
    "cup": Traits(1.1, 0.0, _vivid, _vivid),
}


def _overlap(a: SceneObject, b: SceneObject) -> float:
    """Area that two boxes share, as a part of the smaller one."""
    wide = min(a.x + a.width / 2, b.x + b.width / 2) - max(a.x - a.width / 2, b.x - b.width / 2)
    high = min(a.y + a.height / 2, b.y + b.height / 2) - max(a.y - a.height / 2, b.y - b.height / 2)
    return max(wide, 0) * max(high, 0) / min(a.width * a.height, b.width * b.height)


def _place(
    random: np.random.Generator,
    scene: Scene,
    category: str,
    count: tuple[int, int],
    ground: tuple[float, float],
    height: tuple[float, float],
) -> None:
    """Add objects of a class to ``scene`` where they overlap others little.

    ``count`` is the range of their number, ``ground`` that of their lower edges, from far to near, and ``height``
    has their height at either end of it.
    """
    traits = TRAITS[category]
    for _ in range(random.integers(*count, endpoint=True)):
        look = Look(traits.colour(random), traits.second(random), random.uniform(-1, 1))
        for _ in range(ATTEMPTS):
            near, x, stretch_x, stretch_y, turn = random.uniform(size=5)
            base = ground[0] + near * (ground[1] - ground[0])
            tall = (height[0] + near * (height[1] - height[0])) * (0.9 + 0.2 * stretch_y)
            wide = tall * traits.proportion * (0.9 + 0.2 * stretch_x)
            thing = SceneObject(
                category,
                x=wide * 0.4 + x * (1 - wide * 0.8),  # the border of the image may cut off a tenth
                y=base - tall / 2,
                width=wide,
                height=tall,
                angle=(2 * turn - 1) * traits.tilt,
                mirrored=bool(random.integers(2)),
                look=look,
            )
            if all(_overlap(thing, other) <= OVERLAP for other in scene.objects):
                scene.objects.append(thing)
                break


def _below(random: np.random.Generator, top: float, wave: float = 0.0) -> np.ndarray:
    """The part of the image below the height ``top``; the edge may be hilly."""
    x = np.linspace(0, 1, 17)
    phase, frequency = random.uniform(0, 2 * np.pi, 2), random.uniform(2, 9, 2)
    y = top + wave * (np.sin(x[:, None] * frequency + phase) @ [0.65, 0.35])
    return np.concatenate([np.stack([x, y], axis=1), [[1.0, 1.0], [0.0, 1.0]]])


def _sky(random: np.random.Generator, clouds: tuple[int, int]) -> Region:
    evening = random.random() < 0.25
    colour = _hue(random, 0.05, 0.04, 0.42, 0.95) if evening else _hue(random, 0.57, 0.04, 0.5, 0.88)
    details: list[Part] = []
    for _ in range(random.integers(*clouds, endpoint=True)):
        x, y, width = random.uniform((0, 0.02, 0.12), (1, 0.5, 0.26))
        for puff in (-0.35, 0.0, 0.35):
            lift = 0.02 if puff == 0 else 0.0
            details.append((WHITE, ellipse(x + puff * width, y - lift, width * 0.7, width * 0.28)))
    return Region("sky", _below(random, 0), tint(colour, 0.85), tint(colour, 1.12), details)


def _grass(random: np.random.Generator, top: float, wave: float) -> Region:
    green = _hue(random, 0.28, 0.05, 0.55, 0.6)
    return Region("grass", _below(random, top, wave), tint(green, 1.12), tint(green, 0.8))


def _house(random: np.random.Generator, left: float, width: float, ground: float) -> Region:
    roof = random.uniform(0.08, 0.28)
    wall = _hue(random, 0.06, 0.06, 0.3, 0.7)
    pane = LIT if random.random() < 0.3 else UNLIT
    windows = [
        (pane, rectangle(left + column * width, row, 0.2 * width, 0.06))
        for row in np.arange(roof + 0.05, ground - 0.14, 0.11)
        for column in (0.2, 0.6)
    ]
    return Region("building", rectangle(left, roof, width, ground - roof), wall, wall, windows)


def open_air(random: np.random.Generator) -> Scene:
    """Kites and balloons high above a strip of land."""
    hills = _hue(random, 0.36, 0.08, 0.35, 0.5)
    scene = Scene(
        [
            _sky(random, (1, 3)),
            Region("hills", _below(random, random.uniform(0.76, 0.84), 0.05), hills, hills),
            _grass(random, random.uniform(0.84, 0.92), 0.03),
        ]
    )
    _place(random, scene, "balloon", (0, 2), ground=(0.35, 0.75), height=(0.24, 0.38))
    _place(random, scene, "kite", (2, 4), ground=(0.3, 0.72), height=(0.22, 0.32))
    return scene


def street(random: np.random.Generator) -> Scene:
    """Cars in two lanes and people on the pavement, before a row of houses."""
    curb = random.uniform(0.52, 0.58)
    road = curb + 0.13
    lane = (road + 1) / 2
    scene = Scene([_sky(random, (1, 1))])
    left = -random.uniform(0, 0.15)
    while left < 1:
        width = random.uniform(0.18, 0.32)
        scene.regions.append(_house(random, left, width, curb))
        left += width
    paving, asphalt = _hue(random, 0.1, 0.05, 0.12, 0.68), _hue(random, 0.6, 0.1, 0.08, 0.36)
    dashes = [(WHITE, rectangle(x, lane, 0.1, 0.015)) for x in np.arange(random.uniform(-0.1, 0), 1, 0.22)]
    scene.regions.append(Region("pavement", _below(random, curb), paving, paving))
    scene.regions.append(Region("road", _below(random, road), tint(asphalt, 1.15), tint(asphalt, 0.9), dashes))
    _place(random, scene, "person", (1, 3), ground=(curb + 0.06, curb + 0.11), height=(0.27, 0.33))
    _place(random, scene, "car", (0, 2), ground=(lane - 0.02, lane), height=(0.14, 0.16))
    _place(random, scene, "car", (1, 2), ground=(0.94, 0.97), height=(0.2, 0.22))
    return scene


def meadow(random: np.random.Generator) -> Scene:
    """Sheep and people on grass; sometimes a kite above."""
    horizon = random.uniform(0.34, 0.44)
    forest = _hue(random, 0.34, 0.05, 0.45, 0.38)
    scene = Scene(
        [
            _sky(random, (2, 2)),
            Region("forest", _below(random, horizon - 0.08, 0.05), forest, tint(forest, 0.8)),
            _grass(random, horizon, 0.02),
        ]
    )
    _place(random, scene, "kite", (0, 1), ground=(0.28, 0.32), height=(0.2, 0.26))
    _place(random, scene, "sheep", (2, 4), ground=(horizon + 0.16, 0.96), height=(0.15, 0.25))
    _place(random, scene, "person", (0, 2), ground=(horizon + 0.2, 0.96), height=(0.26, 0.42))
    return scene


def lake(random: np.random.Generator) -> Scene:
    """Boats on water before a far shore; balloons above, smaller and higher than in ``open_air``."""
    shore = random.uniform(0.42, 0.5)
    land, water = _hue(random, 0.33, 0.1, 0.3, 0.5), _hue(random, 0.56, 0.04, 0.55, 0.62)
    places = random.uniform((0, shore + 0.08), (1, 0.98), (8, 2))
    ripples = [(tint(water, 1.25), ellipse(x, y, 0.14, 0.012, 8)) for x, y in places]
    scene = Scene(
        [
            _sky(random, (1, 2)),
            Region("hills", _below(random, shore - 0.06, 0.04), land, tint(land, 0.8)),
            Region("water", _below(random, shore), tint(water, 1.15), tint(water, 0.75), ripples),
        ]
    )
    _place(random, scene, "balloon", (0, 2), ground=(0.26, 0.36), height=(0.2, 0.26))
    _place(random, scene, "boat", (2, 4), ground=(shore + 0.1, 0.95), height=(0.22, 0.4))
    return scene


def table(random: np.random.Generator) -> Scene:
    """Plates and cups on a table before a wall."""
    edge = random.uniform(0.22, 0.32)
    paper, wood = _pale(random), _hue(random, 0.08, 0.03, 0.5, 0.6)
    stripes = np.arange(random.uniform(-0.1, 0), 1, 0.12)
    wallpaper = [(tint(paper, 0.94), rectangle(x, 0, 0.05, edge)) for x in stripes]
    planks = [(tint(wood, 0.82), rectangle(0, y, 1, 0.008)) for y in np.linspace(edge, 1, 5)[1:-1]]
    scene = Scene(
        [
            Region("wall", _below(random, 0), paper, tint(paper, 0.9), wallpaper),
            Region("table", _below(random, edge), tint(wood, 0.85), tint(wood, 1.1), planks),
        ]
    )
    _place(random, scene, "plate", (1, 3), ground=(0.55, 0.95), height=(0.18, 0.3))
    _place(random, scene, "cup", (1, 3), ground=(0.45, 0.95), height=(0.19, 0.28))
    return scene


KINDS: tuple[Callable[[np.random.Generator], Scene], ...] = (open_air, street, meadow, lake, table)


def scene_kind(*seed: int) -> str:
    """The kind of the scene that :func:`draw_scene` draws."""
    return KINDS[np.random.default_rng(seed).integers(len(KINDS))].__name__


def draw_scene(*seed: int) -> Scene:
    """A scene of a random kind; a pure function of the numbers in ``seed``."""
    random = np.random.default_rng(seed)
    scene = KINDS[random.integers(len(KINDS))](random)
    scene.objects.sort(key=lambda thing: thing.y + thing.height / 2)  # nearer is lower
    warmth, brightness = random.uniform(-0.06, 0.06), random.uniform(0.85, 1.1)
    scene.light = (brightness * (1 + warmth), brightness, brightness * (1 - warmth))
    scene.grain = int(random.integers(2**31))
    return scene
