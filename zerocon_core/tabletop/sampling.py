"""Random scenes, each named by a seed; the seeds of training and of measuring do not meet."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .scene import (
    COLOURS,
    MATERIALS,
    PATTERNS,
    RGB,
    SHAPES,
    Camera,
    Floor,
    Light,
    Scene,
    Solid,
    Word,
    apart,
    inside_picture,
    middles,
)

# Training draws its scenes from the seeds below this one, everything that measures or demonstrates from the seeds above.
HELD_OUT_SEED = 1_000_000_000

TRIES = 1_000
# Between the middles of two solids in the picture, which is 2 wide, in the sum of their sizes: the one hides little of the other.
SEEN_APART = 0.6


def scene_from_seed(seed: int, solids: int | None = None) -> Scene:
    """The scene with this number, the same on every machine; of one or two solids, or as many as the seed says."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, 3))
    floor, light, camera = sample_floor(rng), sample_light(rng), sample_camera(rng)
    scene = Scene((sample_solid(rng, camera),), floor, light, camera)
    while len(scene.solids) < (solids or number):
        scene = with_another(scene, rng) or replace(scene, solids=(sample_solid(rng, camera),))
    return scene


def held_out_scenes(count: int, solids: int | None = None) -> list[Scene]:
    """The first `count` scenes that training never draws."""
    return [scene_from_seed(HELD_OUT_SEED + i, solids) for i in range(count)]


def with_another(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The scene with one more solid, of another colour and shape; None if no room was found."""
    for _ in range(TRIES):
        solid = sample_solid(rng, scene.camera)
        if all(_go_together(solid, other, scene.camera) for other in scene.solids):
            return replace(scene, solids=(*scene.solids, solid))
    return None


def _go_together(one: Solid, other: Solid, camera: Camera) -> bool:
    """Whether two solids do not overlap, hardly hide each other, and are told apart by colour alone and by shape alone."""
    if one.colour == other.colour or one.shape == other.shape or apart(one, other) < 0:
        return False
    left, right = middles((one, other), camera)[0]
    return bool(abs(left - right) > SEEN_APART * (one.size + other.size))


def sample_solid(rng: np.random.Generator, camera: Camera) -> Solid:
    """A solid that the camera sees whole, whatever its shape."""
    colour, shape, material = _one_of(COLOURS, rng), _one_of(SHAPES, rng), _one_of(MATERIALS, rng)
    while True:
        x, y = rng.uniform(-1.0, 1.0, size=2)
        size, angle = float(rng.uniform(0.42, 0.58)), float(rng.uniform(0.0, np.pi / 2))
        solid = Solid(colour, shape, material, float(x), float(y), size, angle)
        if inside_picture(solid, camera):
            return solid


def sample_floor(rng: np.random.Generator) -> Floor:
    """Greyish tones of one tint, a moderate, visible step apart, and far from the colours of solids."""
    pattern = _one_of(PATTERNS, rng)
    level, step = rng.uniform(0.24, 0.40), rng.uniform(0.42, 0.58)
    tint = 1.0 + rng.uniform(-0.16, 0.16, size=3)
    light, dark = _rgb(level * tint), _rgb(level * step * tint * (1.0 + rng.uniform(-0.06, 0.06, size=3)))
    return Floor(
        pattern,
        tones=(light, dark) if rng.random() < 0.5 else (dark, light),
        period=float(rng.uniform(0.85, 1.15)),
        angle=float(rng.uniform(-0.6, 0.6)),
        phase=(float(rng.random()), float(rng.random())),
    )


def sample_light(rng: np.random.Generator) -> Light:
    """A light to the left or right of the camera, so that shadows show beside their solids."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    sky = _rgb(np.array([0.60, 0.68, 0.78]) + rng.uniform(-0.05, 0.05, size=3))
    return Light(float(-np.pi / 2 + side * rng.uniform(0.8, 1.8)), float(rng.uniform(0.75, 1.05)), sky)


def sample_camera(rng: np.random.Generator) -> Camera:
    """A camera in front of the table, looking down on it."""
    azimuth, elevation, distance = rng.uniform(-0.2, 0.2), rng.uniform(0.36, 0.56), rng.uniform(3.9, 4.4)
    return Camera(float(azimuth - np.pi / 2), float(elevation), float(distance))


def _one_of(words: tuple[Word, ...], rng: np.random.Generator) -> Word:
    return words[rng.integers(len(words))]


def _rgb(values: NDArray[np.float64]) -> RGB:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
