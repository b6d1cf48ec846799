"""Where rays meet solids.

A ray is an origin and a direction, (3, N) or of shapes that broadcast to one, such as (3, N, 1) and (3, 1, S). In its own frame
every solid is of size 1, stands on the floor at the origin, and is convex: a ray is inside it from one parameter to another, the
intersection of its intervals in the slabs and quadrics that bound the solid.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .scene import HEIGHT, REACH, Shape, Solid, Vector

Interval = tuple[NDArray[np.float32], NDArray[np.float32]]  # ray parameters (N,) of entry and exit; no hit if entry > exit

CUBE_HALF = 0.79
CYLINDER_RADIUS, CYLINDER_HEIGHT = 0.84, 1.75
CONE_RADIUS, CONE_HEIGHT = 1.04, HEIGHT

_SLOPE = np.float32((CONE_RADIUS / CONE_HEIGHT) ** 2)
_TINY = np.float32(1e-9)
_UP = np.array([[0], [0], [1]], dtype=np.float32)


def to_frame(solid: Solid, origin: Vector, direction: Vector) -> tuple[Vector, Vector]:
    """The ray in the solid's own frame; its parameter keeps its meaning."""
    centre = np.array([solid.x, solid.y, 0.0], dtype=np.float32).reshape(3, *[1] * (origin.ndim - 1))
    scale = np.float32(1 / solid.size)
    return turn((origin - centre) * scale, -solid.angle), turn(direction * scale, -solid.angle)


def turn(vectors: Vector, angle: float) -> Vector:
    """Vectors (3, N) turned about the vertical axis."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y, z = vectors
    return np.stack([c * x - s * y, s * x + c * y, z])


def interval(solid: Solid, origin: Vector, direction: Vector) -> Interval:
    """Where rays enter and leave the solid."""
    return _INTERVALS[solid.shape](*to_frame(solid, origin, direction))


def near(solid: Solid, origin: Vector, direction: Vector, margin: float = 0.0) -> NDArray[np.bool_]:
    """Which rays (N,) of unit direction pass the ball around all shapes ahead of them, widened by `margin` of their way."""
    radius = np.float32(solid.size * np.hypot(REACH, HEIGHT / 2))
    to_centre = np.array([[solid.x], [solid.y], [solid.size]], dtype=np.float32) - origin
    ahead = dot(to_centre, direction)
    aside = dot(to_centre, to_centre) - ahead * ahead
    return (aside < (radius + np.float32(margin) * np.maximum(ahead, 0)) ** 2) & (ahead > -radius)


def normal(solid: Solid, points: Vector) -> Vector:
    """Outward unit normals (3, N) at points (3, N) on the solid's surface."""
    local, _ = to_frame(solid, points, points)
    return turn(_NORMALS[solid.shape](local), solid.angle)


def dot(a: Vector, b: Vector) -> NDArray[np.float32]:
    """Dot products (N,) of vectors (3, N)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _ball(origin: Vector, direction: Vector) -> Interval:
    (x, y, z), (dx, dy, dz) = origin, direction
    return _quadric(dot(direction, direction), x * dx + y * dy + (z - 1) * dz, x * x + y * y + z * (z - 2))


def _cube(origin: Vector, direction: Vector) -> Interval:
    half = np.float32(CUBE_HALF)
    x, y = (_slab(origin[i], direction[i], -half, half) for i in (0, 1))
    return _both(_both(x, y), _slab(origin[2], direction[2], np.float32(0), 2 * half))


def _cylinder(origin: Vector, direction: Vector) -> Interval:
    (x, y, z), (dx, dy, dz) = origin, direction
    side = _quadric(dx * dx + dy * dy, x * dx + y * dy, x * x + y * y - np.float32(CYLINDER_RADIUS**2))
    return _both(side, _slab(z, dz, np.float32(0), np.float32(CYLINDER_HEIGHT)))


def _cone(origin: Vector, direction: Vector) -> Interval:
    """The lower half of a double cone: a ray steeper than its side is inside before the first root or after the second."""
    (x, y, z), (dx, dy, dz) = origin, direction
    below = z - np.float32(CONE_HEIGHT)
    a = dx * dx + dy * dy - _SLOPE * dz * dz
    b = x * dx + y * dy - _SLOPE * below * dz
    enter, leave = _quadric(a, b, x * x + y * y - _SLOPE * below * below)
    steep, down = a < 0, dz < 0
    side = np.where(steep, np.where(down, enter, -np.inf), enter), np.where(steep, np.where(down, np.inf, leave), leave)
    return _both(side, _slab(z, dz, np.float32(0), np.float32(CONE_HEIGHT)))


def _quadric(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> Interval:
    """Roots of a t^2 + 2 b t + c, in the order of a's sign; an empty interval where there are none."""
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    inverse = 1 / np.where(np.abs(a) < _TINY, _TINY, a)
    missed = discriminant <= 0
    return np.where(missed, np.inf, (-b - root) * inverse), np.where(missed, -np.inf, (-b + root) * inverse)


def _slab(origin: NDArray[np.float32], direction: NDArray[np.float32], low: np.float32, high: np.float32) -> Interval:
    inverse = 1 / np.where(np.abs(direction) < _TINY, _TINY, direction)
    one, other = (low - origin) * inverse, (high - origin) * inverse
    return np.minimum(one, other), np.maximum(one, other)


def _both(one: Interval, other: Interval) -> Interval:
    return np.maximum(one[0], other[0]), np.minimum(one[1], other[1])


def _ball_normal(points: Vector) -> Vector:
    return _unit(points - _UP)


def _cube_normal(points: Vector) -> Vector:
    from_middle = points - np.float32(CUBE_HALF) * _UP
    face = np.abs(from_middle).argmax(axis=0)
    return np.sign(from_middle) * (np.arange(3)[:, None] == face).astype(np.float32)


def _cylinder_normal(points: Vector) -> Vector:
    x, y, z = points
    to_side = np.abs(1 - np.hypot(x, y) / np.float32(CYLINDER_RADIUS))
    lid = np.abs(z - np.float32(CYLINDER_HEIGHT)) < to_side
    return np.where(lid, _UP, _unit(np.stack([x, y, np.zeros_like(z)])))


def _cone_normal(points: Vector) -> Vector:
    x, y, _ = points
    return _unit(np.stack([x, y, np.float32(CONE_RADIUS / CONE_HEIGHT) * np.hypot(x, y)]))


def _unit(vectors: Vector) -> Vector:
    return vectors / np.sqrt(np.maximum(dot(vectors, vectors), _TINY))


_INTERVALS: dict[Shape, Callable[[Vector, Vector], Interval]] = {
    "ball": _ball,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
}
_NORMALS: dict[Shape, Callable[[Vector], Vector]] = {
    "ball": _ball_normal,
    "cube": _cube_normal,
    "cylinder": _cylinder_normal,
    "cone": _cone_normal,
}
