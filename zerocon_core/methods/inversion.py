"""DDIM inversion: from a clean latent to the noise that the sampler turns back into it.

Song et al. 2021 (DDIM), eq. 13 reversed; the noise regularisation is that of Parmar et al. 2023 (pix2pix-zero), section 3.1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..noising import Denoiser, Noising


class Trajectory(NamedTuple):
    """The latents an inversion passed through: `latents[i]` (B, C, H, W) lies at noise level `sigmas[i]`, sigmas descending.

    `residuals[i]` is how far from `latents[i]` the model was asked about the step from there to `latents[i + 1]`. An inversion
    whose predictions were changed before they were followed has none.
    """

    sigmas: Tensor
    latents: list[Tensor]
    residuals: Sequence[Tensor] = ()


class NoiseRegularization(NamedTuple):
    """How strongly the predicted noise is pulled towards white noise. The defaults are pix2pix-zero's."""

    lambda_ac: float = 20.0
    lambda_kl: float = 20.0
    iterations: int = 5
    rolls: int = 5


def autocorrelation_loss(noise: Tensor, generator: torch.Generator) -> Tensor:
    """How much `noise` (B, C, H, W) resembles a shifted copy of itself; pix2pix-zero, L_pair over an image pyramid.

    Per channel and pyramid level, at a random shift r of that level: mean(n * roll(n, r, rows))^2 + mean(n * roll(n, r, cols))^2.
    White noise gives 0 in expectation. Levels halve the size while both sides exceed 8. Returns the sum over batch and channels.
    """
    loss = noise.new_zeros(())
    while True:
        side = min(noise.shape[-2:])
        shift = int(torch.randint(1, max(side // 2, 2), (1,), generator=generator))
        for dim in (-2, -1):
            loss = loss + (noise * noise.roll(shift, dim)).mean((-2, -1)).square().sum()
        if side <= 8:
            return loss
        noise = F.avg_pool2d(noise, 2)


def kl_loss(noise: Tensor) -> Tensor:
    """Divergence of the values of `noise` (B, C, H, W) from a standard normal; pix2pix-zero, L_KL. Sum over the batch."""
    values = noise.flatten(1)
    variance, mean = values.var(1), values.mean(1)
    return (variance + mean**2 - 1 - torch.log(variance + 1e-7)).sum()


def regularize_noise(eps: Tensor, options: NoiseRegularization, generator: torch.Generator) -> Tensor:
    """Gradient descent of `eps` (B, C, H, W) on both losses, as in pix2pix-zero: `rolls` steps on L_pair, then one on L_KL."""

    def descend(eps: Tensor, loss: Callable[[Tensor], Tensor], rate: float) -> Tensor:
        with torch.enable_grad():
            eps = eps.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(eps), eps)
        return eps.detach() - rate * gradient

    for _ in range(options.iterations):
        if options.lambda_ac > 0:
            for _ in range(options.rolls):
                eps = descend(eps, lambda e: autocorrelation_loss(e, generator), options.lambda_ac / options.rolls)
        if options.lambda_kl > 0:
            eps = descend(eps, kl_loss, options.lambda_kl)
    return eps


def regularizer(
    noising: Noising, options: NoiseRegularization | None, generator: torch.Generator | None
) -> Callable[[Tensor], Tensor]:
    """`regularize_noise` with these options; without any, what leaves the slope as it is. Raises ValueError as `ddim_invert`."""
    if options is None:
        return lambda slope: slope
    if noising.flow:
        raise ValueError("the velocity of a flow is no noise to regularise; set both weights to 0, or invert with refinements")
    if generator is None:
        raise ValueError("noise regularisation draws random shifts: pass a generator")
    return lambda eps: regularize_noise(eps, options, generator)


def ddim_invert(
    noising: Noising,
    denoise: Denoiser,
    latent: Tensor,
    sigmas: Tensor,
    *,
    regularization: NoiseRegularization | None = None,
    generator: torch.Generator | None = None,
    refinements: int = 0,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Trajectory:
    """Follow `latent` (B, C, ...) up the noise levels `sigmas` (descending, as the sampler will walk back down).

    The sampler's step from sigma' down to sigma is x = x' + (sigma - sigma') * slope(x', sigma'), so its inverse solves
    x' = x + (sigma' - sigma) * slope(x', sigma') for x'; the slope is eps, or a flow's velocity. DDIM inversion is one
    fixed-point iteration of that equation from the guess that x' and x are the same point in variance-preserving form;
    `refinements` adds further iterations, each of which costs one more model call and brings the reconstruction closer (ours).
    The model is asked at the level that a step goes to, as in today's diffusers; pix2pix-zero's published code tells it the
    timestep that the step comes from.

    `regularization` draws from `generator`. `callback(step, denoised, x)` runs after each step. Raises ValueError for a schedule
    without a step, and for a regularisation of a flow, whose slope is no noise.
    """
    if len(sigmas) < 2:
        raise ValueError(f"an inversion needs at least 2 noise levels, got {len(sigmas)}")
    regularize = regularizer(noising, regularization, generator)
    ascending = sigmas.flip(0)
    latents, residuals, x = [latent], [], latent
    for step, (sigma, sigma_next) in enumerate(zip(ascending[:-1], ascending[1:], strict=True)):
        x_next = noising.same_vp_point(x, sigma, sigma_next)
        for _ in range(1 + refinements):
            asked = x_next
            denoised = denoise(asked, sigma_next)
            x_next = x + (sigma_next - sigma) * regularize(noising.slope(asked, sigma_next, denoised))
        x = x_next
        latents.append(x)
        residuals.append(asked - x)
        if callback is not None:
            callback(step, denoised, x)
    return Trajectory(sigmas, latents[::-1], residuals[::-1] if regularization is None else ())


def retracing(denoise: Denoiser, residual: Tensor) -> Denoiser:
    """`denoise` as an Euler sampler has to ask it to walk an inversion back: D(x + r) - r (DirectEdit, 2026).

    At `latents[i]` with `residuals[i]` the sampler's slope is the one that the inversion followed to get there, so its step ends
    at `latents[i + 1]` up to rounding, at no further pass. The same for every `Noising`.
    """
    return lambda x, sigma: denoise(x + residual, sigma) - residual


def closest_level(sigmas: Sequence[float] | Tensor, sigma: float, tolerance: float = 1e-4) -> int | None:
    """Index of the noise level in `sigmas` that equals `sigma` up to a relative `tolerance`, or None."""
    sigmas = torch.as_tensor(sigmas)
    index = int((sigmas - sigma).abs().argmin())
    return index if abs(float(sigmas[index]) - sigma) <= tolerance * max(sigma, 1e-8) else None
