"""Delta Denoising Score (Hertz et al. 2023, DDS) and Contrastive Denoising Score (Nam et al. 2024, CDS).

Both edit the clean latent itself, without inversion: noise the source and the edit alike, ask the model about each under its own
prompt, and move the edit along the difference of the two scores. CDS holds the self-attention features of the edit to those of
the source with the PatchNCE loss while it does so; they come from the same pass as the score.
"""

import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..noising import Noising
from ..observation import pairs
from .patchnce import PatchNCE, patch_nce_loss

Order = Literal["random", "descending"]
Recording = Callable[[], AbstractContextManager[object]]


class Score(NamedTuple):
    """What the model says about a noised latent under one prompt."""

    eps: Tensor
    """Noise prediction under CFG (B, C, H, W), without gradients."""
    features: Mapping[Hashable, Tensor]
    """Self-attention outputs of the conditional branch by layer, each (B, C, h, w), with gradients if the latent has them."""


Scorer = Callable[[Tensor, Tensor], Score]
"""(x, sigma) -> Score. x is (B, C, H, W), sigma a scalar tensor."""


@dataclass(frozen=True)
class CDSWeights:
    """Weights of the two terms, those of CDS's published code. w_cut = 0 is DDS."""

    w_dds: float = 1.0
    w_cut: float = 3.0
    patchnce: PatchNCE = PatchNCE()


class Gradient(NamedTuple):
    """The direction of one iteration (B, C, H, W) and the loss that it descends, mean over the batch.

    The loss is in the units of the published code: w_dds * 2000 / (H W) * |g|^2 + w_cut * L_cut, g the difference of the scores.
    """

    direction: Tensor
    loss: float


def authors_step_size(height: int, width: int) -> float:
    """The step of DDS's and CDS's published code, which shrinks as the H x W latent grows."""
    return 200 / (height * width)


PAPER_STEP_SIZE = authors_step_size(64, 64)
"""The step at the papers' own size, which we take at every size: learning rate 0.1 on 2000 / (H W) * sum(z * g)."""


TIMESTEPS = 1000
"""Of the papers' schedule; what is drawn is one of 0 to 999."""


def timestep_range(least: float, most: float) -> tuple[int, int]:
    """The first and the last timestep between two shares of the schedule. Raises ValueError if there is none between them."""
    if least > most:
        raise ValueError(f"the range of timesteps is empty, {least:g} to {most:g} of the schedule; put the smaller first")
    low, high = (min(round(share * TIMESTEPS), TIMESTEPS - 1) for share in (least, most))
    return low, high


def draw_timesteps(steps: int, low: int, high: int, order: Order, generator: torch.Generator) -> Tensor:
    """One timestep an iteration from low to high inclusive: uniformly at random (DDS), or evenly spaced downwards (ours)."""
    if low > high:
        raise ValueError(f"the range of timesteps is empty: {low} to {high}")
    if order == "descending":
        return torch.linspace(high, low, steps).round().long()
    return torch.randint(low, high + 1, (steps,), generator=generator)


def cds_gradient(
    noising: Noising,
    z: Tensor,
    noise: Tensor,
    sigma: Tensor,
    source: Score,
    target: Scorer,
    weights: CDSWeights,
    generator: torch.Generator,
    recording: Recording = torch.enable_grad,
) -> Gradient:
    """The direction of CDS at the edited latent z (B, C, ...), of which an iteration takes `step_size`.

        w_dds * (eps(a z + sigma noise, target) - eps(a z_src + sigma noise, source)) + w_cut * H W / 2000 * grad_z L_cut

    CDS with the terms as its published code weighs them: the factor H W / 2000 makes `step_size` = 200 / (H W) its SGD step on
    both. `source` is the answer about the noised source, `target` is asked here: once, without gradients
    if w_cut is 0. Raises ValueError for a score or a gradient that is not finite.
    """
    if weights.w_cut:
        with recording():
            z = z.detach().clone().requires_grad_(True)
            edited = target(noising.noised(z, noise, sigma), sigma)
            losses = patch_nce_loss(pairs(edited.features, source.features), weights.patchnce, generator)
            (cut_gradient,) = torch.autograd.grad(losses.sum(), z)
        losses = losses.detach()
    else:
        edited = target(noising.noised(z, noise, sigma), sigma)
        losses = cut_gradient = torch.zeros(())
    for name, value in (("source's score", source.eps), ("target's score", edited.eps), ("contrastive gradient", cut_gradient)):
        if not torch.isfinite(value).all():
            raise ValueError(f"the {name} is not finite at sigma {float(sigma):.4g}")
    delta, scale = edited.eps - source.eps, z[0, 0].numel() / 2000
    direction = weights.w_dds * delta
    if weights.w_cut:
        direction = direction + weights.w_cut * scale * cut_gradient
    loss = weights.w_dds * delta.square().sum() / (scale * len(z)) + weights.w_cut * losses.mean()
    return Gradient(direction, float(loss))


State = TypeVar("State")


@dataclass(frozen=True)
class Seen(Generic[State]):
    """How what is edited looks, a latent (B, C, ...) without gradients, and what becomes of it."""

    latent: Tensor
    descend: Callable[[Tensor], State]
    """A direction (B, C, ...) -> the state that the latent's move against it leads to."""


@dataclass(frozen=True)
class Descent(Generic[State]):
    """The iterations of CDS, one a noise level of `sigmas`, whatever it is that they edit."""

    noising: Noising
    source: Scorer
    sigmas: Tensor
    weights: CDSWeights
    seed: int
    recording: Recording
    refine: Callable[[Tensor, Tensor], Tensor] | None = None

    def run(
        self,
        state: State,
        original: Callable[[int], Tensor],
        see: Callable[[State, int], Seen[State]],
        targets: Sequence[Scorer],
        callback: Callable[[int, list[State], list[Gradient]], None] | None,
    ) -> list[State]:
        """What becomes of `state` for each target.

        `original` says what the source looks like at an iteration, `see` how a state does. Noise is drawn once an iteration, the
        same for all targets and samples.
        """
        draws = torch.Generator().manual_seed(self.seed)
        patches = [torch.Generator().manual_seed(self.seed) for _ in targets]
        states = [state for _ in targets]
        for iteration, sigma in enumerate(self.sigmas):
            z_src = original(iteration)
            noise = torch.randn(z_src.shape[1:], generator=draws).to(z_src).expand_as(z_src)
            if self.refine is not None:
                noise = self.refine(noise, sigma)
            with self.recording() if self.weights.w_cut else contextlib.nullcontext():
                reference = self.source(self.noising.noised(z_src, noise, sigma), sigma)
            gradients = []
            for i, target in enumerate(targets):
                seen = see(states[i], iteration)
                try:
                    gradient = cds_gradient(
                        self.noising, seen.latent, noise, sigma, reference, target, self.weights, patches[i], self.recording
                    )
                except ValueError as error:
                    raise ValueError(f"iteration {iteration + 1}: {error}") from error
                states[i] = seen.descend(gradient.direction)
                gradients.append(gradient)
            if callback is not None:
                callback(iteration, states, gradients)
        return states


@torch.no_grad()
def cds_optimize(
    noising: Noising,
    z_src: Tensor,
    source: Scorer,
    targets: Sequence[Scorer],
    sigmas: Tensor,
    *,
    step_size: float = PAPER_STEP_SIZE,
    weights: CDSWeights = CDSWeights(),
    mask: Tensor | None = None,
    refine: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    recording: Recording = torch.enable_grad,
    callback: Callable[[int, list[Tensor], list[Gradient]], None] | None = None,
) -> list[Tensor]:
    """Edit the clean latent z_src (B, C, ...) towards each of `targets`; one result a target.

    One iteration a noise level of `sigmas`: z <- z - step_size * mask * direction. All targets share the noise and what the
    source shows, so each result is what a run of its target alone would give. The noise is also shared by the batch, so each
    sample is what a run of it alone would give. `mask` (B or 1, 1, H, W) is 1 where the edit may act. `refine(noise, sigma)`
    replaces the noise of an iteration. `recording` opens where gradients are taken. `callback(iteration, zs, gradients)` runs
    after each iteration. Raises ValueError, with the number of the iteration, for an update that is not finite.
    """

    def see(z: Tensor, iteration: int) -> Seen[Tensor]:
        def descend(direction: Tensor) -> Tensor:
            move = step_size * direction
            return z - (move if mask is None else mask * move)

        return Seen(z, descend)

    descent = Descent[Tensor](noising, source, sigmas, weights, seed, recording, refine)
    return descent.run(z_src.clone(), lambda iteration: z_src, see, targets, callback)


Parameters = Mapping[str, Tensor]
Render = Callable[[Parameters, int], Tensor]
"""(parameters, view) -> the latent (B, C, ...) of what they describe, seen from that view; differentiable in the parameters."""


def _seen_in_pictures(
    render: Render,
    state: Parameters,
    views: Sequence[int],
    update: Callable[[Parameters, Parameters], Parameters],
    rendering: Recording,
) -> Seen[Parameters]:
    with rendering():
        leaves = {name: value.detach().clone().requires_grad_(True) for name, value in state.items()}
        latents = torch.cat([render(leaves, view) for view in views])

    def descend(direction: Tensor) -> Parameters:
        with rendering():
            gradients = torch.autograd.grad(latents, list(leaves.values()), direction)
        return update(state, dict(zip(leaves, gradients, strict=True)))

    return Seen(latents.detach(), descend)


@torch.no_grad()
def cds_optimize_rendered(
    noising: Noising,
    render: Render,
    parameters: Parameters,
    views: Sequence[Sequence[int]],
    source: Scorer,
    target: Scorer,
    sigmas: Tensor,
    update: Callable[[Parameters, Parameters], Parameters],
    *,
    weights: CDSWeights = CDSWeights(),
    seed: int = 0,
    recording: Recording = torch.enable_grad,
    rendering: Recording = torch.enable_grad,
    callback: Callable[[int, list[Parameters], list[Gradient]], None] | None = None,
) -> Parameters:
    """Edit what is seen only in pictures: parameters p whose latents are z_v = render(p, v).

    CDS applies its loss to rendered, encoded views of a radiance field so (Nam et al. 2024, fig. 9; no code of it is published):

        p <- update(p, sum over the views v of an iteration of (dz_v / dp)^T direction_v)

    `views` names those of each iteration, which share its noise level, of `sigmas`, and its noise. With one view, `render` the
    parameters themselves and SGD as `update`, it is `cds_optimize` bit for bit. `recording` opens where gradients through the
    model are taken, `rendering` where those through `render` are. Raises ValueError and calls `callback` as `cds_optimize` does,
    with lists of one.
    """
    pictures = {view: render(parameters, view) for view in dict.fromkeys(chain(*views))}
    [edited] = Descent[Parameters](noising, source, sigmas, weights, seed, recording).run(
        parameters,
        lambda iteration: torch.cat([pictures[view] for view in views[iteration]]),
        lambda state, iteration: _seen_in_pictures(render, state, views[iteration], update, rendering),
        [target],
        callback,
    )
    return edited
