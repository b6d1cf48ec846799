"""The tabletop as splats, against its ray tracer from places that no colour was taken from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zerocon_core.splats.projection import rotations
from zerocon_core.splats.views import Views, back_project, lift, region
from zerocon_core.tabletop import edits, render, sampling
from zerocon_core.tabletop.splats import FLOOR, facing, orbit, pinhole, surfaces, tabletop_splats

SCENES = sampling.held_out_scenes(3, solids=2)
SIZE = 128


def traced(scene, cameras) -> torch.Tensor:
    return torch.from_numpy(np.stack([render.render(replace(scene, camera=camera), SIZE) for camera in cameras]))


def drawn(splats, cameras, scene) -> tuple[torch.Tensor, Views]:
    views = Views(splats, [pinhole(camera, SIZE) for camera in cameras])
    return torch.stack([view.render(splats.colors, torch.tensor(scene.light.sky)).clamp(0, 1) for view in views]), views


def psnr(a, b) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


@pytest.mark.parametrize("number", range(len(SCENES)))
def test_from_places_between_its_cameras_it_looks_like_the_scene(number):
    scene = SCENES[number]
    held_out = orbit(scene, 6, first=0.25)
    pictures, _ = drawn(tabletop_splats(scene).splats, held_out, scene)
    truth = traced(scene, held_out)
    each = [psnr(a, b) for a, b in zip(pictures, truth, strict=True)]
    assert min(each) > 28 and np.mean(each) > 29
    # Another scene's splats, or another camera's picture, are far from that.
    assert psnr(pictures, truth.roll(1, 0)) < 22


def test_the_true_edit_has_the_same_splats_in_other_colours():
    scene = SCENES[0]
    first = str(scene.solids[0])
    colour = "blue" if scene.solids[0].colour != "blue" else "red"
    edited = edits.change(scene, first, colour)
    before, after = tabletop_splats(scene), tabletop_splats(edited)
    for name in ("means", "quats", "scales", "opacities"):
        assert torch.equal(getattr(before.splats, name), getattr(after.splats, name))
    assert torch.equal(before.owner, after.owner)
    change = (after.splats.colors - before.splats.colors).abs().amax(-1)
    assert change[before.owner == 0].min() > 0.02
    held_out = orbit(scene, 4, first=0.25)
    assert psnr(drawn(after.splats, held_out, scene)[0], traced(edited, held_out)) > 30


def test_true_pictures_of_an_edit_lift_it_into_the_splats():
    """The ray tracer's eight pictures of the edit stand for an editor's, its masks for masks; others than these judge."""
    scene = SCENES[1]
    colour = "green" if scene.solids[0].colour != "green" else "red"
    edited, cameras, held_out = edits.change(scene, str(scene.solids[0]), colour), orbit(scene, 8), orbit(scene, 6, first=0.3)
    (splats, owner), sky = tabletop_splats(scene), torch.tensor(scene.light.sky)
    _, views = drawn(splats, cameras, scene)
    masks = torch.from_numpy(np.stack([render.solid_masks(replace(scene, camera=camera), SIZE)[0] for camera in cameras]))
    inside = region(views, masks)
    truth = owner == 0
    assert (inside & truth).sum() / inside.sum() > 0.9 and (inside & truth).sum() / truth.sum() > 0.9

    lifted = torch.where(inside[:, None], lift(views, splats.colors, traced(edited, cameras), sky), splats.colors)
    target, source = (traced(one, held_out) for one in (edited, scene))
    own, _ = drawn(splats, held_out, scene)
    result, _ = drawn(replace(splats, colors=lifted), held_out, scene)
    solid = torch.from_numpy(np.stack([render.solid_masks(replace(scene, camera=camera), SIZE)[0] for camera in held_out])) > 0.5
    assert psnr(result[solid], target[solid]) > psnr(source[solid], target[solid]) + 6
    assert psnr(result[~solid], own[~solid]) > 30
    assert back_project(views, masks[..., None])[1][truth].median() > 0


def test_splats_lie_on_their_surfaces():
    scene = SCENES[2]
    surface = surfaces(scene)
    assert np.allclose(np.linalg.norm(surface.normals, axis=0), 1, atol=1e-4)
    assert not surface.points[2, surface.owner == FLOOR].any() and (surface.points[2] > -1e-5).all()
    quats = torch.from_numpy(facing(surface.normals))
    assert torch.allclose(rotations(quats)[:, :, 2], torch.from_numpy(surface.normals.T), atol=1e-5)
    assert torch.allclose(rotations(torch.from_numpy(facing(-np.eye(3, dtype=np.float32))))[:, :, 2], -torch.eye(3), atol=1e-6)
