"""The toy world itself: scenes, their exact pictures and everything the renderer knows to be true about them.

Lengths are fractions of the image side with the origin at the top left, angles are radians, colours are RGB in [0, 1].
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
RGB = tuple[float, float, float]
Colour = Literal["red", "green", "blue", "yellow", "white", "black"]
Shape = Literal["circle", "square", "triangle", "star"]
Pattern = Literal["plain", "striped", "dotted", "checked"]

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

RGB_OF: dict[Colour, RGB] = {
    "red": (0.86, 0.08, 0.08),
    "green": (0.05, 0.66, 0.13),
    "blue": (0.08, 0.16, 0.90),
    "yellow": (0.97, 0.88, 0.05),
    "white": (0.98, 0.98, 0.98),
    "black": (0.03, 0.03, 0.03),
}

# Training draws its scenes from the seeds below this one, everything that measures or demonstrates from the seeds above.
HELD_OUT_SEED = 1_000_000_000

# The farthest that any shape reaches from its centre, in radii.
REACH = 1.25


@dataclass(frozen=True)
class Pose:
    """Where the object is. `radius` is that of the disc with about the object's area; `angle` turns it about its centre."""

    cx: float
    cy: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Background:
    """Two muted tones and the lattice they alternate on: `period` long, turned by `angle`, shifted by `phase` periods."""

    tones: tuple[RGB, RGB]
    period: float
    angle: float
    phase: tuple[float, float]


@dataclass(frozen=True)
class Bystander:
    """A small grey disc that no caption mentions and no edit may touch."""

    cx: float
    cy: float
    radius: float
    tone: RGB


@dataclass(frozen=True)
class Scene:
    """One object on a patterned background. The first three fields are captioned: `dataclasses.replace` them for a true edit."""

    colour: Colour
    shape: Shape
    pattern: Pattern
    pose: Pose
    background: Background
    bystander: Bystander


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene in which object and bystander lie inside the image and apart from each other, whatever the shape."""
    radius = rng.uniform(0.17, 0.25)
    pose = Pose(rng.uniform(0.33, 0.67), rng.uniform(0.33, 0.67), radius, rng.uniform(-0.35, 0.35))
    return Scene(
        colour=COLOURS[rng.integers(len(COLOURS))],
        shape=SHAPES[rng.integers(len(SHAPES))],
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        pose=pose,
        background=_sample_background(rng),
        bystander=_sample_bystander(rng, pose),
    )


def scene_from_seed(seed: int) -> Scene:
    """The scene with this number; the same on every machine."""
    return sample_scene(np.random.default_rng(seed))


def held_out_scenes(n: int) -> list[Scene]:
    """The first `n` scenes that training never draws."""
    return [scene_from_seed(HELD_OUT_SEED + i) for i in range(n)]


def caption(scene: Scene) -> str:
    """The scene in words, such as "a red circle on a striped background"."""
    return f"a {scene.colour} {scene.shape} on a {scene.pattern} background"


def render(scene: Scene, size: int = 64) -> Image:
    """The picture, (size, size, 3) in [0, 1], with every edge antialiased by its exact distance."""
    x, y = _grid(size)
    first, second = (np.array(tone) for tone in scene.background.tones)
    image = _blend(first, second, _pattern_coverage(scene, x, y, size))
    image = _blend(image, np.array(scene.bystander.tone), bystander_mask(scene, size))
    image = _blend(image, np.array(RGB_OF[scene.colour]), object_mask(scene, size))
    return image.astype(np.float32)


def object_mask(scene: Scene, size: int = 64) -> Image:
    """Share of each pixel that the object covers, (size, size) in [0, 1]."""
    x, y = _grid(size)
    pose = scene.pose
    u, v = _turn(x - pose.cx, y - pose.cy, pose.angle)
    if scene.shape == "circle":
        distance = np.hypot(u, v) - pose.radius
    else:
        distance = _polygon_distance(u, v, _OUTLINES[scene.shape] * pose.radius)
    return _coverage(distance, size).astype(np.float32)


def bystander_mask(scene: Scene, size: int = 64) -> Image:
    """Share of each pixel that the bystander covers, (size, size) in [0, 1]."""
    x, y = _grid(size)
    blob = scene.bystander
    return _coverage(np.hypot(x - blob.cx, y - blob.cy) - blob.radius, size).astype(np.float32)


def _sample_background(rng: np.random.Generator) -> Background:
    """Greyish tones, far from every object colour and a moderate, visible step apart."""
    step = rng.uniform(0.15, 0.20)
    low = rng.uniform(0.34, 0.66 - step)
    tint = rng.uniform(-0.05, 0.05, size=3) + rng.uniform(-0.02, 0.02, size=(2, 3))
    dark, light = (_rgb(tone) for tone in (low + tint[0], low + step + tint[1]))
    return Background(
        tones=(dark, light) if rng.random() < 0.5 else (light, dark),
        period=rng.uniform(0.24, 0.32),
        angle=rng.uniform(-0.3, 0.3),
        phase=(rng.random(), rng.random()),
    )


def _sample_bystander(rng: np.random.Generator, pose: Pose) -> Bystander:
    """Anywhere clear of the object; dark or light grey, so that it stands out from the background and from no caption."""
    radius = rng.uniform(0.055, 0.075)
    tone = _rgb((0.2 if rng.random() < 0.5 else 0.8) + rng.uniform(-0.03, 0.03, size=3))
    clear = REACH * pose.radius + radius + 0.03
    while True:
        cx, cy = rng.uniform(radius + 0.02, 0.98 - radius, size=2)
        if np.hypot(cx - pose.cx, cy - pose.cy) > clear:
            return Bystander(float(cx), float(cy), radius, tone)


def _rgb(values: NDArray[np.float64]) -> RGB:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the pixel centres, (1, size) and (size, 1)."""
    centres = (np.arange(size) + 0.5) / size
    return centres[None, :], centres[:, None]


def _turn(x: NDArray[np.float64], y: NDArray[np.float64], angle: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates in a frame turned by `angle`."""
    c, s = np.cos(angle), np.sin(angle)
    return c * x + s * y, c * y - s * x


def _coverage(distance: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Share of a pixel inside an edge at this signed distance (negative inside)."""
    return np.clip(0.5 - distance * size, 0.0, 1.0)


def _blend(under: NDArray[np.float64], over: NDArray[np.float64], coverage: NDArray[np.floating]) -> NDArray[np.float64]:
    return under + (over - under) * coverage[..., None]


def _pattern_coverage(scene: Scene, x: NDArray[np.float64], y: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Share of each pixel that has the background's second tone."""
    lattice = scene.background
    u, v = (c / lattice.period + p for c, p in zip(_turn(x, y, lattice.angle), lattice.phase, strict=True))
    # Distance from the middle of the lattice cell, in periods.
    u, v = np.abs(u % 1.0 - 0.5), np.abs(v % 1.0 - 0.5)
    if scene.pattern == "plain":
        return np.zeros((size, size))
    if scene.pattern == "dotted":
        return _coverage((np.hypot(u, v) - 0.3) * lattice.period, size)
    columns, rows = (_coverage((c - 0.25) * lattice.period, size) for c in (u, v))
    if scene.pattern == "striped":
        return columns
    return columns * (1.0 - rows) + rows * (1.0 - columns)


def _ring(corners: int, radii: tuple[float, ...]) -> NDArray[np.float64]:
    """`corners` points about the origin at the given radii in turn, the first one straight up."""
    angles = 2.0 * np.pi * np.arange(corners) / corners - np.pi / 2.0
    points: NDArray[np.float64] = np.resize(radii, corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points


# Outlines for radius 1.
_OUTLINES: dict[Shape, NDArray[np.float64]] = {
    "square": np.array([[-0.87, -0.87], [0.87, -0.87], [0.87, 0.87], [-0.87, 0.87]]),
    "triangle": _ring(3, (REACH,)),
    "star": _ring(10, (REACH, 0.6)),
}


def _polygon_distance(x: NDArray[np.float64], y: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed distance to a closed polygon, negative inside; (H, W) from coordinates that broadcast to (H, W)."""
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf)
    inside = np.zeros(nearest.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
        # Even-odd rule: each edge crossed by a ray to the right flips the side.
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (ex * py > ey * px if ey < 0 else ex * py < ey * px)
    return np.where(inside, -nearest, nearest)
