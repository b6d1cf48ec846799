"""The floor: its pattern, filtered over the area that a ray stands for, and how much of the sky solids hide from it."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .scene import Floor, Shape, Solid, Vector
from .solids import interval, to_frame

Scalar = NDArray[np.float32]  # (N,)

# Occlusion is tabulated over one quadrant around a solid of size 1, this far and at this many points a side.
_EXTENT, _CELLS, _DIRECTIONS = 4.0, 48, 192
_DOT_RADIUS = 0.29


def second_tone(floor: Floor, points: Vector, width: Scalar) -> Scalar:
    """Share (N,) of the second tone around points (3, N) of the floor, each of them seen as wide as `width`."""
    if floor.pattern == "plain":
        return np.zeros_like(width)
    c, s = np.cos(floor.angle) / floor.period, np.sin(floor.angle) / floor.period
    u = np.float32(c) * points[0] - np.float32(s) * points[1] + np.float32(floor.phase[0])
    v = np.float32(s) * points[0] + np.float32(c) * points[1] + np.float32(floor.phase[1])
    width = width / np.float32(floor.period)
    if floor.pattern == "dotted":
        return _dots(u, v, width)
    columns = _stripes(u, width)
    if floor.pattern == "striped":
        return columns
    rows = _stripes(v, width)
    return columns + rows - 2 * columns * rows


def _stripes(u: Scalar, width: Scalar) -> Scalar:
    """A square wave of period 1, averaged over `width` by differences of its integral."""
    half = width * np.float32(0.5)
    return (_wave_integral(u + half) - _wave_integral(u - half)) / width


def _wave_integral(u: Scalar) -> Scalar:
    whole = np.floor(u)
    return whole * np.float32(0.5) + np.maximum(u - whole - np.float32(0.5), 0)


def _dots(u: Scalar, v: Scalar, width: Scalar) -> Scalar:
    """Discs on a square lattice, fading to their mean where they are too small to see."""
    beyond = np.hypot(u % 1 - np.float32(0.5), v % 1 - np.float32(0.5)) - np.float32(_DOT_RADIUS)
    sharp = np.clip(0.5 - beyond / width, 0, 1)
    fade = np.clip(2 * width - 1, 0, 1)
    return sharp + (np.float32(np.pi * _DOT_RADIUS**2) - sharp) * fade


def occlusion(solid: Solid, points: Vector) -> Scalar:
    """Share (N,) of the sky's light on floor points (3, N) that the solid takes away."""
    away = (points[0] - np.float32(solid.x)) ** 2 + (points[1] - np.float32(solid.y)) ** 2
    (close,) = np.nonzero(away < (_EXTENT * solid.size) ** 2)
    local, _ = to_frame(solid, points[:, close], points[:, close])
    x, y = np.abs(local[:2]) * np.float32(_CELLS / _EXTENT)
    i, j = x.astype(np.intp), y.astype(np.intp)
    x, y = x - i, y - j
    table = _occlusion_table(solid.shape)
    near, far = (table[row, j] + (table[row, j + 1] - table[row, j]) * y for row in (i, i + 1))
    hidden = np.zeros_like(away)
    hidden[close] = near + (far - near) * x
    return hidden


@cache
def _occlusion_table(shape: Shape) -> NDArray[np.float32]:
    """Occlusion (cells + 2, cells + 2) by a solid of size 1 in one quadrant, from rays spread evenly over the sky's light."""
    solid = Solid("white", shape, "matte", 0.0, 0.0, 1.0, 0.0)
    along = np.arange(_CELLS + 2, dtype=np.float32) * np.float32(_EXTENT / _CELLS)
    x, y = np.meshgrid(along, along, indexing="ij")
    points = np.stack([x, y, np.zeros_like(x)])[..., None]
    enter, leave = interval(solid, points, _cosine_directions(_DIRECTIONS)[:, None, None])
    share = ((enter < leave) & (leave > 0)).mean(axis=-1)
    # Fades out before the table's end, so that no edge shows there.
    return (share * np.clip((_EXTENT - np.hypot(x, y)) / (0.3 * _EXTENT), 0, 1)).astype(np.float32)


def _cosine_directions(count: int) -> NDArray[np.float32]:
    """Directions (3, count) of the upper half space, denser towards the zenith as the cosine is, on a golden spiral."""
    radius = np.sqrt((np.arange(count) + 0.5) / count)
    turn = np.arange(count) * np.pi * (3.0 - np.sqrt(5.0))
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), np.sqrt(1 - radius**2)]).astype(np.float32)
