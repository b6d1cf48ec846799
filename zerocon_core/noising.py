"""Relations between latent z, noise eps, noised latent x and denoised latent D, in the host's sigma space.

Two families noise a latent differently, and `Noising` tells them apart by one function, the image's share a(sigma):

    x = a z + sigma eps      a = 1: eps and v models, sigma from 0 to about 15      a = 1 - sigma: flow models, sigma from 0 to 1

The papers on guidance write x_vp = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps, whose factors' squares sum to 1. It is the same
point scaled: x_vp = x / sqrt(a^2 + sigma^2). A flow model is an eps model at sigma / (1 - sigma), seen at x / (1 - sigma).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> denoised latent. x is (B, C, ...), an image's or a video's, sigma a scalar tensor; the result has x's shape."""


@dataclass(frozen=True)
class Noising:
    """How a family of models mixes image and noise. Latents are (B, C, ...); sigma is a scalar or of shape (B, 1, ...).

    A result is of the latents' dtype where sigma is a scalar tensor or of that dtype too.
    """

    flow: bool = False
    """Rectified flow (Liu et al. 2022), x = (1 - sigma) z + sigma eps; else variance exploding, x = z + sigma eps."""

    def image_share(self, sigma: Tensor) -> Tensor:
        """a, the factor of the clean latent in x."""
        return 1 - sigma if self.flow else torch.ones_like(sigma)

    def noised(self, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x = a z + sigma eps."""
        return self._shown(latent, sigma) + sigma * noise

    def eps(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        """Noise prediction (x - a D) / sigma, sigma > 0. In a flow it is not the velocity: that is `slope`."""
        return (x - self._shown(denoised, sigma)) / sigma

    def slope(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
        """dx/dsigma = (x - D) / sigma along which an Euler (DDIM) sampler steps, sigma > 0: eps, or a flow's velocity."""
        return (x - denoised) / sigma

    def velocity(self, latent: Tensor, noise: Tensor) -> Tensor:
        """The slope that a perfect model shows between a latent and its noise, which is what models are trained on."""
        return noise - latent if self.flow else noise

    def gradient_scale(self, sigma: Tensor) -> Tensor:
        """What a gradient step in the papers' space costs here: x_vp - g(x_vp) is x - (a^2 + sigma^2) g(x).

        One factor sqrt(a^2 + sigma^2) comes from the chain rule, the other from scaling the step back.
        """
        return self.image_share(sigma) ** 2 + sigma**2

    def same_vp_point(self, x: Tensor, sigma: Tensor, sigma_to: Tensor) -> Tensor:
        """The x at noise level `sigma_to` whose x_vp is that of `x` at `sigma`."""
        return x * (self.gradient_scale(sigma_to) / self.gradient_scale(sigma)) ** 0.5

    def _shown(self, latent: Tensor, sigma: Tensor) -> Tensor:
        return self.image_share(sigma) * latent if self.flow else latent


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) as (B, 1, ...), to be multiplied with `like` (B, ...) of any number of dimensions."""
    return values.view(-1, *(1,) * (like.dim() - 1))


def before_euler_step(denoised: Tensor, shift: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The answer that makes an Euler sampler step from x + shift although it holds x (ours). The same for every `Noising`.

    A sampler at x computes x + (x - answer) / sigma * (sigma_next - sigma). With answer = denoised + shift * sigma_next /
    (sigma - sigma_next), where `denoised` was predicted at x + shift, that is the Euler (DDIM) step of x + shift.
    """
    return denoised + shift * (sigma_next / (sigma - sigma_next))


def leading_to(x_next: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The answer with which an Euler sampler at x steps to x_next: x + (x - answer) / sigma * (sigma_next - sigma) = x_next."""
    return x + (x_next - x) * (sigma / (sigma - sigma_next))
