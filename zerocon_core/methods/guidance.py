"""The guided step of pix2pix-zero (Parmar et al. 2023) and pix2pix-zeroCon (Si et al. 2025).

At every noise level the edited latent is moved down the gradient of two losses before the sampler takes its step: the distance
of its cross-attention maps from those of the source, and the PatchNCE loss between its features and those of the source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..maps.differences import coverage
from ..noising import Noising, per_sample
from ..observation import Observation, pairs
from .patchnce import PatchNCE, patch_nce_loss


@dataclass(frozen=True)
class GuidanceWeights:
    """Strengths of the two losses: lambda_xa is pix2pix-zero's, lambda_cut is ours.

    `relative` makes lambda_cut the length of the contrastive move as a share of the cross-attention move, which means the same on
    every model; otherwise it is the factor on the loss.
    """

    lambda_xa: float = 0.1
    lambda_cut: float = 0.5
    relative: bool = True
    patchnce: PatchNCE = PatchNCE()

    @property
    def measures_scale(self) -> bool:
        return self.relative and self.lambda_cut != 0


class GuidedStep(NamedTuple):
    """What the guidance saw and did at one noise level, as means over the batch."""

    sigma: float
    xa: float
    cut: float
    """L_xa and L_cut before the move; 0 for one whose weight is 0."""
    weighted_xa: float
    weighted_cut: float
    """Both times their factors: what is descended is the sum."""
    move: float
    """Length of the move as a share of the latent's."""

    @property
    def loss(self) -> float:
        return self.weighted_xa + self.weighted_cut


def cross_attention_loss(maps: Sequence[tuple[Tensor, Tensor]], free: Tensor | None = None) -> Tensor:
    """L_xa of pix2pix-zero (eq. 5): sum over layers, mean over heads, sum over pixels and tokens of (M - M_ref)^2.

    `maps` are pairs (M, M_ref), each map (B, heads, h, w, tokens). `free` (B, H, W), a mask of any size, leaves out the pixels
    that it covers by half or more (ours). Returns one value a sample (B,).
    """
    losses = []
    for m, reference in maps:
        distances = (m - reference).square().sum(-1).mean(1)
        if free is not None:
            distances = distances * (coverage(free, distances.shape[-2:]) < 0.5)
        losses.append(distances.sum((1, 2)))
    return torch.stack(losses).sum(0)


class Guidance:
    """Moves one latent after another of a single sampling run down the gradient of both losses.

    With relative weights the scale of the contrastive loss is measured at the first guided step, where both gradients are taken
    apart, and then held: one objective for the whole run at the price of one backward pass (ours). `free` (B, H, W) is a mask of
    what neither loss looks at: contrast outside, freedom inside (ours). `history` has one entry a step.
    """

    def __init__(self, noising: Noising, weights: GuidanceWeights, generator: torch.Generator, free: Tensor | None = None):
        if weights.measures_scale and not weights.lambda_xa:
            raise ValueError("lambda_cut is relative to the cross-attention move, whose weight lambda_xa is 0")
        self.noising = noising
        self.weights = weights
        self.generator = generator
        self.free = free if free is not None and free.any() else None
        self.cut_weight: Tensor | float | None = None if weights.measures_scale else weights.lambda_cut
        self.history: list[GuidedStep] = []

    def losses(self, edited: Observation, reference: Observation) -> tuple[Tensor | float, Tensor | float]:
        """(L_xa, L_cut), each (B,), or 0 where the weight is 0."""
        w = self.weights
        xa = cut = 0.0
        if w.lambda_xa:
            xa = cross_attention_loss(pairs(edited.cross_attention, reference.cross_attention), self.free)
        if w.lambda_cut:
            maps = pairs(edited.self_attention, reference.self_attention)
            cut = patch_nce_loss(maps, w.patchnce, self.generator, self.free)
        return xa, cut

    def shift(self, observe: Callable[[Tensor], Observation], x: Tensor, sigma: Tensor, reference: Observation) -> Tensor:
        """The move of x (B, C, H, W): -(lambda_xa grad L_xa + lambda_cut grad L_cut), a step in the papers' space.

        `observe` runs the model and lets gradients through; call this where autograd records. Raises ValueError for a gradient
        that is not finite.
        """
        w = self.weights
        if not (w.lambda_xa or w.lambda_cut):
            return torch.zeros_like(x)
        x = x.detach().clone().requires_grad_(True)
        xa, cut = self.losses(observe(x), reference)
        if self.cut_weight is None:
            (xa_gradient,) = torch.autograd.grad(xa.sum(), x, retain_graph=True)
            (cut_gradient,) = torch.autograd.grad(cut.sum(), x)
            ratio = lengths(xa_gradient) / lengths(cut_gradient).clamp_min(1e-12)
            self.cut_weight = w.lambda_cut * w.lambda_xa * ratio
            gradient = w.lambda_xa * xa_gradient + per_sample(self.cut_weight, x) * cut_gradient
        else:
            (gradient,) = torch.autograd.grad((w.lambda_xa * xa + self.cut_weight * cut).sum(), x)
        if not torch.isfinite(gradient).all():
            raise ValueError(f"the guidance gradient is not finite at sigma {float(sigma):.4g}; load the model in float32")
        move = -self.noising.gradient_scale(sigma) * gradient
        self.history.append(self.step(sigma, xa, cut, lengths(move) / lengths(x.detach())))
        return move

    def step(self, sigma: Tensor, xa: Tensor | float, cut: Tensor | float, move: Tensor) -> GuidedStep:
        values = sigma, xa, cut, self.weights.lambda_xa * xa, self.cut_weight * cut, move
        return GuidedStep(*(float(torch.as_tensor(value).detach().mean()) for value in values))


def lengths(batch: Tensor) -> Tensor:
    """Euclidean length of each sample (B,)."""
    return batch.flatten(1).norm(dim=1)
