"""The tabletop's renderer tells the truth about what it draws."""

from dataclasses import replace

import numpy as np
import pytest

from zerocon_core.tabletop import edits, floor, lighting, render, sampling, solids
from zerocon_core.tabletop.scene import COLOURS, PATTERNS, SHAPES, Scene, Solid

ONE = sampling.held_out_scenes(6, solids=1)
TWO = sampling.held_out_scenes(6, solids=2)


def alone(shape: str, **fields) -> Scene:
    """A scene with one solid in the middle of a plain floor."""
    given = {"colour": "red", "material": "matte", "x": 0.1, "y": -0.2, "size": 0.5, "angle": 0.4} | fields
    solid = Solid(shape=shape, **given)
    return replace(ONE[0], solids=(solid,), floor=replace(ONE[0].floor, pattern="plain"))


def ray(origin, through) -> tuple[np.ndarray, np.ndarray]:
    """A ray (3, 1) of unit direction from one point through another, and the distance between them."""
    start, way = np.float32(origin)[:, None], np.float32(np.subtract(through, origin))[:, None]
    return start, way / np.linalg.norm(way)


@pytest.mark.parametrize(
    "shape, top",
    [("ball", 2.0), ("cube", 2 * solids.CUBE_HALF), ("cylinder", solids.CYLINDER_HEIGHT), ("cone", solids.CONE_HEIGHT)],
)
def test_a_ray_from_above_meets_the_top(shape, top):
    solid = alone(shape).solids[0]
    start = np.float32([[solid.x + 1e-3], [solid.y], [5.0]])
    enter, leave = solids.interval(solid, start, np.float32([[0], [1e-6], [-1]]))
    assert enter[0] == pytest.approx(5.0 - top * solid.size, abs=4e-3)
    assert leave[0] == pytest.approx(5.0, abs=4e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ray_enters_and_leaves_on_the_surface(shape):
    """Along random rays the entry and the exit separate points outside from points inside, by the solid's own definition."""
    rng = np.random.default_rng(0)
    solid = alone(shape).solids[0]
    origin = (rng.uniform(-2, 2, (3, 500)) + [[0], [0], [2.2]]).astype(np.float32)
    target = rng.uniform(-0.5, 0.5, (3, 500)) + [[solid.x], [solid.y], [0.5]]
    direction = (target - origin).astype(np.float32)
    direction /= np.linalg.norm(direction, axis=0)
    enter, leave = solids.interval(solid, origin, direction)
    hit = leave - enter > 0.05
    origin, direction, enter, leave = origin[:, hit], direction[:, hit], enter[hit], leave[hit]
    for parameter, within in ((enter - 0.01, False), ((enter + leave) / 2, True), (leave + 0.01, False)):
        assert (contains(solid, origin + parameter * direction) == within).all()


def contains(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Which points (3, N) lie in the solid, from the definition of its shape."""
    (x, y, z), _ = solids.to_frame(solid, points, points)
    radius = np.hypot(x, y)
    return {
        "ball": radius**2 + (z - 1) ** 2 < 1,
        "cube": (np.maximum(abs(x), abs(y)) < solids.CUBE_HALF) & (0 < z) & (z < 2 * solids.CUBE_HALF),
        "cylinder": (radius < solids.CYLINDER_RADIUS) & (0 < z) & (z < solids.CYLINDER_HEIGHT),
        "cone": (radius < solids.CONE_RADIUS * (1 - z / solids.CONE_HEIGHT)) & (0 < z),
    }[solid.shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_point_outwards(shape):
    scene = alone(shape)
    origin, direction = render.camera_rays(scene, 64)
    distance, surface = render.first_hits(scene.solids, origin, direction)
    points = (origin + np.where(surface == 0, distance, 0) * direction)[:, surface == 0]
    normals = solids.normal(scene.solids[0], points)
    assert np.allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
    assert not contains(scene.solids[0], points + 0.01 * normals).any()
    assert (solids.dot(normals, direction[:, surface == 0]) < 1e-3).all()


def test_a_pixel_shows_the_point_that_the_camera_projects_there():
    camera = ONE[0].camera
    point = np.array([[0.3], [-0.4], [0.0]])
    x, y = camera.project(point)[:, 0]
    column, row = int((x + 1) / 2 * 512), int((1 - y) / 2 * 512)
    origin, direction = render.camera_rays(ONE[0], 512)
    distance, _ = render.first_hits((), origin, direction)
    seen = origin[:, 0] + distance[row * 512 + column] * direction[:, row * 512 + column]
    assert np.allclose(seen, point[:, 0], atol=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_floor_is_dark_where_the_light_is_blocked(shape):
    scene = alone(shape)
    solid, light = scene.solids[0], scene.light.direction
    middle = np.float32([solid.x, solid.y, 0.7 * solid.size])
    shaded = middle - light * (middle[2] / light[2])
    lit = shaded * [1, 1, 0] + 3 * np.float32([-light[1], light[0], 0])
    samples = lighting.light_samples(scene.light, 0, render.LIGHT_SAMPLES, len(render.PASSES))
    assert lighting.visibility((solid,), np.stack([shaded, lit], axis=1).astype(np.float32), samples).tolist() == [0.0, 1.0]


def test_shadows_have_soft_edges():
    scene = alone("ball")
    light = scene.light.direction
    tip = np.float32([0.1, -0.2, 0.5]) - light * (0.5 / light[2])
    across = np.float32([-light[1], light[0], 0]) / np.hypot(light[0], light[1])
    line = tip[:, None] + across[:, None] * np.linspace(0.3, 0.7, 60, dtype=np.float32)
    samples = lighting.light_samples(scene.light, 0, 32, 1)
    seen = lighting.visibility(scene.solids, line.astype(np.float32), samples)
    assert seen[0] == 0 and seen[-1] == 1 and np.all(np.diff(seen) >= 0)
    assert ((seen > 0) & (seen < 1)).sum() >= 5


@pytest.mark.parametrize("shape", SHAPES)
def test_occlusion_falls_with_the_distance(shape):
    solid = alone(shape).solids[0]
    line = np.float32([[solid.x], [solid.y], [0]]) + np.float32([[1], [0.3], [0]]) * np.linspace(0.55, 2.2, 40, dtype=np.float32)
    hidden = floor.occlusion(solid, line)
    assert 0.1 < hidden[0] < 0.6 and hidden[-1] == 0
    assert (np.diff(hidden) < 0.012).all()


def test_the_occlusion_of_a_ball_is_that_of_the_textbook():
    """A ball of radius r whose middle is seen at distance d and at angle a from the zenith hides cos(a) r^2 / d^2."""
    solid = alone("ball", x=0.0, y=0.0, size=0.5).solids[0]
    across = np.linspace(0.4, 1.1, 20, dtype=np.float32)
    expected = 0.5 / np.hypot(across, 0.5) * 0.25 / (across**2 + 0.25)
    points = np.stack([across, 0 * across, 0 * across])
    assert np.allclose(floor.occlusion(solid, points), expected, atol=0.02)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_seen_from_afar_is_its_mean(pattern):
    tiles = replace(ONE[0].floor, pattern=pattern)
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (3, 20_000)).astype(np.float32)
    near, far = (floor.second_tone(tiles, points, np.full(20_000, width, np.float32)) for width in (0.01, 40.0))
    assert np.allclose(far, near.mean(), atol=0.03)
    assert near.min() >= -1e-3 and near.max() <= 1 + 1e-3


@pytest.mark.parametrize("size", [64, 128])
def test_pictures_are_images(size):
    image = render.render(TWO[0], size)
    assert image.shape == (size, size, 3) and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1


def test_the_same_seed_gives_the_same_bits():
    assert np.array_equal(render.render(TWO[1]), render.render(sampling.held_out_scenes(2, solids=2)[1]))


def test_a_larger_picture_shows_the_same():
    for scene in (*ONE[:2], *TWO[:2]):
        shrunk = render.render(scene, 256).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - render.render(scene, 64)).mean() < 0.01


def test_masks_are_what_the_solids_cover():
    for scene in TWO:
        masks = render.solid_masks(scene)
        assert masks.shape == (2, 128, 128) and masks.max() == 1 and masks.sum(axis=0).max() <= 1
        other = replace(scene, solids=scene.solids[:1])
        assert (render.solid_masks(other)[0] >= masks[0]).all(), "a solid in front may only hide"


@pytest.mark.parametrize("name", ["colour", "shape", "floor"])
def test_the_mask_of_a_change_is_where_renders_differ(name):
    scene = ONE[1]
    words = {"colour": COLOURS, "shape": SHAPES, "floor": PATTERNS}[name]
    was = scene.floor.pattern if name == "floor" else getattr(scene.solids[0], name)
    word = next(w for w in words if w != was)
    edited = edits.change(scene, "floor" if name == "floor" else scene.solids[0].shape, word)
    before, after = render.render(scene), render.render(edited)
    mask = render.change_mask(before, after)
    differ = np.abs(before - after).max(axis=-1)
    assert (differ[mask == 0] <= 0.5 / 255).all() and (differ[mask == 1] > 0.5 / 255).all()
    assert mask[(render.solid_masks(scene)[0] == 1) if name == "colour" else (differ > 0.1)].mean() > 0.95


def test_a_change_of_shape_changes_the_shadow_too():
    scene = alone("cone")
    edited = edits.change(scene, "cone", "cylinder")
    mask = render.change_mask(render.render(scene), render.render(edited))
    either = np.maximum(render.solid_masks(scene)[0], render.solid_masks(edited)[0]) > 0
    assert (mask[~either]).sum() > 50


def test_a_shiny_solid_mirrors_its_neighbour():
    scene = next(s for s in sampling.held_out_scenes(60, solids=2) if {x.material for x in s.solids} == {"matte", "shiny"})
    number = next(i for i, s in enumerate(scene.solids) if s.material == "shiny")
    colour = "black" if scene.solids[1 - number].colour != "black" else "white"
    edited = edits.change(scene, scene.solids[1 - number].shape, colour)
    mask = render.change_mask(render.render(scene), render.render(edited))
    assert mask[render.solid_masks(scene)[number] == 1].any()


def test_a_colour_is_named_rightly_in_the_light():
    """The lit part of each matte solid is nearer in hue to its own colour than to any other."""
    shown = {}
    for colour in COLOURS:
        scene = alone("ball", colour=colour)
        image = render.render(scene)
        shown[colour] = np.median(image[render.solid_masks(scene)[0] == 1], axis=0)
    red, green, blue = (shown[c] for c in ("red", "green", "blue"))
    assert red.argmax() == 0 and green.argmax() == 1 and blue.argmax() == 2
    assert shown["white"].min() > 0.65 and shown["black"].max() < 0.25
    assert all(np.abs(shown[a] - shown[b]).max() > 0.2 for a in COLOURS for b in COLOURS if a != b)


@pytest.mark.parametrize("size", [0, 4, 100, 129])
def test_a_size_that_the_autoencoder_cannot_take_is_refused(size):
    with pytest.raises(ValueError, match="multiple of 8"):
        render.render(ONE[0], size)
