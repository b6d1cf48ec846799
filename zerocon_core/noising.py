"""Relations between latent, sigma, eps and denoised latent.

Everything is in the variance-exploding form that ComfyUI and k-diffusion use: x = z + sigma * eps, where z is the clean latent.
The papers write the variance-preserving form x_vp = sqrt(alpha_bar) * z + sqrt(1 - alpha_bar) * eps, which is the same point
scaled: x_vp = x / sqrt(1 + sigma^2) with sigma^2 = (1 - alpha_bar) / alpha_bar.
"""

from collections.abc import Callable

from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> denoised latent. x is (B, C, H, W), sigma a scalar tensor; the result has the shape of x."""


def to_eps(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """Noise prediction of a denoised latent: eps = (x - denoised) / sigma. All (B, C, H, W), sigma > 0."""
    return (x - denoised) / sigma


def same_vp_point(x: Tensor, sigma: Tensor, sigma_to: Tensor) -> Tensor:
    """The x at noise level `sigma_to` whose variance-preserving form is that of `x` at `sigma`."""
    return x * ((1 + sigma_to**2) / (1 + sigma**2)) ** 0.5


def vp_gradient_scale(sigma: Tensor) -> Tensor:
    """What a gradient step in the papers' space costs here: x_vp - g(x_vp) is x - (1 + sigma^2) * g(x).

    One factor sqrt(1 + sigma^2) comes from the chain rule, the other from scaling the step back.
    """
    return 1 + sigma**2


def before_euler_step(denoised: Tensor, shift: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The answer that makes an Euler sampler step from x + shift although it holds x (ours).

    A sampler at x computes x + (x - answer) / sigma * (sigma_next - sigma). With answer = denoised + shift * sigma_next /
    (sigma - sigma_next), where `denoised` was predicted at x + shift, that is the Euler (DDIM) step of x + shift.
    """
    return denoised + shift * (sigma_next / (sigma - sigma_next))


def leading_to(x_next: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The answer with which an Euler sampler at x steps to x_next: x + (x - answer) / sigma * (sigma_next - sigma) = x_next."""
    return x + (x_next - x) * (sigma / (sigma - sigma_next))
