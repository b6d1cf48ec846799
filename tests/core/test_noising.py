"""Each relation against the papers' form of it: x_vp = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zerocon_core.noising import before_euler_step, same_vp_point, to_eps, vp_gradient_scale

ALPHA_BARS = (1.0, 0.9991, 0.5, 0.0047)


def level(alpha_bar: float) -> Tensor:
    """sigma^2 = (1 - alpha_bar) / alpha_bar"""
    return torch.tensor((1 - alpha_bar) / alpha_bar, dtype=torch.float64).sqrt()


@pytest.fixture
def random() -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=generator)


def x_vp(z: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    return alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * eps


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS[1:])
def test_to_eps_undoes_the_forward_process(alpha_bar, random):
    z, eps = random(), random()
    x = x_vp(z, eps, alpha_bar) / alpha_bar**0.5
    torch.testing.assert_close(to_eps(x, level(alpha_bar), z), eps)


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
@pytest.mark.parametrize("alpha_bar_to", ALPHA_BARS)
def test_same_vp_point_keeps_x_vp(alpha_bar, alpha_bar_to, random):
    point = x_vp(random(), random(), alpha_bar)
    moved = same_vp_point(point / alpha_bar**0.5, level(alpha_bar), level(alpha_bar_to))
    torch.testing.assert_close(alpha_bar_to**0.5 * moved, point)


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
def test_gradient_step_in_the_papers_space(alpha_bar, random):
    def loss(point: Tensor) -> Tensor:
        return (point**3 + point.sin()).sum()

    # The papers: x_vp <- x_vp - lambda dL/dx_vp, then on in x = x_vp / sqrt(alpha_bar).
    point, rate = random().requires_grad_(), 0.1
    expected = (point - rate * torch.autograd.grad(loss(point), point)[0]) / alpha_bar**0.5

    x = (point / alpha_bar**0.5).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(alpha_bar**0.5 * x), x)
    torch.testing.assert_close(x - rate * vp_gradient_scale(level(alpha_bar)) * gradient, expected)


def euler(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """k-diffusion's Euler step: d = (x - denoised) / sigma; x + d (sigma_next - sigma)."""
    return x + (x - denoised) / sigma * (sigma_next - sigma)


@pytest.mark.parametrize(("sigma", "sigma_next"), [(14.6, 12.9), (1.3, 1.2), (0.7, 0.03), (0.03, 0.0)])
def test_euler_sampler_steps_from_the_shifted_latent(sigma, sigma_next, random):
    x, shift = random(), random()
    sigma, sigma_next = torch.tensor([sigma, sigma_next], dtype=torch.float64)
    denoised = (x + shift).tanh()  # stands for the model, seen at x + shift
    expected = euler(x + shift, denoised, sigma, sigma_next)
    answer = before_euler_step(denoised, shift, sigma, sigma_next)
    torch.testing.assert_close(euler(x, answer, sigma, sigma_next), expected)


def test_last_step_and_no_shift_leave_the_answer_alone(random):
    denoised, shift, sigma = random(), random(), torch.tensor(0.03)
    assert before_euler_step(denoised, shift, sigma, torch.tensor(0.0)).equal(denoised)
    assert before_euler_step(denoised, torch.zeros_like(shift), sigma, torch.tensor(0.01)).equal(denoised)
