"""Errors in pixels. For preservation take both images `outside` the mask first, as PIE-Bench does (Ju et al. 2024)."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

WINDOW = 11
"""Side of SSIM's window in pixels."""


def outside(images: Tensor, mask: Tensor) -> Tensor:
    """The images with everything under the mask black. Their errors are means over all pixels, the black ones among them."""
    return images * (1.0 - mask.unsqueeze(-1))


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error, (B,)."""
    return (a - b).square().mean((1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for values in [0, 1], (B,); infinite for equal images."""
    return -10.0 * mse(a, b).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), (B,): Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03.

    The mean over channels and over all places where the window lies within the image. torchmetrics did the same until version
    1.4, which PIE-Bench's published figures come from; newer ones pad the image. Raises ValueError for images that are too small.
    """
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, got {a.shape[2]}x{a.shape[1]}")
    x = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    window = (-x.square() / (2 * 1.5**2)).exp()
    window = window / window.sum()

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    a, b = (rearrange(images, "b h w c -> (b c) 1 h w") for images in (a, b))
    mean_a, mean_b = local_mean(a), local_mean(b)
    variance_a, variance_b = local_mean(a * a) - mean_a.square(), local_mean(b * b) - mean_b.square()
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return rearrange(luminance * contrast_structure, "(b c) 1 h w -> b (c h w)", c=3).mean(1)
