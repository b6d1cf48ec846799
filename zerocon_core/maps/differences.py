"""Edit masks: where a model disagrees with itself about an image when the prompt changes.

DiffEdit (Couairon et al. 2023) compares the noise predictions of a source and a target prompt; Bodur et al. 2024 (prompt
augmentation, eq. 2) compare those of K augmented prompts, pair by pair. Both are `difference_map`: two prompts are one pair.

The noise level is the same in all predictions that are compared. There eps, v, velocity and denoised latent are linear in each
other with the same x, so their differences are proportional and give the same mask on every family of models. For the same
reason classifier-free guidance with one negative prompt would not change it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def difference_map(predictions: Tensor) -> Tensor:
    """D of eq. 2: mean over the K (K - 1) / 2 pairs of prompts and over the channels of |eps_i - eps_j|.

    `predictions` (K, B, C, H, W), K at least 2. Returns (B, H, W).
    """
    if len(predictions) < 2:
        raise ValueError(f"a difference needs at least 2 predictions, got {len(predictions)}")
    first, second = torch.combinations(torch.arange(len(predictions), device=predictions.device)).unbind(1)
    return (predictions[first] - predictions[second]).abs().mean((0, 2))


def average_difference(
    predict: Callable[[Tensor], Tensor],
    shape: torch.Size,
    draws: int,
    generator: torch.Generator,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Mean of `difference_map` over `draws` of the noise, (B, H, W).

    `predict` takes white noise of a latent's `shape` (B, C, H, W) to the predictions (K, B, C, H, W) at that noise. The samples
    of a batch share their noise, so each gets the map that it gets alone. `callback(draw, mean so far)` runs after each draw.
    """
    total = torch.zeros(())
    for draw in range(draws):
        noise = torch.randn(1, *shape[1:], generator=generator).expand(shape)
        total = total + difference_map(predict(noise))
        if callback is not None:
            callback(draw, total / (draw + 1))
    return total / draws


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of maps (B, H, W) with a standard deviation of `sigma` positions; the border is continued outwards."""
    if sigma <= 0:
        return maps
    radius = int(3 * sigma + 0.5)
    kernel = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device).div(sigma).square().mul(-0.5).softmax(0)
    padded = F.pad(maps.unsqueeze(1), (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).squeeze(1)


def heat_map(differences: Tensor, clamp: float = 3.0, smoothing: float = 0.0) -> Tensor:
    """(D - min) / (max - min) of each map, (B, H, W): from 0, where the prompts agree most, to 1.

    Before that, values above `clamp` times the map's mean are cut there (3 in diffusers' DiffEdit; 0 is off), so that single
    outliers do not set the scale, and the map is blurred by `smoothing` positions (ours). Raises ValueError if a map is constant.
    """
    if clamp > 0:
        differences = differences.minimum(clamp * differences.mean((1, 2), keepdim=True))
    differences = smooth(differences, smoothing)
    lowest, highest = differences.amin((1, 2), keepdim=True), differences.amax((1, 2), keepdim=True)
    if not (highest > lowest).all():
        raise ValueError("the predictions differ by the same everywhere: there is no place to mask")
    return (differences - lowest) / (highest - lowest)


def coverage(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each position of a map of `size` (h, w) that a mask (B, H, W) covers, (B, h, w)."""
    return F.adaptive_avg_pool2d(mask.unsqueeze(1), size).squeeze(1)


def edit_mask(heat: Tensor, threshold: float) -> Tensor:
    """M of eq. 2: 1 where the heat map exceeds `threshold`, else 0. Same shape as `heat`, float."""
    return (heat > threshold).to(heat.dtype)
