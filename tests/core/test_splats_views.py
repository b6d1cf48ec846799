"""Views of splats that stay in place: linear in the colours, and their transpose."""

from dataclasses import replace

import pytest
import torch
from clouds import camera, cloud
from test_splats_render import NAMES

from zerocon_core.splats.gaussians import Splats
from zerocon_core.splats.render import rasterization
from zerocon_core.splats.training import Training, parameters_of, splats_of
from zerocon_core.splats.views import Views, back_project, displayable, lift, region, view_of

CAMERAS = [camera(24, 20, turn=turn) for turn in (0.0, 1.5, 3.0, 4.5)]
GREY = torch.full((3,), 0.5, dtype=torch.float64)


def drawn(splats: Splats, view, background=GREY):
    [picture], [covered] = rasterization(
        *(getattr(splats, name) for name in NAMES), view.viewmat[None], view.K[None], view.width, view.height,
        backgrounds=background[None],
    )  # fmt: skip
    return picture, covered[..., 0]


def test_a_view_draws_what_the_rasterizer_draws():
    splats = cloud(200)
    for one in CAMERAS:
        view, (picture, covered) = view_of(splats, one), drawn(splats, one)
        assert torch.allclose(view.render(splats.colors, GREY), picture, rtol=0, atol=1e-12)
        assert torch.allclose(view.covered, covered, rtol=0, atol=1e-12)


def test_a_views_gradient_is_its_transpose():
    splats = cloud(200)
    view, colors = view_of(splats, CAMERAS[0]), splats.colors.clone().requires_grad_(True)
    picture = torch.rand(20, 24, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(view.render(colors), colors, picture)
    assert torch.allclose(view.gather(picture), gradient, rtol=0, atol=1e-12)
    assert torch.allclose(view.mass, view.gather(torch.ones_like(picture))[:, 0])
    (exact,) = torch.autograd.grad(drawn(Splats(**vars(splats) | {"colors": colors}), CAMERAS[0])[0], colors, picture)
    assert torch.allclose(gradient, exact, rtol=0, atol=1e-12)


def test_views_cost_twelve_bytes_a_pair_and_leave_out_the_dark():
    splats = cloud(600, size=0.5, dtype=torch.float32)
    one = camera(24, 20, dtype=torch.float32)
    view = view_of(splats, one)
    pairs = len(view.pairs.pixels)
    assert view.nbytes == 12 * pairs + 4 * 20 * 24 + 4 * (20 * 24 + 1)
    assert (view.parts.pairs > 0).all() and pairs < 600 * 20 * 24 / 4


def test_views_beyond_the_room_are_rebuilt(monkeypatch):
    splats = cloud(100)
    sizes = [view_of(splats, one).nbytes for one in CAMERAS]
    views = Views(splats, CAMERAS, room=sum(sizes[:2]) + 1)
    first, again = list(views), list(views)
    assert [a is b for a, b in zip(first, again, strict=True)] == [True, True, False, False]
    assert all(torch.equal(a.render(splats.colors), b.render(splats.colors)) for a, b in zip(first, again, strict=True))
    assert len(first) == 4


def test_a_back_projection_is_the_mean_over_pixels():
    """By dense matrices: a column of each holds what one splat alone shows."""
    splats = cloud(30)
    views = Views(splats, CAMERAS)
    matrices = [view.render(torch.eye(30, dtype=torch.float64)).reshape(-1, 30) for view in views]
    pictures = torch.rand(4, 20, 24, 2, dtype=torch.float64)
    mean, mass = back_project(views, pictures)
    weights = sum(matrix.sum(0) for matrix in matrices)
    expected = sum(m.T @ p.reshape(-1, 2) for m, p in zip(matrices, pictures, strict=True)) / weights.clamp_min(1e-300)[:, None]
    assert torch.allclose(mass, weights) and torch.allclose(mean, expected)
    masks = torch.rand(4, 20, 24, dtype=torch.float64)
    assert torch.equal(region(views, masks), back_project(views, masks[..., None])[0][:, 0] > 0.5)


def test_splats_that_no_view_shows_keep_their_colour():
    splats = cloud(50)
    splats.means[7] = torch.tensor([0.0, 50.0, 0.0])
    views = Views(splats, CAMERAS)
    mean, mass = back_project(views, torch.ones(4, 20, 24, 3, dtype=torch.float64))
    assert mass[7] == 0 and torch.equal(mean[7], torch.zeros(3, dtype=torch.float64)) and torch.isfinite(mean).all()
    lifted = lift(views, splats.colors, torch.ones(4, 20, 24, 3, dtype=torch.float64), GREY)
    assert torch.equal(lifted[7], splats.colors[7]) and (lifted != splats.colors).any()


def test_a_lift_of_the_views_themselves_changes_nothing():
    splats = cloud(100)
    views = Views(splats, CAMERAS)
    own = torch.stack([view.render(splats.colors, GREY) for view in views])
    assert torch.equal(lift(views, splats.colors, own, GREY), splats.colors)
    assert torch.equal(lift(views, splats.colors, own.flip(-1), GREY, strength=0.0), splats.colors)


def test_a_lift_recovers_a_change_of_colour():
    """All splats turn the same way, so each pixel says what each splat in it did."""
    splats = cloud(300, size=0.3)
    splats = replace(splats, colors=splats.colors * 0.5 + 0.2)
    views, turn = Views(splats, CAMERAS), torch.tensor([0.1, -0.15, 0.2], dtype=torch.float64)
    edited = torch.stack([view.render(splats.colors + turn, GREY) for view in views])
    lifted = lift(views, splats.colors, edited, GREY)
    seen = back_project(views, edited)[1] > 0
    share = (lifted - splats.colors)[seen] / turn
    assert (share <= 1 + 1e-9).all() and share.mean() > 0.75  # what is left is what the background shines through
    half = lift(views, splats.colors, edited, GREY, strength=0.5)
    assert torch.allclose(half - splats.colors, (lifted - splats.colors) / 2, atol=1e-12)


def test_colours_stay_displayable_and_those_that_were_not_keep_their_bits():
    before = torch.tensor([[-0.3, 0.5, 1.4]])
    assert torch.equal(displayable(before, before), before)
    assert torch.equal(displayable(torch.tensor([[-0.5, -0.1, 1.2]]), before), torch.tensor([[-0.3, 0.0, 1.2]]))


def test_parameters_are_the_splats():
    splats = cloud(20)
    for trained in ("colors", "colors and opacity", "everything"):
        again = splats_of(parameters_of(splats, trained), splats)
        assert all(torch.allclose(getattr(again, name), getattr(splats, name)) for name in NAMES)
    assert parameters_of(splats, "everything").keys() == set(NAMES)


@pytest.mark.parametrize("trained", ["colors", "everything"])
def test_training_fits_a_picture_and_leaves_the_rest_alone(trained):
    splats, truth = cloud(60, seed=1), replace(cloud(60, seed=1), colors=torch.full((60, 3), 0.3, dtype=torch.float64))
    inside = torch.arange(60) < 40
    training = Training(splats, CAMERAS[:2], GREY, trained, 0.02, inside)
    targets = [drawn(truth, one)[0] for one in CAMERAS[:2]]

    def loss(parameters):
        return sum((training.picture(parameters, i) - target).square().mean() for i, target in enumerate(targets))

    state, first = training.parameters, float(loss(training.parameters))
    for _ in range(30):
        leaves = {name: value.clone().requires_grad_(True) for name, value in state.items()}
        gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
        state = training.update(state, dict(zip(leaves, gradients, strict=True)))
    after = training.trained(state)
    assert float(loss(state)) < 0.5 * first
    for name in NAMES:
        moved = (
            (getattr(after, name) != getattr(splats, name)).flatten(1).any(1)
            if name != "opacities"
            else (after.opacities != splats.opacities)
        )
        assert not moved[~inside].any()
        assert bool(moved[inside].any()) == (name in training.parameters)
