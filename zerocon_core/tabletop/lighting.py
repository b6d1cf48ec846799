"""How surfaces of the tabletop look along a ray: one large distant light, the sky, and what solids hide or reflect of them.

Radiance is linear RGB, (3, N). A picture is made of several passes, each of which sees other points of the light: `samples` below
are the directions (3, S) of one pass.
"""

import numpy as np

from .floor import Scalar, occlusion, second_tone
from .scene import RGB, Colour, Light, Scene, Solid, Vector
from .solids import dot, interval, near, normal

ALBEDO: dict[Colour, RGB] = {
    "red": (0.60, 0.012, 0.015),
    "orange": (0.84, 0.20, 0.006),
    "yellow": (0.84, 0.62, 0.015),
    "green": (0.018, 0.30, 0.04),
    "blue": (0.012, 0.07, 0.52),
    "purple": (0.22, 0.025, 0.36),
    "white": (0.84, 0.84, 0.83),
    "black": (0.018, 0.018, 0.02),
}

SUN = np.array([[1.06], [1.0], [0.90]], dtype=np.float32) * np.float32(1.15)
SKY_SHARE = np.float32(0.62)  # of the sky's tone, as light on a surface
SUN_RADIUS = 0.13  # of the light's disc at distance 1
BOUNCE = np.float32(0.45)  # of a neighbour's light that a surface catches
MIRROR = np.float32(0.075)  # share of light that a shiny surface reflects head-on
GLOW = np.float32(12.0)  # the light as a mirror shows it, in units of what it does to a surface
FOG_START, FOG_DEPTH = np.float32(5.5), np.float32(9.0)


def light_samples(light: Light, number: int, count: int, passes: int) -> Vector:
    """`count` directions (3, S) over the light's disc: every `passes`-th of a spiral that all passes fill together."""
    index = np.arange(number, count * passes, passes)
    radius = SUN_RADIUS * np.sqrt((index + 0.5) / (count * passes))
    turn = index * np.pi * (3.0 - np.sqrt(5.0))
    across = np.cross(light.direction, [0, 0, 1])
    across /= np.linalg.norm(across)
    offsets = np.outer(across, radius * np.cos(turn)) + np.outer(np.cross(across, light.direction), radius * np.sin(turn))
    directions = light.direction[:, None] + offsets
    return (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)


def sky(light: Light, direction: Vector) -> Vector:
    """What rays (3, N) that meet nothing see: the light's disc in a sky that is darker towards the zenith."""
    tone = _column(light.sky) * (1 - np.float32(0.45) * np.maximum(direction[2], 0))
    facing = dot(light.direction[:, None], direction)
    edge = np.float32(np.cos(SUN_RADIUS * 1.6))
    disc = np.clip((facing - edge) / np.float32(0.25 * (1 - edge)), 0, 1)
    return tone + GLOW * SUN * disc


def shade_floor(scene: Scene, points: Vector, direction: Vector, distance: Scalar, pixel: float, samples: Vector) -> Vector:
    """The floor at points (3, N) seen along unit rays from `distance` away, through pixels that are `pixel` radians wide."""
    width = distance * np.float32(pixel) / np.maximum(-direction[2], np.float32(0.05))
    light_tone, other_tone = (_column(tone) for tone in scene.floor.tones)
    albedo = light_tone + (other_tone - light_tone) * second_tone(scene.floor, points, width)
    ambient = np.broadcast_to(_ambient(scene.light), points.shape)
    for solid in scene.solids:
        hidden = occlusion(solid, points)
        ambient = ambient * (1 - hidden * (1 - BOUNCE * _column(ALBEDO[solid.colour])))
    sun = SUN * samples[2].mean() * visibility(scene.solids, points, samples)
    fog = np.clip((distance - FOG_START) / FOG_DEPTH, 0, 1)
    return albedo * (ambient + sun) * (1 - fog) + _column(scene.light.sky) * fog


def shade_solid(scene: Scene, solid: Solid, points: Vector, samples: Vector) -> Vector:
    """A solid at points (3, N) of its surface, without what it mirrors."""
    normals = normal(solid, points)
    others = tuple(other for other in scene.solids if other is not solid)
    facing = np.maximum(samples.T @ normals, 0).mean(axis=0)
    sun = SUN * facing * visibility(others, points, samples)
    up = normals[2]
    ground = _column(scene.floor.tones[0]) * (_ambient(scene.light) + SUN * np.float32(0.6))
    # The floor close by lies in the solid's own shade.
    ground = ground * BOUNCE * (1 - np.float32(0.65) * np.exp(-points[2] * np.float32(3.0 / solid.size)))
    ambient = _ambient(scene.light) * (1 + up) / 2 + ground * (1 - up) / 2
    for other in others:
        ambient = ambient * (1 - _hidden_by(other, points, normals))
    return _column(ALBEDO[solid.colour]) * (ambient + sun)


def visibility(solids: tuple[Solid, ...], points: Vector, samples: Vector) -> Scalar:
    """Share (N,) of the light's `samples` that points (3, N) see past solids, none of which they lie on."""
    seen = np.ones(points.shape[1], dtype=np.float32)
    middle = samples.mean(axis=1, keepdims=True)
    candidates = np.zeros(points.shape[1], dtype=bool)
    for solid in solids:
        candidates |= near(solid, points, middle / np.linalg.norm(middle), margin=SUN_RADIUS)
    hidden = np.zeros((np.count_nonzero(candidates), samples.shape[1]), dtype=bool)
    for solid in solids:
        enter, leave = interval(solid, points[:, candidates, None], samples[:, None, :])
        hidden |= (enter < leave) & (leave > 0)
    seen[candidates] = 1 - hidden.mean(axis=1)
    return seen


def reflectance(direction: Vector, normals: Vector) -> Scalar:
    """Share (N,) of light that a shiny surface reflects: Schlick's approximation."""
    return MIRROR + (1 - MIRROR) * np.clip(1 + dot(direction, normals), 0, 1) ** 5


def _hidden_by(solid: Solid, points: Vector, normals: Vector) -> Scalar:
    """Share (N,) of the surroundings that a ball in the solid's place hides from a surface."""
    way = np.array([[solid.x], [solid.y], [solid.size]], dtype=np.float32) - points
    distance = np.sqrt(dot(way, way))
    facing = np.maximum(dot(way, normals) / distance, 0)
    return np.minimum(facing * (np.float32(solid.size) / distance) ** 2, 1) * np.float32(0.8)


def _ambient(light: Light) -> Vector:
    return _column(light.sky) * SKY_SHARE


def _column(rgb: RGB) -> Vector:
    return np.array(rgb, dtype=np.float32)[:, None]
