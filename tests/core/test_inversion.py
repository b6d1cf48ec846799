"""DDIM inversion against diffusers and against a closed form; its noise regularisation against loops."""

import math
from collections.abc import Callable

import papers
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor, nn

from zerocon_core.methods.inversion import (
    NoiseRegularization,
    autocorrelation_loss,
    closest_level,
    ddim_invert,
    kl_loss,
    regularize_noise,
    retracing,
)
from zerocon_core.noising import Noising

EPS, FLOW = Noising(), Noising(flow=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


# Stable Diffusion's noise levels, from the definition: beta_t = linspace(sqrt(0.00085), sqrt(0.012), 1000)^2.
ALPHA_BARS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading",
    "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": True,
}  # fmt: skip


def timesteps(steps: int) -> Tensor:
    """1, 21, ..., 981 for 50 steps."""
    return torch.arange(steps) * (1000 // steps) + 1


def noise_levels(steps: int) -> Tensor:
    """The same as sigmas, descending and down to 0."""
    alpha_bars = ALPHA_BARS[timesteps(steps)].flip(0)
    return torch.cat([((1 - alpha_bars) / alpha_bars).sqrt(), torch.zeros(1, dtype=torch.float64)])


class EpsNetwork(nn.Module):
    """eps(x_vp, t): a random convolutional network that knows the time step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.time = nn.Linear(1, 16)
        self.double().requires_grad_(False)

    def forward(self, x_vp: Tensor, t: Tensor) -> Tensor:
        time = self.time(t.double().view(1, 1) / 200).sin()
        return 2 * self.last((self.first(x_vp) + time[..., None, None]).tanh())

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        alpha_bar = 1 / (1 + sigma**2)
        t = (ALPHA_BARS - alpha_bar).abs().argmin()
        return x - sigma * self(alpha_bar.sqrt() * x, t)


@pytest.fixture(scope="module")
def network() -> EpsNetwork:
    return EpsNetwork()


@pytest.mark.parametrize("steps", [10, 50])
def test_every_latent_is_that_of_diffusers(network, steps):
    scheduler = DDIMInverseScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.equal(timesteps(steps))
    latent = randn(2, 4, 6, 5)
    expected = [latent]
    for t in scheduler.timesteps:
        expected.append(scheduler.step(network(expected[-1], t), t, expected[-1]).prev_sample)

    trajectory = ddim_invert(EPS, network.denoise, latent, noise_levels(steps))
    assert trajectory.sigmas.equal(noise_levels(steps))
    for sigma, x, x_vp in zip(trajectory.sigmas, trajectory.latents, reversed(expected), strict=True):
        error = (x / (1 + sigma**2).sqrt() - x_vp).norm() / x_vp.norm()
        assert error < 1e-5


def test_refinements_bring_diffusers_sampling_back_to_the_latent(network):
    """`refinements` solves the sampler's own step, so diffusers' DDIM sampling must return to the start, ever closer."""
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(50)
    latent, sigmas = randn(1, 4, 6, 5), noise_levels(50)
    errors = []
    for refinements in range(5):
        x = ddim_invert(EPS, network.denoise, latent, sigmas, refinements=refinements).latents[0] / (1 + sigmas[0] ** 2).sqrt()
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
        errors.append(float((x - latent).norm() / latent.norm()))
    assert all(after < 0.5 * before for before, after in zip(errors[:-1], errors[1:], strict=True)), errors
    assert errors[-1] < 5e-6  # diffusers' alpha_bar is float32


# Data that are N(m, s^2) in every value have a known denoiser, E[z | x] = (s^2 x + sigma^2 m) / (s^2 + sigma^2), and the
# probability flow dx/dsigma = (x - E[z | x]) / sigma the solution (x - m) = (x_0 - m) sqrt((s^2 + sigma^2) / s^2).
MEAN, SPREAD = 0.7, 1.5


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def euler_sampling(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (x - denoise(x, sigma)) / sigma * (sigma_next - sigma)
    return x


@pytest.mark.parametrize("refinements", [0, 3])
def test_converges_with_order_one_to_the_exact_flow(refinements):
    latent, errors = randn(1, 2, 3, 4), []
    for steps in (100, 200, 400):
        sigmas = torch.linspace(10, 0, steps + 1, dtype=torch.float64)
        trajectory = ddim_invert(EPS, gaussian_denoiser, latent, sigmas, refinements=refinements)
        errors.append(
            max(
                float((x - MEAN - (latent - MEAN) * math.sqrt((SPREAD**2 + sigma**2) / SPREAD**2)).abs().max())
                for sigma, x in zip(sigmas.tolist(), trajectory.latents, strict=True)
            )
        )
    assert errors[-1] < 0.2
    for before, after in zip(errors[:-1], errors[1:], strict=True):
        assert math.log2(before / after) == pytest.approx(1, abs=0.1)


def test_refinements_converge_to_the_inverse_of_euler_sampling():
    latent, sigmas, errors = randn(1, 4, 3, 5), noise_levels(50), []
    for refinements in range(10):
        noise = ddim_invert(EPS, gaussian_denoiser, latent, sigmas, refinements=refinements).latents[0]
        errors.append(float((euler_sampling(gaussian_denoiser, noise, sigmas) - latent).norm() / latent.norm()))
    assert all(after < 0.5 * before for before, after in zip(errors[:-1], errors[1:], strict=True)), errors
    assert errors[-1] < 1e-6


# A flow sees the same data as N(a m, a^2 s^2 + sigma^2) with a = 1 - sigma, and carries their quantiles along.


def flow_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    a = 1 - sigma
    return MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + sigma**2) * (x - a * MEAN)


@pytest.mark.parametrize("refinements", [0, 3])
def test_converges_with_order_one_to_the_exact_flow_of_a_flow_model(refinements):
    latent, errors = randn(1, 2, 2, 3, 4), []  # a video's
    for steps in (100, 200, 400):
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        trajectory = ddim_invert(FLOW, flow_denoiser, latent, sigmas, refinements=refinements)
        errors.append(
            max(
                float((x - (1 - s) * MEAN - (latent - MEAN) / SPREAD * math.sqrt((1 - s) ** 2 * SPREAD**2 + s**2)).abs().max())
                for s, x in zip(sigmas.tolist(), trajectory.latents, strict=True)
            )
        )
    assert errors[-1] < 0.02
    for before, after in zip(errors[:-1], errors[1:], strict=True):
        assert math.log2(before / after) == pytest.approx(1, abs=0.1)


def test_refinements_converge_to_the_inverse_of_sampling_a_flow():
    latent, sigmas, errors = randn(1, 4, 3, 5), torch.linspace(1, 0, 51, dtype=torch.float64), []
    for refinements in range(6):
        noise = ddim_invert(FLOW, flow_denoiser, latent, sigmas, refinements=refinements).latents[0]
        errors.append(float((euler_sampling(flow_denoiser, noise, sigmas) - latent).norm() / latent.norm()))
    assert all(after < 0.5 * before for before, after in zip(errors[:-1], errors[1:], strict=True)), errors
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("refinements", [0, 2])
@pytest.mark.parametrize("steps", [2, 3, 20])
def test_with_the_residuals_euler_sampling_retraces_the_inversion(network, steps, refinements):
    latent, sigmas = randn(2, 4, 6, 5), noise_levels(steps)
    path = ddim_invert(EPS, network.denoise, latent, sigmas, refinements=refinements)
    assert len(path.residuals) == steps
    x = y = path.latents[0]
    for i in range(steps):
        x = euler_sampling(retracing(network.denoise, path.residuals[i]), x, sigmas[i : i + 2])
        y = euler_sampling(network.denoise, y, sigmas[i : i + 2])
        torch.testing.assert_close(x, path.latents[i + 1], rtol=1e-12, atol=1e-12)
    assert (y - latent).norm() > 1e-3 * latent.norm(), "without them it does not"


def test_with_the_residuals_euler_sampling_retraces_a_flow():
    latent, sigmas = randn(1, 4, 3, 5), torch.linspace(1, 0, 9, dtype=torch.float64)
    path = ddim_invert(FLOW, flow_denoiser, latent, sigmas)
    x = path.latents[0]
    for i, residual in enumerate(path.residuals):
        x = euler_sampling(retracing(flow_denoiser, residual), x, sigmas[i : i + 2])
    torch.testing.assert_close(x, latent, rtol=1e-12, atol=1e-12)


def test_a_regularized_inversion_has_no_residuals(network):
    regularization = NoiseRegularization()
    path = ddim_invert(
        EPS, network.denoise, randn(1, 4, 12, 12), noise_levels(2), regularization=regularization, generator=generator()
    )
    assert not path.residuals


def test_the_velocity_of_a_flow_is_not_regularized():
    with pytest.raises(ValueError, match="velocity of a flow is no noise"):
        ddim_invert(
            FLOW, flow_denoiser, randn(1, 4, 3, 5), torch.tensor([1.0, 0.0]),
            regularization=NoiseRegularization(), generator=generator(),
        )  # fmt: skip


def test_trajectory_and_callback_follow_the_steps():
    latent, sigmas, answers, seen = randn(2, 4, 3, 5), noise_levels(10), [], []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        answers.append(gaussian_denoiser(x, sigma))
        return answers[-1]

    def callback(*arguments) -> None:
        seen.append(arguments)

    trajectory = ddim_invert(EPS, denoise, latent, sigmas, refinements=1, callback=callback)
    assert trajectory.sigmas is sigmas and len(trajectory.latents) == len(sigmas)
    assert trajectory.latents[-1].equal(latent)
    spread = [float(x.std()) for x in trajectory.latents]
    assert spread == sorted(spread, reverse=True)
    assert [step for step, _, _ in seen] == list(range(10))
    for step, denoised, x in seen:
        assert denoised.equal(answers[2 * step + 1])
        assert x.shape == latent.shape and x.equal(trajectory.latents[-2 - step])


@pytest.mark.parametrize("sigmas", [[], [1.0]])
def test_a_schedule_without_a_step_is_an_error(sigmas):
    with pytest.raises(ValueError, match=f"at least 2 noise levels, got {len(sigmas)}"):
        ddim_invert(EPS, gaussian_denoiser, randn(1, 4, 3, 5), torch.tensor(sigmas))


# Noise regularisation

SHAPES = [(1, 2, 8, 8), (2, 1, 9, 13), (1, 2, 20, 12), (1, 1, 7, 18), (1, 1, 2, 3)]


def drawn_shifts(noise: Tensor, draw: torch.Generator) -> list[int]:
    """The shifts that the core draws, one a level: from 1 to half the shorter side less 1, and 1 where that is nothing."""
    side, shifts = min(noise.shape[-2:]), []
    while True:
        shifts.append(int(torch.randint(1, max(side // 2, 2), (1,), generator=draw)))
        if side <= 8:
            return shifts
        side //= 2


@pytest.mark.parametrize("shape", SHAPES)
def test_autocorrelation_is_the_papers(shape):
    noise = (0.3 + randn(*shape)).requires_grad_()
    for seed in range(3):
        shifts = drawn_shifts(noise, generator(seed))
        loss = autocorrelation_loss(noise, generator(seed))
        assert loss.item() == pytest.approx(papers.autocorrelation(noise, shifts), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, noise)
    expected = papers.numerical_gradient(lambda n: papers.autocorrelation(n, shifts), noise)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_shifts_are_those_of_the_paper():
    """r ~ U{1 ... H/2 - 1}, the same for rows and columns: on an 8 x 8 map 1, 2 and 3 occur and nothing else does."""
    noise = randn(1, 1, 8, 8)
    possible = {round(papers.autocorrelation(noise, [shift]), 9) for shift in (1, 2, 3)}
    drawn = {round(float(autocorrelation_loss(noise, generator(seed))), 9) for seed in range(50)}
    assert len(possible) == 3 and drawn == possible


@pytest.mark.parametrize("shape", SHAPES)
def test_divergence_is_the_papers(shape):
    noise = (0.3 + 1.7 * randn(*shape)).requires_grad_()
    loss = kl_loss(noise)
    assert loss.item() == pytest.approx(papers.divergence(noise), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, noise)
    torch.testing.assert_close(gradient, papers.numerical_gradient(papers.divergence, noise), rtol=1e-6, atol=1e-9)


def regularized(eps: Tensor, options: NoiseRegularization, seed: int) -> Tensor:
    """iterations x { rolls x { eps <- eps - lambda_ac grad L_ac / rolls }, then eps <- eps - lambda_kl grad L_kl }"""
    draw = generator(seed)
    for _ in range(options.iterations):
        for _ in range(options.rolls if options.lambda_ac else 0):
            shifts = drawn_shifts(eps, draw)
            gradient = papers.numerical_gradient(lambda n, shifts=shifts: papers.autocorrelation(n, shifts), eps)
            eps = eps - options.lambda_ac * gradient / options.rolls
        eps = eps - options.lambda_kl * papers.numerical_gradient(papers.divergence, eps)
    return eps


REGULARIZATIONS = [
    NoiseRegularization(3.0, 2.0, iterations=2, rolls=3),
    NoiseRegularization(0.0, 2.0, iterations=3, rolls=2),
    NoiseRegularization(5.0, 0.0, iterations=1, rolls=2),
]


@pytest.mark.parametrize("options", REGULARIZATIONS)
def test_regularization_is_the_papers_descent(options):
    eps = 0.2 + 1.2 * randn(1, 2, 5, 6)
    torch.testing.assert_close(regularize_noise(eps, options, generator(4)), regularized(eps, options, 4), rtol=1e-6, atol=1e-7)


def test_defaults_are_pix2pix_zeros():
    assert NoiseRegularization() == (20.0, 20.0, 5, 5)


def test_regularization_off_is_off():
    eps = randn(1, 4, 9, 9)
    assert regularize_noise(eps, NoiseRegularization(0, 0), generator()).equal(eps)
    assert regularize_noise(eps, NoiseRegularization(iterations=0), generator()).equal(eps)


def test_a_batch_is_regularized_as_its_samples_are():
    eps = 0.2 + 1.2 * randn(2, 3, 10, 12)
    alone = torch.cat([regularize_noise(eps[i : i + 1], NoiseRegularization(), generator()) for i in range(2)])
    torch.testing.assert_close(regularize_noise(eps, NoiseRegularization(), generator()), alone)


def losses(noise: Tensor) -> tuple[float, float]:
    """L_ac, over several draws of the shifts, and L_kl; a channel and a sample."""
    draw, channels = generator(99), noise.shape[0] * noise.shape[1]
    correlation = sum(float(autocorrelation_loss(noise, draw)) for _ in range(20)) / 20
    return correlation / channels, float(kl_loss(noise)) / len(noise)


@pytest.mark.parametrize("size", [(64, 64), (32, 48), (37, 51)])
def test_white_noise_has_no_loss_and_regularization_pulls_towards_it(size):
    white = randn(1, 4, *size)
    coarse = F.interpolate(randn(1, 4, 6, 8, seed=1), size, mode="bicubic")
    correlated = coarse + 0.3 * white
    correlated = 0.1 + 1.2 * correlated / correlated.std()
    of_white, of_correlated = losses(white), losses(correlated)
    of_regularized = losses(regularize_noise(correlated, NoiseRegularization(), generator()))
    for white_loss, before, after in zip(of_white, of_correlated, of_regularized, strict=True):
        assert white_loss < 0.01
        assert before > 5 * white_loss
        assert after < 0.9 * before


def test_inversion_regularizes_the_prediction():
    """One step up from sigma = 0: x = z + sigma * regularized(eps), eps of the same point in variance-preserving form."""
    latent, sigma, options = randn(1, 1, 5, 6), 0.8, REGULARIZATIONS[0]
    x = latent * math.sqrt(1 + sigma**2)
    eps = (x - gaussian_denoiser(x, torch.tensor(sigma, dtype=torch.float64))) / sigma
    expected = latent + sigma * regularized(eps, options, 7)
    sigmas = torch.tensor([sigma, 0.0], dtype=torch.float64)
    trajectory = ddim_invert(EPS, gaussian_denoiser, latent, sigmas, regularization=options, generator=generator(7))
    torch.testing.assert_close(trajectory.latents[0], expected, rtol=1e-6, atol=1e-7)


def test_regularized_inversion_repeats_with_its_seed_under_no_grad():
    latent, sigmas = randn(1, 4, 12, 16), noise_levels(5)

    def noise(seed: int) -> Tensor:
        with torch.no_grad():  # how a model is run
            options = {"regularization": NoiseRegularization(), "generator": generator(seed)}
            return ddim_invert(EPS, gaussian_denoiser, latent, sigmas, **options).latents[0]

    assert noise(0).equal(noise(0))
    assert not noise(0).equal(noise(1))
    assert not noise(0).requires_grad


# Lookup of a noise level

LEVELS = [14.6, 3.0, 0.03, 0.0]


@pytest.mark.parametrize("levels", [LEVELS, torch.tensor(LEVELS), torch.tensor(LEVELS, dtype=torch.float64)])
def test_closest_level(levels):
    for index, sigma in [(0, 14.6), (1, 3.0), (1, 3.0002), (1, 2.9998), (2, 0.03), (3, 0.0)]:
        assert closest_level(levels, sigma) == index
    for sigma in (20.0, 3.0004, 2.9996, 0.0301, 1e-6):
        assert closest_level(levels, sigma) is None


def test_closest_level_of_a_wider_tolerance():
    assert closest_level(LEVELS, 3.2) is None
    assert closest_level(LEVELS, 3.2, tolerance=0.1) == 1
