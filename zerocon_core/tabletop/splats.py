"""The tabletop as Gaussian splats, with the colours that its renderer sees from all around.

Splats lie flat on the surfaces. A splat has one colour from all sides, so it gets the mean of what the cameras of an orbit see
where it lies: shadows are exact, highlights and fog an average. Splats that none of them sees are left out. Where they lie
depends on shapes alone, so a scene in another colour, material or floor has the same splats in other colours.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..splats.gaussians import Camera as Pinhole
from ..splats.gaussians import Splats
from .lighting import light_samples
from .render import FLOOR, LIGHT_SAMPLES, PASSES, View, develop, first_hits, radiance
from .scene import Camera, Scene, Shape, Solid, Vector
from .solids import CONE_HEIGHT, CONE_RADIUS, CUBE_HALF, CYLINDER_HEIGHT, CYLINDER_RADIUS, normal, turn

ELEVATION = 0.6
"""Of the orbit from which colours are seen, in radians."""
FARTHER = 1.3
"""Of the orbit, in distances of the scene's own camera: so far that solids stay in the picture from all around."""
CAMERAS = 12
SPACING = 0.035
"""Between splats of a solid of size 1, and between those in the middle of the floor; farther out these grow apart."""
FLOOR_RADIUS = 16.0
OPACITY = 0.98
WIDTH, THICKNESS = 0.5, 0.05
"""Standard deviations of a splat along its surface and across, in units of its spacing."""

INSET = 0.025
"""How far splats of solids lie below the surface, since their edges reach beyond it."""

# From the tabletop's axes, z up, to those of splats, y down and z forward.
AXES = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=np.float32)


class Surface(NamedTuple):
    """Points (3, N) of surfaces, their normals (3, N), the spacing (N,) between them, and whose they are (N,)."""

    points: Vector
    normals: Vector
    spacing: NDArray[np.float32]
    owner: NDArray[np.int64]
    """The number of a solid, or FLOOR."""


class TabletopSplats(NamedTuple):
    """Splats and, for each of them, the number of its solid, or FLOOR (N,)."""

    splats: Splats
    owner: torch.Tensor


def orbit(scene: Scene, count: int, elevation: float = ELEVATION, first: float = 0.0) -> list[Camera]:
    """`count` cameras around the solids, the first one `first` steps beside the scene's own."""
    step, distance = 2 * np.pi / count, FARTHER * scene.camera.distance
    azimuths = (scene.camera.azimuth + step * (number + first) for number in range(count))
    x, y = (sum(getattr(solid, axis) for solid in scene.solids) / len(scene.solids) for axis in "xy")
    around = replace(scene.camera, elevation=elevation, distance=distance, target=(x, y, scene.camera.target[2]))
    return [replace(around, azimuth=azimuth) for azimuth in azimuths]


def pinhole(camera: Camera, size: int) -> Pinhole:
    """The camera of the tabletop as one that looks at its splats."""
    right, up, forward = camera.axes
    rows = np.stack([right, -up, forward]) @ AXES.T
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.from_numpy(rows)
    viewmat[:3, 3] = torch.from_numpy(-rows @ AXES @ camera.position)
    focal = size / 2 / float(np.tan(camera.view))
    return Pinhole(viewmat, torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]), size, size)


def tabletop_splats(scene: Scene, size: int = 128) -> TabletopSplats:
    """The scene as splats, as pictures of `size` pixels show it."""
    surface = surfaces(scene)
    colors, seen = seen_colors(scene, surface, orbit(scene, CAMERAS), 2 * float(np.tan(scene.camera.view)) / size)
    inside = surface.points - INSET * (surface.owner != FLOOR) * surface.normals
    points, normals = (AXES @ vectors for vectors in (inside.astype(np.float32), surface.normals))
    scales = surface.spacing[:, None] * np.array([WIDTH, WIDTH, THICKNESS], dtype=np.float32)
    kept = [torch.from_numpy(np.ascontiguousarray(array[seen])) for array in (points.T, facing(normals), scales, colors.T)]
    means, quats, scales_, colours = kept
    splats = Splats(means, quats, scales_, torch.full((len(means),), OPACITY), colours)
    return TabletopSplats(splats, torch.from_numpy(surface.owner[seen]))


def seen_colors(scene: Scene, surface: Surface, cameras: list[Camera], pixel: float) -> tuple[Vector, NDArray[np.bool_]]:
    """The mean colour (3, N) of points as cameras see them whose pixels are `pixel` radians wide, and which are seen (N,)."""
    total, times = np.zeros_like(surface.points), np.zeros(surface.points.shape[1], dtype=np.float32)
    view = View(scene, pixel, light_samples(scene.light, 0, LIGHT_SAMPLES * len(PASSES), 1))
    for camera in cameras:
        way = surface.points - camera.position[:, None]
        distance = np.linalg.norm(way, axis=0)
        direction = way / distance
        places = camera.project(surface.points.astype(np.float64))
        ahead = (camera.axes[2] @ way > 0) & (np.abs(places).max(axis=0) < 1) & ((surface.normals * direction).sum(axis=0) < 0)
        (chosen,) = np.nonzero(ahead)
        reached, owner = first_hits(scene.solids, camera.position[:, None], direction[:, chosen])
        close = np.abs(reached - distance[chosen]) < 0.02 * distance[chosen]
        chosen = chosen[close & (owner == surface.owner[chosen])]
        total[:, chosen] += develop(radiance(view, camera.position[:, None], direction[:, chosen]))
        times[chosen] += 1
    return (total / np.maximum(times, 1)).astype(np.float32), times > 0


def surfaces(scene: Scene) -> Surface:
    """Points all over the floor and the solids, on the same places whatever they look like."""
    parts = [floor_points(), *(solid_points(solid) for solid in scene.solids)]
    normals = [
        np.tile([[0], [0], [1]], parts[0][1].shape),
        *(normal(s, p) for s, (p, _) in zip(scene.solids, parts[1:], strict=True)),
    ]
    owners = [np.full(spacing.shape, number) for number, (_, spacing) in enumerate(parts, start=FLOOR)]
    return Surface(
        np.concatenate([points for points, _ in parts], axis=1).astype(np.float32),
        np.concatenate(normals, axis=1).astype(np.float32),
        np.concatenate([spacing for _, spacing in parts]).astype(np.float32),
        np.concatenate(owners).astype(np.int64),
    )


def floor_points() -> tuple[Vector, NDArray[np.float32]]:
    """Points (3, N) of a disc, in rings that grow apart beyond the table's middle, and their spacing (N,)."""
    radii, spacings = [0.0], [SPACING]
    while radii[-1] < FLOOR_RADIUS:
        spacings.append(SPACING * max(1.0, radii[-1] / 1.6) ** 1.5)
        radii.append(radii[-1] + spacings[-1])
    points, spacing = [], []
    for number, (radius, step) in enumerate(zip(radii, spacings, strict=True)):
        count = max(1, round(2 * np.pi * radius / step))
        angles = 2 * np.pi * (np.arange(count) + 0.5 * (number % 2)) / count
        points.append(np.stack([radius * np.cos(angles), radius * np.sin(angles), np.zeros(count)]))
        spacing.append(np.full(count, step))
    return np.concatenate(points, axis=1), np.concatenate(spacing)


def solid_points(solid: Solid) -> tuple[Vector, NDArray[np.float32]]:
    """Points (3, N) of a solid's surface, but for its bottom, and their spacing (N,)."""
    points = turn(_POINTS[solid.shape]().astype(np.float32) * np.float32(solid.size), solid.angle)
    points = points + np.array([[solid.x], [solid.y], [0.0]], dtype=np.float32)
    return points, np.full(points.shape[1], SPACING * solid.size)


def facing(normals: Vector) -> NDArray[np.float32]:
    """Quaternions (N, 4), wxyz, that turn the z axis to unit vectors (3, N)."""
    x, y, z = normals
    quats = np.stack([1 + z, -y, x, np.zeros_like(z)], axis=1)
    # Half a turn, around x, for what looks straight back.
    quats[z < -1 + 1e-6] = (0, 1, 0, 0)
    return (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)


def _ball() -> NDArray[np.float64]:
    heights = 1 - 2 * (np.arange(round(4 * np.pi / SPACING**2)) + 0.5) / round(4 * np.pi / SPACING**2)
    return _spiral(np.sqrt(1 - heights**2), 1 + heights)


def _cylinder() -> NDArray[np.float64]:
    count = round(2 * np.pi * CYLINDER_RADIUS * CYLINDER_HEIGHT / SPACING**2)
    side = _spiral(np.full(count, CYLINDER_RADIUS), CYLINDER_HEIGHT * (np.arange(count) + 0.5) / count)
    return np.concatenate([side, _disc(CYLINDER_RADIUS, CYLINDER_HEIGHT)], axis=1)


def _cone() -> NDArray[np.float64]:
    count = round(np.pi * CONE_RADIUS * np.hypot(CONE_RADIUS, CONE_HEIGHT) / SPACING**2)
    radii = CONE_RADIUS * np.sqrt((np.arange(count) + 0.5) / count)
    return _spiral(radii, CONE_HEIGHT * (1 - radii / CONE_RADIUS))


def _cube() -> NDArray[np.float64]:
    side = round(2 * CUBE_HALF / SPACING)
    a, b = (line.ravel() for line in np.meshgrid(*2 * [((np.arange(side) + 0.5) / side * 2 - 1) * CUBE_HALF]))
    out = np.full_like(a, CUBE_HALF)
    faces = [(out, a, b), (-out, a, b), (a, out, b), (a, -out, b), (a, b, out)]
    return np.concatenate([np.stack(face) for face in faces], axis=1) + np.array([[0], [0], [CUBE_HALF]])


def _disc(radius: float, height: float) -> NDArray[np.float64]:
    count = round(np.pi * radius**2 / SPACING**2)
    return _spiral(radius * np.sqrt((np.arange(count) + 0.5) / count), np.full(count, height))


def _spiral(radii: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (3, N) at these radii and heights, each turned from the one before it by the golden angle: evenly spread."""
    turns = np.arange(len(radii)) * np.pi * (3.0 - np.sqrt(5.0))
    return np.stack([radii * np.cos(turns), radii * np.sin(turns), heights])


_POINTS: dict[Shape, Callable[[], NDArray[np.float64]]] = {"ball": _ball, "cube": _cube, "cylinder": _cylinder, "cone": _cone}
