"""PatchNCE: the patch-wise contrastive loss of CUT (Park et al. 2020), on features inside a diffusion model.

CDS (Nam et al. 2024) and pix2pix-zeroCon (Si et al. 2025) take the self-attention outputs of the U-Net as features, so that no
network is trained for the loss.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..maps.differences import coverage

Direction = Literal["cds", "cut"]

PAPER_TERMS = 18
"""Terms in CDS's sum on SD1.x, 9 layers x 2 patch sizes. We scale the mean over terms by it, so that a weight keeps its meaning
on models with another number of layers (ours)."""
AT_ONCE = 2**22
"""Values that go through the loss together: few operations for small maps, little memory for large ones (ours)."""
NO_NEGATIVE = -10.0
"""Similarity of what is no negative (CUT's constant): cosines are at least -1, so exp(-10 / tau) is nothing beside them."""


@dataclass(frozen=True)
class PatchNCE:
    """Settings of the loss; the defaults are those of CDS's published code."""

    temperature: float = 0.07
    patches: int = 256
    sizes: tuple[int, ...] = (1, 2)
    direction: Direction = "cds"


def patch_nce(anchor: Tensor, other: Tensor, temperature: float, held: Tensor | None = None) -> Tensor:
    """InfoNCE of each patch against its own place (positive) and all other places (negatives); CUT eq. 3.

    `anchor` and `other` are unit vectors (B, P, C). Patch p of `anchor` should be closer to patch p of `other` than to any other
    patch of `other`. Returns the mean over patches, (B,). `held` (B, P) leaves out the patches where it is False, on both sides;
    the loss of a sample without any other patch is 0.
    """
    similarity = anchor @ other.transpose(1, 2)
    positive = similarity.diagonal(dim1=1, dim2=2)
    own_place = torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    negatives = similarity.masked_fill(own_place, NO_NEGATIVE)
    if held is not None:
        negatives = negatives.masked_fill(~held.unsqueeze(1), -torch.inf)
    logits = torch.cat([positive.unsqueeze(-1), negatives], -1) / temperature
    losses = -logits.log_softmax(-1)[..., 0]
    return losses.mean(1) if held is None else (losses * held).sum(1) / held.sum(1).clamp_min(1)


def draw_patches(count: int, limit: int, generator: torch.Generator) -> Tensor:
    """Indices of at most `limit` of `count` places, without repetition. Drawn on the CPU: the same for every device."""
    return order_places(count, limit, generator)[:limit]


def draw_held_patches(held: Tensor, limit: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`draw_patches` among the places that are `held` (B, count), sample by sample.

    Returns indices (B, P) and whether they are held (B, P): samples with fewer held places than others are filled up.
    """
    order = order_places(held.shape[1], limit, generator).to(held.device)
    first = (~held[:, order]).to(torch.uint8).argsort(dim=1, stable=True)[:, :limit]
    places = order[first]
    return places, held.gather(1, places)


def order_places(count: int, limit: int, generator: torch.Generator) -> Tensor:
    """The order in which places are taken: at random if they are more than `limit`."""
    return torch.arange(count) if count <= limit else torch.randperm(count, generator=generator)


class Squares(NamedTuple):
    """What one layer shows inside the drawn squares of one size."""

    values: Tensor
    """Means of the edited and of the source map over each square, (2, B, C, P) in float32."""
    held: Tensor | None
    """Which of them count, (B, P); None: all."""


def draw_squares(
    edited: Tensor, source: Tensor, size: int, limit: int, generator: torch.Generator, free: Tensor | None
) -> Squares:
    """At most `limit` of the `size` x `size` squares of two maps (B, C, h, w), with the values of these alone."""
    height, width = edited.shape[-2:]
    held = None
    if free is None:
        places = draw_patches((height // size) * (width // size), limit, generator).unsqueeze(0)
    else:
        kept = F.avg_pool2d(coverage(free, (height, width)), size).flatten(1) < 0.5
        places, held = draw_held_patches(kept, limit, generator)
    positions = square_positions(places, size, width).to(edited.device)
    means = [read_positions(maps, positions).float().mean(-2) for maps in (edited, source)]
    return Squares(torch.stack(means), held)


def square_positions(places: Tensor, size: int, width: int) -> Tensor:
    """Positions (B, size^2, P) of what squares number `places` (B, P) of a map hold; all are counted row by row."""
    across = width // size
    corners = places // across * (size * width) + places % across * size
    steps = torch.arange(size, device=places.device)
    return corners.unsqueeze(1) + (steps.unsqueeze(1) * width + steps).view(-1, 1)


def read_positions(maps: Tensor, positions: Tensor) -> Tensor:
    """Values of maps (B, C, h, w) at positions (B or 1, n, P) of each sample: (B, C, n, P)."""
    flat = maps.flatten(2)
    places = positions.flatten(1).unsqueeze(1).expand(len(flat), flat.shape[1], -1)
    return flat.gather(2, places).view(*flat.shape[:2], *positions.shape[1:])


def unit_patches(values: Tensor) -> Tensor:
    """Vectors (..., C, P), each of length 1: (..., P, C)."""
    return F.normalize(values, dim=-2).transpose(-1, -2).contiguous()


def alike(drawn: Sequence[Squares]) -> Iterator[list[int]]:
    """Numbers of squares of one shape, as many together as AT_ONCE allows."""
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for number, squares in enumerate(drawn):
        groups[squares.values.shape].append(number)
    for shape, numbers in groups.items():
        most = max(1, AT_ONCE // shape.numel())
        yield from (numbers[start : start + most] for start in range(0, len(numbers), most))


def squares_nce(group: Sequence[Squares], settings: PatchNCE) -> Tensor:
    """PatchNCE of squares of one shape, in one go: (layers, B)."""
    edited, source = unit_patches(torch.cat([squares.values for squares in group], 1)).unbind()
    held = [squares.held for squares in group if squares.held is not None]
    anchor, other = (edited, source) if settings.direction == "cut" else (source, edited)
    losses = patch_nce(anchor, other, settings.temperature, torch.cat(held) if held else None)
    return losses.view(len(group), -1)


def patch_nce_loss(
    features: Sequence[tuple[Tensor, Tensor]], settings: PatchNCE, generator: torch.Generator, free: Tensor | None = None
) -> Tensor:
    """L_cut of CDS (eq. 9): PatchNCE over layers and patch sizes, one value a sample (B,).

    `features` are pairs of maps (B, C, h, w), of the edited and of the source image, one pair a layer; gradients flow into the
    edited maps alone. Positions are drawn anew for every layer and size, and shared by the batch. With direction "cds" the source
    patch is the anchor, with "cut" the edited patch is. `free` (B, H, W), a mask of any size, leaves out the patches that it
    covers by half or more (ours): contrast outside, freedom inside. Raises ValueError when there is nothing to compare.
    """
    drawn = [
        draw_squares(edited, source.detach(), size, settings.patches, generator, free)
        for edited, source in features
        for size in settings.sizes
        if min(edited.shape[-2:]) >= size
    ]
    if not drawn:
        raise ValueError(f"no feature map is at least {min(settings.sizes)} patches wide: nothing to contrast")
    losses: dict[int, Tensor] = {}
    for numbers in alike(drawn):
        losses |= zip(numbers, squares_nce([drawn[number] for number in numbers], settings), strict=True)
    return torch.stack([losses[number] for number in range(len(drawn))]).sum(0) * (PAPER_TERMS / len(drawn))
