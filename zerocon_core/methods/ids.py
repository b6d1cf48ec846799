"""Identity-preserving Distillation Sampling (Kim et al. 2025, IDS): the noise that shows the source to the model as it is."""

import torch
from torch import Tensor

from ..noising import Denoiser, Noising
from .cds import Recording


def refine_noise(
    noising: Noising,
    source: Tensor,
    noise: Tensor,
    sigma: Tensor,
    denoise: Denoiser,
    iterations: int,
    recording: Recording = torch.enable_grad,
) -> Tensor:
    """The noise (B, C, ...) under which the model, asked about the source, answers with the source.

    Identity-preserving Distillation Sampling (Kim et al. 2025), eq. 6 to 8: gradient steps of length 1 on |z_src - z0(x)| in the
    papers' variance-preserving space, then eps* = (x - a z_src) / sigma. `denoise` is under CFG and lets gradients through.
    """
    x = noising.noised(source, noise, sigma)
    for _ in range(iterations):
        with recording():
            x = x.detach().clone().requires_grad_(True)
            distance = (source - denoise(x, sigma)).flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(distance.sum(), x)
        x = x.detach() - noising.gradient_scale(sigma) * gradient
    return noising.eps(x, sigma, source)
