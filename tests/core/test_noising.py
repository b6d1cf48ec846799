"""Each relation against the papers' form of it: x_vp = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps, or x = (1 - s) z + s eps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zerocon_core.noising import Noising, before_euler_step, leading_to, per_sample

EPS, FLOW = Noising(), Noising(flow=True)
ALPHA_BARS = (1.0, 0.9991, 0.5, 0.0047)
FLOW_LEVELS = (0.0, 0.003, 0.4, 0.99)

both = pytest.mark.parametrize("noising", [EPS, FLOW], ids=["eps", "flow"])


def float64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def level(alpha_bar: float) -> Tensor:
    """sigma^2 = (1 - alpha_bar) / alpha_bar"""
    return float64((1 - alpha_bar) / alpha_bar).sqrt()


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape or (2, 4, 3, 5), dtype=torch.float64, generator=generator)


def x_vp(z: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    return alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * eps


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS[1:])
def test_eps_undoes_the_forward_process(alpha_bar, random):
    z, eps = random(), random()
    x = x_vp(z, eps, alpha_bar) / alpha_bar**0.5
    torch.testing.assert_close(EPS.noised(z, eps, level(alpha_bar)), x)
    torch.testing.assert_close(EPS.eps(x, level(alpha_bar), z), eps)
    torch.testing.assert_close(EPS.slope(x, level(alpha_bar), z), EPS.velocity(z, eps))


@pytest.mark.parametrize("s", FLOW_LEVELS[1:])
def test_eps_undoes_the_straight_path_of_a_flow(s, random):
    z, eps, sigma = random(), random(), float64(s)
    x = z + s * (eps - z)  # where the straight line from image to noise is at s, whose velocity is eps - z
    torch.testing.assert_close(FLOW.noised(z, eps, sigma), x)
    torch.testing.assert_close(FLOW.eps(x, sigma, z), eps)
    torch.testing.assert_close(FLOW.slope(x, sigma, z), eps - z)
    torch.testing.assert_close(FLOW.velocity(z, eps), eps - z)


@pytest.mark.parametrize("s", FLOW_LEVELS[1:])
def test_a_flow_is_an_eps_model_at_another_level(s, random):
    z, eps, denoised = random(), random(), random()
    sigma, sigma_eps = float64(s), float64(s / (1 - s))
    x = FLOW.noised(z, eps, sigma)
    torch.testing.assert_close(x / (1 - s), EPS.noised(z, eps, sigma_eps))
    torch.testing.assert_close(FLOW.eps(x, sigma, denoised), EPS.eps(x / (1 - s), sigma_eps, denoised))
    moved = EPS.same_vp_point(x / (1 - s), sigma_eps, float64(1 / 3))
    torch.testing.assert_close(FLOW.same_vp_point(x, sigma, float64(0.25)) / 0.75, moved)


MEAN, SPREAD = 0.7, 1.5


@both
@pytest.mark.parametrize("s", [0.01, 0.3, 0.9])
def test_slope_is_that_of_the_exact_flow_of_gaussian_data(noising, s, random):
    """Data N(m, S^2) are seen as N(a m, a^2 S^2 + s^2), along whose quantiles the probability flow runs."""
    quantile = random()
    a, a_rises_by = (1 - s, -1) if noising.flow else (1, 0)
    variance = a**2 * SPREAD**2 + s**2
    x = a * MEAN + variance**0.5 * quantile
    slope = a_rises_by * MEAN + (a * a_rises_by * SPREAD**2 + s) / variance**0.5 * quantile  # dx/ds of the line above
    denoised = MEAN + a * SPREAD**2 / variance * (x - a * MEAN)  # the posterior mean
    torch.testing.assert_close(noising.slope(x, float64(s), denoised), slope)


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
@pytest.mark.parametrize("alpha_bar_to", ALPHA_BARS)
def test_same_vp_point_keeps_x_vp(alpha_bar, alpha_bar_to, random):
    point = x_vp(random(), random(), alpha_bar)
    moved = EPS.same_vp_point(point / alpha_bar**0.5, level(alpha_bar), level(alpha_bar_to))
    torch.testing.assert_close(alpha_bar_to**0.5 * moved, point)


def loss(point: Tensor) -> Tensor:
    return (point**3 + point.sin()).sum()


@both
@pytest.mark.parametrize("place", range(4))
def test_gradient_step_in_the_papers_space(noising, place, random):
    """The papers: x_vp <- x_vp - rate dL/dx_vp, then on in x = x_vp / factor, with the factor that makes the squares sum to 1."""
    if noising.flow:
        s = FLOW_LEVELS[place]
        sigma, factor = float64(s), (s**2 + (1 - s) ** 2) ** -0.5
    else:
        sigma, factor = level(ALPHA_BARS[place]), ALPHA_BARS[place] ** 0.5
    point, rate = random().requires_grad_(), 0.1
    expected = (point - rate * torch.autograd.grad(loss(point), point)[0]) / factor

    x = (point / factor).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(factor * x), x)
    torch.testing.assert_close(x - rate * noising.gradient_scale(sigma) * gradient, expected)


def euler(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """k-diffusion's Euler step: d = (x - denoised) / sigma; x + d (sigma_next - sigma)."""
    return x + (x - denoised) / sigma * (sigma_next - sigma)


LEVELS = [(EPS, 14.6, 12.9), (EPS, 1.3, 1.2), (EPS, 0.7, 0.03), (EPS, 0.03, 0.0), (FLOW, 1.0, 0.98), (FLOW, 0.4, 0.0)]


@pytest.mark.parametrize(("noising", "sigma", "sigma_next"), LEVELS)
def test_euler_sampler_steps_from_the_shifted_latent(noising, sigma, sigma_next, random):
    """The step in DDIM's form: the predicted latent and the predicted noise, mixed anew at the next level."""
    x, shift = random(), random()
    denoised = (x + shift).tanh()  # stands for the model, seen at x + shift
    a, a_next = (1 - sigma, 1 - sigma_next) if noising.flow else (1, 1)
    expected = a_next * denoised + sigma_next * (x + shift - a * denoised) / sigma
    sigma, sigma_next = torch.tensor([sigma, sigma_next], dtype=torch.float64)
    answer = before_euler_step(denoised, shift, sigma, sigma_next)
    torch.testing.assert_close(euler(x, answer, sigma, sigma_next), expected)


@pytest.mark.parametrize(("noising", "sigma", "sigma_next"), LEVELS)
def test_euler_sampler_steps_where_it_is_led(noising, sigma, sigma_next, random):
    x, x_next = random(), random()
    sigma, sigma_next = torch.tensor([sigma, sigma_next], dtype=torch.float64)
    torch.testing.assert_close(euler(x, leading_to(x_next, x, sigma, sigma_next), sigma, sigma_next), x_next)


def test_last_step_and_no_shift_leave_the_answer_alone(random):
    denoised, shift, sigma = random(), random(), torch.tensor(0.03)
    assert before_euler_step(denoised, shift, sigma, torch.tensor(0.0)).equal(denoised)
    assert before_euler_step(denoised, torch.zeros_like(shift), sigma, torch.tensor(0.01)).equal(denoised)


# Shapes and precision


@both
@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 4, 2, 3, 5), (2, 6)], ids=["image", "video", "vector"])
def test_a_level_a_sample_is_each_sample_at_its_level(noising, shape, random):
    z, eps, denoised = random(*shape), random(*shape), random(*shape)
    sigmas, to = torch.tensor([0.2, 0.7]).double(), torch.tensor([0.4, 0.1]).double()
    each = per_sample(sigmas, z)
    assert each.shape == (2, *[1] * (z.dim() - 1))
    x = noising.noised(z, eps, each)
    for i, sigma in enumerate(sigmas):
        assert x[i].equal(noising.noised(z[i], eps[i], sigma))
        assert noising.eps(x, each, denoised)[i].equal(noising.eps(x[i], sigma, denoised[i]))
        assert noising.slope(x, each, denoised)[i].equal(noising.slope(x[i], sigma, denoised[i]))
        assert noising.same_vp_point(x, each, per_sample(to, z))[i].equal(noising.same_vp_point(x[i], sigma, to[i]))
        assert noising.gradient_scale(each)[i].item() == noising.gradient_scale(sigma).item()


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_keep_the_dtype_of_the_latent(noising, dtype, random):
    z, eps = random().to(dtype), random().to(dtype)
    for sigma in (torch.tensor(0.3), torch.tensor(0.3).double(), torch.tensor([[[[0.3]]], [[[0.6]]]]).to(dtype)):
        x = noising.noised(z, eps, sigma)
        moved = noising.same_vp_point(x, sigma, sigma / 2)
        results = (x, noising.eps(x, sigma, z), noising.slope(x, sigma, z), moved, noising.gradient_scale(sigma) * x)
        assert {result.dtype for result in results} == {dtype}
