"""Pictures of splats in plain PyTorch, on any device, differentiable in every input. Ours; the meaning is gsplat's.

A pair is a pixel and a splat that counts in it. All pairs of a picture are one list, by pixel and then from near to far, and the
light that reaches a pair is a sum over those before it in its pixel: no loop over pixels, tiles or splats.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .gaussians import Camera
from .projection import Ellipses, project

NEAR_PLANE = 0.01
EPS2D = 0.3
FAINTEST = 1 / 255
"""A splat that covers less of a pixel than this does not count in it (gsplat)."""
DENSEST = 0.999
"""No splat covers more of a pixel than this (gsplat)."""
DARK = 1e-4
"""What less light than this reaches does not count. gsplat leaves out the splat too that takes the light below."""


class Pairs(NamedTuple):
    """M pairs, by pixel and then from near to far."""

    pixels: Tensor
    """(M,), row by row."""
    splats: Tensor
    """(M,)"""


class Shares(NamedTuple):
    """What makes up each pixel's colour."""

    pairs: Tensor
    """The share of each pair's splat in its pixel (M,)."""
    left: Tensor
    """The share of the background (H * W,)."""


@torch.no_grad()
def find_pairs(ellipses: Ellipses, opacities: Tensor, width: int, height: int, near_plane: float) -> Pairs:
    """The pairs of a picture; DARK ones among them."""
    centres, _, deviations, depths = ellipses
    # A splat's box ends where it becomes too faint.
    reach = deviations * (2 * (opacities / FAINTEST).clamp_min(1).log()).sqrt()[:, None]
    last = torch.tensor([width - 1, height - 1]).to(centres)
    low = (centres - reach - 0.5).ceil().clamp_min(0)
    sizes = (torch.minimum((centres + reach - 0.5).floor(), last) - low + 1).clamp_min(0).long()
    counts = sizes.prod(-1) * ((depths > near_plane) & (opacities > FAINTEST))
    order = depths.argsort()
    order = order[counts[order] > 0]
    counts = counts[order]
    splats = torch.repeat_interleave(order, counts)
    within = torch.arange(len(splats), device=splats.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    # One table, since rows are read several times as fast as single values.
    left, top, across = torch.cat([low.long(), sizes[:, :1]], dim=1).index_select(0, splats).unbind(-1)
    rows = torch.div(within, across, rounding_mode="floor")
    pixels = (top + rows) * width + left + (within - rows * across)
    seen = coverage(ellipses, opacities, Pairs(pixels, splats), width) >= FAINTEST
    pixels, order = pixels[seen].sort(stable=True)
    return Pairs(pixels, splats[seen].index_select(0, order))


def coverage(ellipses: Ellipses, opacities: Tensor, pairs: Pairs, width: int) -> Tensor:
    """How much of its pixel each pair's splat would cover if it were alone (M,)."""
    table = torch.cat([ellipses.centres, ellipses.conics, opacities[:, None]], dim=1)
    u, v, xx, xy, yy, opacity = table.index_select(0, pairs.splats).unbind(-1)
    rows = torch.div(pairs.pixels, width, rounding_mode="floor")
    dx, dy = pairs.pixels - rows * width + 0.5 - u, rows + 0.5 - v
    return opacity * torch.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)


def shares(covered: Tensor, pixels: Tensor, count: int) -> Shares:
    """Front-to-back compositing of coverages (M,) whose pairs lie in `pixels` (M,), of which the picture has `count`.

    Light is a sum of logarithms; in float64, since it is the difference of two sums over the whole picture.
    """
    covered = covered.clamp_max(DENSEST)
    passing = torch.log1p(-covered.double())
    through = passing.new_zeros(count).index_add(0, pixels, passing)
    before = through.cumsum(0) - through
    light = (passing.cumsum(0) - passing - before[pixels]).exp()
    reached = light > DARK
    left = passing.new_zeros(count).index_add(0, pixels, passing * reached).exp()
    return Shares((covered * light * reached).to(covered.dtype), left.to(covered.dtype))


def see(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, camera: Camera, near_plane: float, eps2d: float
) -> tuple[Pairs, Shares]:
    """The pairs of a picture and what they make up of it."""
    ellipses = project(means, quats, scales, camera, near_plane, eps2d)
    pairs = find_pairs(ellipses, opacities, camera.width, camera.height, near_plane)
    covered = coverage(ellipses, opacities, pairs, camera.width)
    return pairs, shares(covered, pairs.pixels, camera.width * camera.height)


def blend(colors: Tensor, pairs: Pairs, parts: Shares, background: Tensor | None) -> Tensor:
    """The picture (H * W, D) of splats of these colours (N, D) before a background (D,); None is black."""
    lit = parts.pairs[:, None] * colors.index_select(0, pairs.splats)
    picture = colors.new_zeros(len(parts.left), colors.shape[-1]).index_add(0, pairs.pixels, lit)
    return picture if background is None else picture + parts.left[:, None] * background


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = NEAR_PLANE,
    eps2d: float = EPS2D,
    backgrounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Colours (C, H, W, D) and coverages (C, H, W, 1) of splats seen by C cameras, as the first two of gsplat.rasterization.

    means (N, 3), quats (N, 4) wxyz, scales (N, 3), opacities (N,), colors (N, D), viewmats (C, 4, 4) world to camera with x to
    the right, y down and z forward, Ks (C, 3, 3), backgrounds (C, D). Differentiable in the first five and in the backgrounds.
    In float32 pictures of values in [0, 1] are within 1e-5 of those in float64.
    """
    pictures, coverages = [], []
    for number, (viewmat, K) in enumerate(zip(viewmats, Ks, strict=True)):
        pairs, parts = see(means, quats, scales, opacities, Camera(viewmat, K, width, height), near_plane, eps2d)
        picture = blend(colors, pairs, parts, None if backgrounds is None else backgrounds[number])
        pictures.append(picture.view(height, width, -1))
        coverages.append(1 - parts.left.view(height, width, 1))
    return torch.stack(pictures), torch.stack(coverages)


Rasterization = Callable[..., tuple[Tensor, Tensor]]


def rasterization_on(device: torch.device) -> Rasterization:
    """The fastest `rasterization` on a device: gsplat's own on CUDA where it is installed, ours everywhere else."""
    if device.type != "cuda":
        return rasterization
    try:
        import gsplat  # type: ignore[import-not-found]
    except ImportError:
        return rasterization

    def drawn(*args: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        colors, alphas, _ = gsplat.rasterization(*args, **options)
        return colors, alphas

    return drawn
