"""Exact pictures and masks of scenes, traced ray by ray."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .floor import Scalar
from .lighting import light_samples, reflectance, shade_floor, shade_solid, sky
from .scene import Scene, SceneError, Solid, Vector
from .solids import dot, interval, near, normal

Image = NDArray[np.float32]
Mask = NDArray[np.float32]

IMAGE_SIZE = 128
SKY, FLOOR = -2, -1
# Where the passes look through a pixel, in pixels from its middle: on a turned grid, so that steep edges get every shade.
PASSES = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))
LIGHT_SAMPLES = 8
EXPOSURE = np.float32(1.25)
# Half a step of an 8-bit picture: a smaller change is none.
VISIBLE = 0.5 / 255.0


class View(NamedTuple):
    """What one pass goes by: the scene, the width of a pixel in radians, and the points of the light, (3, S)."""

    scene: Scene
    pixel: float
    samples: Vector


def render(scene: Scene, size: int = IMAGE_SIZE) -> Image:
    """The picture (size, size, 3) in [0, 1]."""
    total = np.zeros((3, size * size), dtype=np.float32)
    for number in range(len(PASSES)):
        origin, direction = camera_rays(scene, size, PASSES[number])
        samples = light_samples(scene.light, number, LIGHT_SAMPLES, len(PASSES))
        view = View(scene, 2.0 * float(np.tan(scene.camera.view)) / size, samples)
        total += develop(radiance(view, origin, direction))
    return np.ascontiguousarray((total / len(PASSES)).T).reshape(size, size, 3)


def solid_masks(scene: Scene, size: int = IMAGE_SIZE) -> Mask:
    """Share of each pixel that each solid covers as the camera sees it, (solids, size, size)."""
    covered = np.zeros((len(scene.solids), size * size), dtype=np.float32)
    for offset in PASSES:
        _, surface = first_hits(scene.solids, *camera_rays(scene, size, offset))
        covered += surface == np.arange(len(scene.solids))[:, None]
    return (covered / np.float32(len(PASSES))).reshape(-1, size, size)


def change_mask(before: Image, after: Image) -> Mask:
    """1 where two pictures (H, W, 3) differ visibly, shadows and reflections included, else 0; (H, W)."""
    return (np.abs(before - after).max(axis=-1) > VISIBLE).astype(np.float32)


def camera_rays(scene: Scene, size: int, offset: tuple[float, float] = (0.0, 0.0)) -> tuple[Vector, Vector]:
    """Origin (3, 1) and unit directions (3, size * size) of rays through the pixels, `offset` from their middles."""
    check_size(size)
    right, up, forward = (axis[:, None] for axis in scene.camera.axes)
    reach = np.float32(np.tan(scene.camera.view))
    x, y = (np.float32((np.arange(size) + 0.5 + shift) / size * 2 - 1) * reach for shift in offset)
    across, down = np.tile(x, size), np.repeat(y, size)
    direction = forward + right * across - up * down
    return scene.camera.position[:, None], direction / np.sqrt(dot(direction, direction))


def first_hits(solids: tuple[Solid, ...], origin: Vector, direction: Vector) -> tuple[Scalar, NDArray[np.int8]]:
    """How far unit rays go (N,) and what they meet: the number of a solid, `FLOOR` or `SKY`."""
    down = direction[2] < -1e-4
    distance = np.where(down, -origin[2] / np.where(down, direction[2], -1), np.float32(np.inf))
    surface = np.where(down, FLOOR, SKY).astype(np.int8)
    for number, solid in enumerate(solids):
        (chosen,) = np.nonzero(near(solid, origin, direction))
        enter, leave = interval(solid, _of(origin, chosen), direction[:, chosen])
        first = (enter < leave) & (enter > 0) & (enter < distance[chosen])
        distance[chosen[first]] = enter[first]
        surface[chosen[first]] = number
    return distance, surface


def develop(radiance: Vector) -> Vector:
    """Radiance as display values in [0, 1]: exposure, a soft shoulder, and the display's gamma."""
    x = radiance * EXPOSURE
    return (x * (1 + x * np.float32(0.12)) / (1 + x * np.float32(0.75))).clip(0, 1) ** np.float32(1 / 2.2)


def check_size(size: int) -> None:
    """Refuse a size that the autoencoder cannot take."""
    if size < 8 or size % 8:
        raise SceneError(f"A picture of {size} pixels cannot be drawn: the side must be a multiple of 8.")


def radiance(view: View, origin: Vector, direction: Vector, within: Solid | None = None) -> Vector:
    """Radiance (3, N) along unit rays; those that a solid (`within`) reflects are not reflected again."""
    solids = tuple(solid for solid in view.scene.solids if solid is not within)
    distance, surface = first_hits(solids, origin, direction)
    seen = sky(view.scene.light, direction)
    for number in range(FLOOR, len(solids)):
        (chosen,) = np.nonzero(surface == number)
        if chosen.size:
            ray, way = direction[:, chosen], distance[chosen]
            points = _of(origin, chosen) + way * ray
            if number == FLOOR:
                seen[:, chosen] = shade_floor(view.scene, points, ray, way, view.pixel, view.samples)
            else:
                seen[:, chosen] = _solid_radiance(view, solids[number], points, ray, mirrors=within is None)
    return seen


def _solid_radiance(view: View, solid: Solid, points: Vector, direction: Vector, mirrors: bool) -> Vector:
    """Radiance (3, N) of a solid at points of its surface, seen along `direction`, with what it `mirrors` if it is shiny."""
    body = shade_solid(view.scene, solid, points, view.samples)
    if solid.material == "matte" or not mirrors:
        return body
    normals = normal(solid, points)
    reflected = direction - 2 * dot(direction, normals) * normals
    # Curved surfaces spread neighbouring rays. Few points of the light are enough for a faint image.
    coarse = view._replace(pixel=3 * view.pixel, samples=view.samples[:, ::2])
    image = radiance(coarse, points, reflected, within=solid)
    return body + (image - body) * reflectance(direction, normals)


def _of(origin: Vector, chosen: NDArray[np.intp]) -> Vector:
    """The origins of the chosen rays, where rays have each their own."""
    return origin if origin.shape[1] == 1 else origin[:, chosen]
