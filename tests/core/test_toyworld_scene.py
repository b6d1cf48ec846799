"""The renderer tells the truth about what it draws."""

from dataclasses import replace

import numpy as np
import pytest

from zerocon_core.toyworld import scene as toy

SCENES = toy.held_out_scenes(24)


def changed(before: toy.Scene, after: toy.Scene) -> np.ndarray:
    """Pixels (H, W) that differ between two scenes."""
    return np.abs(toy.render(before) - toy.render(after)).max(axis=-1) > 1e-6


def test_a_seed_is_a_scene():
    assert toy.held_out_scenes(3) == toy.held_out_scenes(5)[:3]
    assert np.array_equal(toy.render(SCENES[0]), toy.render(toy.scene_from_seed(toy.HELD_OUT_SEED)))
    assert len({toy.caption(s) for s in SCENES}) > 12


@pytest.mark.parametrize("size", [64, 128])
def test_pictures_are_images(size):
    image = toy.render(SCENES[0], size)
    assert image.shape == (size, size, 3) and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1


def test_a_larger_picture_shows_the_same():
    for scene in SCENES:
        shrunk = toy.render(scene, 256).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - toy.render(scene)).mean() < 0.004


@pytest.mark.parametrize("colour", toy.COLOURS)
def test_another_colour_changes_the_object_only(colour):
    for scene in SCENES:
        edited = replace(scene, colour=colour)
        assert not (changed(scene, edited) & (toy.object_mask(scene) == 0)).any()
        assert (changed(scene, edited) == (toy.object_mask(scene) > 0)).all() or colour == scene.colour


@pytest.mark.parametrize("shape", toy.SHAPES)
def test_another_shape_changes_the_two_masks_only(shape):
    for scene in SCENES:
        edited = replace(scene, shape=shape)
        either = (toy.object_mask(scene) > 0) | (toy.object_mask(edited) > 0)
        assert not (changed(scene, edited) & ~either).any()


@pytest.mark.parametrize("pattern", toy.PATTERNS)
def test_another_pattern_leaves_object_and_bystander(pattern):
    for scene in SCENES:
        covered = (toy.object_mask(scene) == 1) | (toy.bystander_mask(scene) == 1)
        assert not (changed(scene, replace(scene, pattern=pattern)) & covered).any()


@pytest.mark.parametrize("shape", toy.SHAPES)
def test_object_and_bystander_stay_apart_and_inside(shape):
    border = np.ones((64, 64), dtype=bool)
    border[1:-1, 1:-1] = False
    for scene in SCENES:
        scene = replace(scene, shape=shape)
        thing, blob = toy.object_mask(scene) > 0, toy.bystander_mask(scene) > 0
        assert thing.any() and blob.any()
        assert not (thing & blob).any() and not ((thing | blob) & border).any()


def test_masks_measure_area():
    scene = replace(SCENES[0], shape="circle")
    assert toy.object_mask(scene, 128).mean() == pytest.approx(np.pi * scene.pose.radius**2, rel=5e-3)
    assert toy.bystander_mask(scene, 128).mean() == pytest.approx(np.pi * scene.bystander.radius**2, rel=2e-2)
    square = replace(scene, shape="square")
    assert toy.object_mask(square, 128).mean() == pytest.approx((2 * 0.87 * scene.pose.radius) ** 2, rel=5e-3)


def test_a_covered_pixel_has_the_colour():
    for scene in SCENES:
        inside = toy.object_mask(scene) == 1
        assert np.allclose(toy.render(scene)[inside], toy.RGB_OF[scene.colour], atol=1e-6)


def test_no_background_comes_near_an_object_colour():
    nearest = min(
        np.linalg.norm(np.subtract(tone, rgb))
        for scene in toy.held_out_scenes(300)
        for tone in scene.background.tones
        for rgb in toy.RGB_OF.values()
    )
    assert nearest > 0.25


def test_captions():
    scene = replace(SCENES[0], colour="red", shape="circle", pattern="striped")
    assert toy.caption(scene) == "a red circle on a striped background"
