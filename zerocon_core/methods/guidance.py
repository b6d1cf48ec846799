"""The guided step of pix2pix-zero (Parmar et al. 2023) and pix2pix-zeroCon (Si et al. 2025).

At every noise level the edited latent is moved down the gradient of two losses before the sampler takes its step: the distance
of its cross-attention maps from those of the source, and the PatchNCE loss between its features and those of the source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
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
    """L_xa before the move; 0 where its weight is 0."""
    cut: float
    """L_cut likewise."""
    weighted_xa: float
    """L_xa times its factor: what is descended is the sum of both."""
    weighted_cut: float
    """L_cut times its factor."""
    move: float
    """Length of the move as a share of the latent's."""

    @property
    def loss(self) -> float:
        return self.weighted_xa + self.weighted_cut


def cross_attention_loss(maps: Sequence[tuple[Tensor, Tensor]], free: Tensor | None = None) -> Tensor:
    """L_xa of pix2pix-zero (eq. 5) on the scale of its published code.

    Sum over layers, mean over heads, sum over pixels and tokens of (M - M_ref)^2. The published mean runs over the heads of both
    branches of CFG, of which one shows the edit, so it is half of that over the heads of the edit.

    `maps` are pairs (M, M_ref), each map (B, heads, h, w, tokens). `free` (B, H, W), a mask of any size, leaves out the pixels
    that it covers by half or more (ours). Returns one value a sample (B,).
    """
    losses = []
    for m, reference in maps:
        # Unlike the square of a difference, this keeps for its gradient nothing that is not kept anyway.
        distances = F.mse_loss(m, reference, reduction="none").sum(-1).mean(1) / 2
        if free is not None:
            height, width = distances.shape[-2:]
            distances = distances * (coverage(free, (height, width)) < 0.5)
        losses.append(distances.sum((1, 2)))
    return torch.stack(losses).sum(0)


class Guidance:
    """Moves one latent after another of a single sampling run down the gradient of both losses.

    With relative weights the scale of the contrastive loss is measured at the first guided step, where both gradients are taken
    apart, and then held, also by a run that goes on with this one (`measure`): one objective for the whole run at the price of
    one backward pass (ours). `free` (B, H, W) is a mask of what neither loss looks at: contrast outside, freedom inside (ours).
    `history` has one entry a step.
    """

    def __init__(self, noising: Noising, weights: GuidanceWeights, generator: torch.Generator, free: Tensor | None = None):
        if weights.measures_scale and not weights.lambda_xa:
            raise ValueError("lambda_cut is relative to the cross-attention move, whose weight lambda_xa is 0")
        self.noising = noising
        self.weights = weights
        self.generator = generator
        self.free = free if free is not None and free.any() else None
        self.history: list[GuidedStep] = []
        self.measured = not weights.measures_scale
        """Whether the factor on L_cut is known."""
        self.cut_weight: Tensor | float = weights.lambda_cut
        """The factor on L_cut: a scalar, with relative weights one a sample from the first step on."""

    def shift(self, observe: Callable[[Tensor], Observation], x: Tensor, sigma: Tensor, reference: Observation) -> Tensor:
        """The move of x (B, C, ...): -(lambda_xa grad L_xa + lambda_cut grad L_cut), a step in the papers' space.

        `observe` runs the model and lets gradients through; call this where autograd records. Raises ValueError for a gradient
        that is not finite.
        """
        if not (self.weights.lambda_xa or self.weights.lambda_cut):
            return torch.zeros_like(x)
        x = x.detach().clone().requires_grad_(True)
        xa, cut = self.losses(observe(x), reference, x)
        gradient = self.gradient(xa, cut, x)
        if not torch.isfinite(gradient).all():
            raise ValueError(f"the guidance gradient is not finite at sigma {float(sigma):.4g}; load the model in float32")
        move = -self.noising.gradient_scale(sigma) * gradient
        self.note(sigma, xa.detach(), cut.detach(), lengths(move) / lengths(x.detach()))
        return move

    def measure(self, observe: Callable[[Tensor], Observation], x: Tensor, reference: Observation) -> None:
        """Fixes the relative factor on L_cut at x, where a run began that this one goes on with."""
        x = x.detach().clone().requires_grad_(True)
        self.gradient(*self.losses(observe(x), reference, x), x)

    def losses(self, edited: Observation, reference: Observation, x: Tensor) -> tuple[Tensor, Tensor]:
        """L_xa and L_cut of x, each (B,). One whose weight is 0 is not computed and counts as 0."""
        w = self.weights
        xa = cut = x.new_zeros(len(x))
        if w.lambda_xa:
            xa = cross_attention_loss(pairs(edited.cross_attention, reference.cross_attention), self.free)
        if w.lambda_cut:
            maps = pairs(edited.self_attention, reference.self_attention)
            cut = patch_nce_loss(maps, w.patchnce, self.generator, self.free)
        return xa, cut

    def gradient(self, xa: Tensor, cut: Tensor, x: Tensor) -> Tensor:
        """Of lambda_xa L_xa + lambda_cut L_cut to x. With relative weights the first one fixes the factor on L_cut."""
        w = self.weights
        if not self.measured:
            (xa_gradient,) = torch.autograd.grad(xa.sum(), x, retain_graph=True)
            (cut_gradient,) = torch.autograd.grad(cut.sum(), x)
            ratio = lengths(xa_gradient) / lengths(cut_gradient).clamp_min(1e-12)
            self.cut_weight = factor = w.lambda_cut * w.lambda_xa * ratio
            self.measured = True
            return w.lambda_xa * xa_gradient + per_sample(factor, x) * cut_gradient
        (gradient,) = torch.autograd.grad((w.lambda_xa * xa + self.cut_weight * cut).sum(), x)
        return gradient

    def note(self, sigma: Tensor, xa: Tensor, cut: Tensor, move: Tensor) -> None:
        """The step's entry in `history`."""
        self.history.append(
            GuidedStep(
                sigma=float(sigma),
                xa=float(xa.mean()),
                cut=float(cut.mean()),
                weighted_xa=float((self.weights.lambda_xa * xa).mean()),
                weighted_cut=float((self.cut_weight * cut).mean()),
                move=float(move.mean()),
            )
        )


def lengths(batch: Tensor) -> Tensor:
    """Euclidean length of each sample (B,)."""
    length: Tensor = torch.linalg.vector_norm(batch.flatten(1), dim=1)
    return length
