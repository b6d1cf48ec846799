"""Contrastive fine-tuning with augmented prompts (Bodur et al. 2024, sections 3.2 to 3.4).

A diffusion model is trained on images with captions. Each caption is turned into K target prompts that differ from it in one
word. Where the K predictions differ, the image is to be edited: there they are pushed apart, and everywhere else they are drawn
together and to the image. Only low-rank adapters are trained (ours; the paper trains the model).

The paper's text does not give the norm in its equations 3 to 7, what the latent images are, nor how the loss is kept from falling
without end. Here the norm is the mean square, a latent image is the clean latent that one pass predicts, and the distance that
pushes apart is bounded (all three ours).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..language.directions import Embedding
from ..language.prompts import WordList, at_quantiles, gather, likely_gaps, sentence_embedding, text_distances
from ..maps.differences import difference_map, edit_mask, heat_map
from ..noising import Noising, per_sample

Predictor = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
"""(x, sigma, prompts) -> denoised latents. x is (N, C, H, W), sigma (N,), one prompt a sample."""


class LowRank(nn.Module):
    """The trained part of a linear layer: x -> up(down(x)) * alpha / rank (Hu et al. 2021), to be added to the layer's output."""

    def __init__(self, down: Tensor, up: Tensor, alpha: float):
        """`down` is (rank, inputs), `up` (outputs, rank); both are copied in float32."""
        super().__init__()
        self.down = nn.Parameter(down.detach().float().clone())
        self.up = nn.Parameter(up.detach().float().clone())
        self.alpha = alpha

    @classmethod
    def neutral(cls, inputs: int, outputs: int, rank: int, generator: torch.Generator) -> "LowRank":
        """One that changes nothing yet: `up` is 0. alpha = rank, so that the rank does not change the scale."""
        bound = inputs**-0.5
        down = torch.rand(rank, inputs, generator=generator) * (2 * bound) - bound
        return cls(down, torch.zeros(outputs, rank), float(rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down.to(x)), self.up.to(x)) * (self.alpha / len(self.down))


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """i and j of the K (K - 1) / 2 pairs i < j."""
    i, j = torch.triu_indices(count, count, 1)
    return i, j


def cosine_distances(embeddings: Tensor) -> Tensor:
    """1 - cos of every pair, (..., pairs) from prompt embeddings (..., K, d): the s_ij of equation 7."""
    unit = F.normalize(embeddings, dim=-1)
    i, j = pairs(embeddings.shape[-2])
    return 1 - (unit[..., i, :] * unit[..., j, :]).sum(-1)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """d of the equations: the mean square of a - b over channels and pixels, (...) from (..., C, H, W)."""
    return (a - b).square().mean((-3, -2, -1))


def dissimilarity_loss(predicted: Tensor, mask: Tensor, softness: Tensor, margin: float) -> Tensor:
    """L_diss, equation 3 (CL: softness 1) and 7 (Soft-CL: 1 - cos): -mean_{i<j} s_ij d(M z_i, M z_j), (B,).

    `predicted` is (B, K, C, H, W), `mask` (B, 1, H, W), `softness` (B, pairs). A pair that differs inside the mask by `margin` on
    average is far enough apart: beyond that the loss is flat (ours, a hinge).
    """
    i, j = pairs(predicted.shape[1])
    edited = mask.unsqueeze(1) * predicted
    enough = margin * mask.mean((-3, -2, -1)).unsqueeze(1)
    return -(softness * squared_distance(edited[:, i], edited[:, j]).minimum(enough)).mean(1)


def preservation_loss(predicted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """L_pres, equation 4: mean_{i<j} d(W z_i, W z_j) + mean_i d(W z_i, W z_0) with W = 1 - M, (B,).

    `predicted` is (B, K, C, H, W), `image` z_0 (B, C, H, W), `mask` (B, 1, H, W).
    """
    i, j = pairs(predicted.shape[1])
    kept = (1 - mask).unsqueeze(1) * predicted
    source = ((1 - mask) * image).unsqueeze(1)
    return squared_distance(kept[:, i], kept[:, j]).mean(1) + squared_distance(kept, source).mean(1)


class Example(NamedTuple):
    """One image with its caption and the target prompts of this step."""

    image: Tensor
    """Clean latent (1, C, H, W)."""
    caption: str
    targets: Sequence[str] = ()
    softness: Tensor = torch.empty(0)
    """(pairs,) of the targets."""

    @property
    def prompts(self) -> list[str]:
        return [self.caption, *self.targets]


@dataclass(frozen=True)
class Objective:
    """Equation 6: L = L_LDM + weight (L_diss + L_pres)."""

    weight: float = 1.0
    threshold: float = 0.2
    margin: float = 1.0


class Losses(NamedTuple):
    """Means over the batch, scalar tensors."""

    total: Tensor
    ldm: Tensor
    dissimilarity: Tensor
    preservation: Tensor


class LossValues(NamedTuple):
    """Means over the passes of a step."""

    total: float
    ldm: float
    dissimilarity: float
    preservation: float


def losses(
    noising: Noising, predict: Predictor, batch: Sequence[Example], noise: Tensor, sigma: Tensor, objective: Objective
) -> Losses:
    """Equation 6 for images under `noise` (B, C, H, W) at noise levels `sigma` (B,). Without target prompts that is L_LDM.

    L_LDM is the mean square error of the predicted noise, in a flow that of the velocity, as flow models are trained (ours).
    Captions and target prompts go through the model in one pass, because the contrastive terms compare all of them. Raises
    FloatingPointError for a prediction that is not finite.
    """
    image = torch.cat([example.image for example in batch]).to(noise)
    x = noising.noised(image, noise, per_sample(sigma, noise))
    prompts = [prompt for example in batch for prompt in example.prompts]
    each = len(prompts) // len(batch)
    denoised = predict(x.repeat_interleave(each, 0), sigma.repeat_interleave(each), prompts).unflatten(0, (-1, each))
    if not torch.isfinite(denoised).all():
        raise FloatingPointError("the model's prediction is not finite")
    slopes = noising.slope(x.unsqueeze(1), per_sample(sigma, denoised), denoised)
    ldm = F.mse_loss(slopes[:, 0], noising.velocity(image, noise))
    if each == 1:
        return Losses(ldm, ldm, ldm.new_zeros(()), ldm.new_zeros(()))
    targets = denoised[:, 1:]
    difference = difference_map(slopes[:, 1:].detach().transpose(0, 1))
    mask = edit_mask(heat_map(difference, clamp=0), objective.threshold).unsqueeze(1)
    softness = torch.stack([example.softness for example in batch]).to(noise)
    apart = dissimilarity_loss(targets, mask, softness, objective.margin).mean()
    kept = preservation_loss(targets, image, mask).mean()
    return Losses(ldm + objective.weight * (apart + kept), ldm, apart, kept)


@dataclass(frozen=True)
class Targets:
    """Target prompts an image at a time, whether their distance weighs the loss (Soft-CL) and spreads the choice (Soft-PA)."""

    count: int = 4
    soft_loss: bool = True
    soft_choice: bool = True


def word_variations(caption: str, groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """For each noun or adjective of `caption` that is in a group: the captions with another word of the group in its place."""
    lists = [WordList(group) for group in groups]
    variations = []
    for gap in likely_gaps(caption):
        words = gather(gap, [group for group in lists if group.knows(gap.word)], limit=max(map(len, groups)))
        if words:
            variations.append([gap.filled(word) for word in words])
    return variations


def draw_images(shapes: Sequence[torch.Size], count: int, generator: torch.Generator) -> list[int]:
    """Numbers of `count` different images of one size, or of all of that size where there are fewer."""
    first = int(torch.randint(len(shapes), (1,), generator=generator))
    alike = [number for number, shape in enumerate(shapes) if shape == shapes[first]]
    return [alike[place] for place in torch.randperm(len(alike), generator=generator)[:count]]


def draw_targets(
    caption: str,
    variations: Sequence[Sequence[str]],
    choice: Targets,
    encode: Callable[[str], Embedding],
    generator: torch.Generator,
) -> tuple[list[str], Tensor]:
    """Target prompts that all replace one word of `caption`, and their softness (pairs,).

    `variations` holds the prompts of each word; the word is drawn among those with enough of them. Distances are measured with
    `encode`.
    """
    count = choice.count
    enough = [prompts for prompts in variations if len(prompts) >= count]
    prompts = enough[int(torch.randint(len(enough), (1,), generator=generator))]
    if choice.soft_choice:
        distances = text_distances(encode, caption, prompts).tolist()
        targets = [prompts[place] for place in at_quantiles(distances, count)]
    else:
        targets = [prompts[place] for place in torch.randperm(len(prompts), generator=generator)[:count]]
    if choice.soft_loss:
        return targets, cosine_distances(torch.stack([sentence_embedding(*encode(prompt)) for prompt in targets]))
    return targets, torch.ones(count * (count - 1) // 2)


def draw_batches(
    images: Sequence[Tensor],
    captions: Sequence[str],
    variations: Sequence[Sequence[Sequence[str]]] | None,
    passes: int,
    size: int,
    choice: Targets,
    encode: Callable[[str], Embedding],
    seed: int,
) -> Iterator[list[Example]]:
    """The examples of one pass after the other. Without `variations` there are no target prompts: plain training.

    Images and prompts have generators of their own, so methods that differ in the prompts see the same images.
    """
    which, words = (torch.Generator().manual_seed(seed) for _ in range(2))
    shapes = [image.shape for image in images]

    def example(number: int) -> Example:
        if variations is None:
            return Example(images[number], captions[number])
        targets = draw_targets(captions[number], variations[number], choice, encode, words)
        return Example(images[number], captions[number], *targets)

    for _ in range(passes):
        yield [example(number) for number in draw_images(shapes, size, which)]


def training_steps(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], Losses],
    steps: int,
    learning_rate: float,
    accumulation: int = 1,
    half_precision: bool = False,
) -> Iterator[LossValues]:
    """AdamW on `parameters` and nothing else; yields the losses of each step after the step was taken.

    `half_precision` scales the loss so that the gradients of a float16 model do not vanish. Raises FloatingPointError before a
    step whose loss or gradient is not finite: the parameters are then those of the step before.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    scaler = GradScaler(parameters[0].device.type, enabled=half_precision)
    for _ in range(steps):
        optimizer.zero_grad()
        parts = []
        for _ in range(accumulation):
            part = loss()
            parts.append(torch.stack(part).detach().tolist())
            if not all(map(math.isfinite, parts[-1])):
                raise FloatingPointError(f"the loss is {parts[-1][0]}")
            scaler.scale(part.total / accumulation).backward(inputs=parameters)
        scaler.unscale_(optimizer)
        if not half_precision and not all(p.grad.isfinite().all() for p in parameters if p.grad is not None):
            raise FloatingPointError("the gradient is not finite")
        scaler.step(optimizer)
        scaler.update()
        yield LossValues(*(sum(values) / accumulation for values in zip(*parts, strict=True)))


def exploded(history: Sequence[LossValues]) -> bool:
    """Whether L_LDM ended far above where it began, and above what predicting no noise at all costs, which is 1 (ours).

    The beginning and the end are a tenth of the steps each: single losses depend on the noise level that was drawn.
    """
    tenth = -(-len(history) // 10)
    first, last = (sum(step.ldm for step in part) / tenth for part in (history[:tenth], history[-tenth:]))
    return last > max(1.0, 2 * first)
