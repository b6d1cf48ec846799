"""The rasterizer against loops over pixels and splats, and against finite differences."""

import sys
import types

import pytest
import torch
from clouds import camera, cloud, composited

from zerocon_core.splats.gaussians import Splats
from zerocon_core.splats.render import rasterization, rasterization_on

BACKGROUND = (0.2, 0.5, 0.9)
NAMES = ("means", "quats", "scales", "opacities", "colors")


def render(splats: Splats, *cameras, background=BACKGROUND, **options):
    return rasterization(
        *(getattr(splats, name) for name in NAMES),
        torch.stack([c.viewmat for c in cameras]),
        torch.stack([c.K for c in cameras]),
        cameras[0].width,
        cameras[0].height,
        backgrounds=torch.tensor(background, dtype=torch.float64).to(splats.means).expand(len(cameras), 3),
        **options,
    )


@pytest.mark.parametrize("distance", [3.0, 0.6], ids=["from outside", "from inside"])
def test_it_is_front_to_back_compositing(distance):
    splats, cameras = cloud(150), [camera(distance=distance), camera(distance=distance, turn=2.0)]
    pictures, coverages = render(splats, *cameras)
    for i, one in enumerate(cameras):
        picture, covered = composited(splats, one, BACKGROUND)
        assert (pictures[i] - picture).abs().max() < 1e-9
        assert (coverages[i, ..., 0] - covered).abs().max() < 1e-9
        assert covered.max() > 0.99 and covered.std() > 0.05


def test_what_no_light_reaches_does_not_count():
    """Many dense splats behind each other: most are dark, in the loops as here."""
    splats = cloud(400, seed=3, size=0.5)
    picture, _ = composited(splats, camera(6, 5), BACKGROUND)
    assert (render(splats, camera(6, 5))[0][0] - picture).abs().max() < 1e-9


def test_thin_splats_can_stay_thin():
    splats = cloud(60, seed=5, size=0.02)
    picture, _ = composited(splats, camera(), BACKGROUND, eps2d=0.0)
    assert (render(splats, camera(), eps2d=0.0)[0][0] - picture).abs().max() < 1e-9
    assert (render(splats, camera())[0][0] - picture).abs().max() > 0.01


def test_float32_loses_little():
    splats, view = cloud(4000, seed=7, size=0.05), camera(64, 64)
    exact = render(splats, view)[0]
    single = lambda t: t.float()
    rough = render(Splats(*(single(getattr(splats, name)) for name in NAMES)), camera(64, 64, dtype=torch.float32))[0]
    error = (rough.double() - exact).abs()
    assert error.max() < FLOAT32_LOSS and rough.dtype == torch.float32


FLOAT32_LOSS = 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name):
    splats, view = cloud(40, seed=1), camera(12, 10)
    given = {n: getattr(splats, n) for n in NAMES}
    weight = torch.rand(10, 12, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(value):
        picture, covered = render(Splats(**given | {name: value}), view)
        return (torch.cat([picture, covered], -1)[0] * weight).sum()

    value = given[name].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(value), value)
    step = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # Splats fade in and out at 1/255 of a pixel, in jumps that a finite difference should not cross.
    small = 1e-8
    with torch.no_grad():
        slope = (loss(value + small * step) - loss(value - small * step)) / (2 * small)
    assert gradient.norm() > 0.01
    assert float((gradient * step).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_the_backgrounds_gradient_is_what_is_left():
    background = torch.tensor([BACKGROUND], dtype=torch.float64, requires_grad=True)
    splats, view = cloud(40), camera()
    pictures, coverages = rasterization(
        *(getattr(splats, n) for n in NAMES), view.viewmat[None], view.K[None], view.width, view.height, backgrounds=background
    )
    (gradient,) = torch.autograd.grad(pictures.sum(), background)
    assert torch.allclose(gradient, (1 - coverages).sum().expand(1, 3))


def test_splats_behind_the_camera_are_not_seen():
    splats = cloud(50)
    pictures, coverages = render(splats, camera(distance=-3.0))
    assert torch.equal(coverages, torch.zeros_like(coverages))
    assert torch.allclose(pictures, torch.tensor(BACKGROUND, dtype=torch.float64).expand_as(pictures))


def test_gsplat_draws_on_cuda_where_it_is_installed(monkeypatch):
    """With the same arguments; its third answer is left out."""
    cuda, seen = torch.device("cuda"), {}
    monkeypatch.setitem(sys.modules, "gsplat", None)
    assert rasterization_on(cuda) is rasterization
    drawn = lambda *args, **options: seen.update(args=args, options=options) or ("colors", "alphas", {"meta": 1})
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=drawn))
    assert rasterization_on(torch.device("cpu")) is rasterization
    assert rasterization_on(cuda)(1, 2, backgrounds=3) == ("colors", "alphas")
    assert seen == {"args": (1, 2), "options": {"backgrounds": 3}}
