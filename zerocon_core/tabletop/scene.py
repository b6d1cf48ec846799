"""What exists on the tabletop: solids, floor, light, camera, and what makes a scene valid.

Right-handed world coordinates: the floor is the plane z = 0, lengths are in units of about a hand's breadth, angles in radians,
colours linear RGB in [0, 1]. Every solid stands on the floor.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]  # (3,) or (3, N)
RGB = tuple[float, float, float]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "white", "black"]
Shape = Literal["ball", "cube", "cylinder", "cone"]
Material = Literal["matte", "shiny"]
Pattern = Literal["plain", "striped", "checked", "dotted"]
Word = TypeVar("Word", bound=str)

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
MATERIALS: tuple[Material, ...] = get_args(Material)
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)

# No shape reaches farther from its axis than this, nor higher than `HEIGHT`, in sizes: another shape always fits as well.
REACH = 1.13
HEIGHT = 2.0
# Between the reaches of two solids, so that light and camera see floor between them.
CLEARANCE = 0.06
# Pixels of a 128x128 picture between a solid and the border.
MARGIN = 2.0 / 128.0

_TURNS = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
# Points (3, 32) around the upright cylinder that all shapes of size 1 lie in.
_AROUND = np.stack([np.tile(REACH * np.cos(_TURNS), 2), np.tile(REACH * np.sin(_TURNS), 2), np.repeat([0.0, HEIGHT], 16)])


class SceneError(ValueError):
    """A scene that cannot be, said in one sentence."""


@dataclass(frozen=True)
class Solid:
    """One solid: what the caption says of it, where it stands, half its height, and its turn about its own axis."""

    colour: Colour
    shape: Shape
    material: Material
    x: float
    y: float
    size: float
    angle: float

    def __post_init__(self) -> None:
        check_word("colour", self.colour, COLOURS)
        check_word("shape", self.shape, SHAPES)
        check_word("material", self.material, MATERIALS)

    def __str__(self) -> str:
        return f"{self.material} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Floor:
    """Two muted tones and the lattice on which they alternate: `period` long, turned by `angle`, shifted by `phase` periods."""

    pattern: Pattern
    tones: tuple[RGB, RGB]
    period: float
    angle: float
    phase: tuple[float, float]

    def __post_init__(self) -> None:
        check_word("floor", self.pattern, PATTERNS)


@dataclass(frozen=True)
class Light:
    """Where the light stands, far away, as seen from the middle of the table, and the tone of the sky around it."""

    azimuth: float
    elevation: float
    sky: RGB

    @property
    def direction(self) -> Vector:
        """Unit vector (3,) from the table to the middle of the light."""
        return spherical(self.azimuth, self.elevation)


@dataclass(frozen=True)
class Camera:
    """Where the camera stands as seen from the point that it looks at, `target`; `view` is half its angle of view."""

    azimuth: float
    elevation: float
    distance: float
    target: tuple[float, float, float] = (0.0, 0.0, 0.35)
    view: float = 0.33

    @cached_property
    def position(self) -> Vector:
        """(3,)"""
        return np.array(self.target, dtype=np.float32) + np.float32(self.distance) * spherical(self.azimuth, self.elevation)

    @cached_property
    def axes(self) -> tuple[Vector, Vector, Vector]:
        """Unit vectors (3,) to the right and upwards in the picture and forwards into it."""
        forward = -spherical(self.azimuth, self.elevation)
        right = np.cross(forward, np.array([0, 0, 1], dtype=np.float32))
        right /= np.linalg.norm(right)
        return right, np.cross(right, forward), forward

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places (2, N) of points (3, N) in the picture, which reaches from -1 to 1; x to the right and y upwards."""
        right, up, forward = (axis @ (points - self.position[:, None]) for axis in self.axes)
        return np.stack([right, up]) / (forward * np.tan(self.view))


@dataclass(frozen=True)
class Scene:
    """One or two solids on a floor, lit and looked at. Edit a scene with the functions of `edits`."""

    solids: tuple[Solid, ...]
    floor: Floor
    light: Light
    camera: Camera

    def __post_init__(self) -> None:
        if len(self.solids) not in (1, 2):
            raise SceneError(f"A scene has one or two solids, not {len(self.solids)}: add or remove one.")
        for one, other in combinations(self.solids, 2):
            if apart(one, other) < 0:
                raise SceneError(f"The {one} and the {other} would overlap: move them apart or make them smaller.")
        for solid in self.solids:
            if not inside_picture(solid, self.camera):
                raise SceneError(f"The {solid} would leave the picture: move it to the middle or make it smaller.")


def middles(solids: tuple[Solid, ...], camera: Camera) -> NDArray[np.float64]:
    """Where the middles of solids are in the picture, (2, solids), as `Camera.project` says it."""
    return camera.project(np.array([[s.x, s.y, s.size] for s in solids]).T)


def spherical(azimuth: float, elevation: float) -> Vector:
    """The unit vector (3,) in this direction."""
    level = np.cos(elevation)
    return np.array([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], dtype=np.float32)


def apart(one: Solid, other: Solid) -> float:
    """Length by which two solids are farther from each other than they must be, whatever their shapes; negative if too close."""
    return float(np.hypot(one.x - other.x, one.y - other.y)) - REACH * (one.size + other.size) - CLEARANCE


def inside_picture(solid: Solid, camera: Camera) -> bool:
    """Whether the camera sees the solid whole, whatever its shape: the upright cylinder around all shapes is in the picture."""
    points = solid.size * _AROUND + [[solid.x], [solid.y], [0.0]]
    return bool(np.abs(camera.project(points)).max() <= 1.0 - 2.0 * MARGIN)


def check_word(kind: str, word: str, known: tuple[Word, ...]) -> Word:
    """The word, if it is a known one; refuse one that the world has no picture of."""
    if word not in known:
        raise SceneError(f"There is no {kind} {word!r} on the tabletop: use one of {', '.join(known)}.")
    return known[known.index(word)]
