"""PatchNCE: the patch-wise contrastive loss of CUT (Park et al. 2020), on features inside a diffusion model.

CDS (Nam et al. 2024) and pix2pix-zeroCon (Si et al. 2025) take the self-attention outputs of the U-Net as features, so that no
network is trained for the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..maps.differences import coverage

Direction = Literal["cds", "cut"]

PAPER_TERMS = 18
"""Terms in CDS's sum on SD1.x, 9 layers x 2 patch sizes. We scale the mean over terms by it, so that a weight keeps its meaning
on models with another number of layers (ours)."""


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
    negatives = similarity.masked_fill(own_place, -10.0)
    if held is not None:
        negatives = negatives.masked_fill(~held.unsqueeze(1), -torch.inf)
    logits = torch.cat([positive.unsqueeze(-1), negatives], -1) / temperature
    losses = -logits.log_softmax(-1)[..., 0]
    return losses.mean(1) if held is None else (losses * held).sum(1) / held.sum(1).clamp_min(1)


def draw_patches(count: int, limit: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Indices of at most `limit` of `count` places, without repetition. Drawn on the CPU: the same on every device."""
    return order_places(count, limit, generator)[:limit].to(device)


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


def patch_nce_loss(
    features: Sequence[tuple[Tensor, Tensor]], settings: PatchNCE, generator: torch.Generator, free: Tensor | None = None
) -> Tensor:
    """L_cut of CDS (eq. 9): PatchNCE over layers and patch sizes, one value a sample (B,).

    `features` are pairs of maps (B, C, h, w), of the edited and of the source image, one pair a layer; gradients flow into the
    edited maps alone. Positions are drawn anew for every layer and size, and shared by the batch. With direction "cds" the source
    patch is the anchor, with "cut" the edited patch is. `free` (B, H, W), a mask of any size, leaves out the patches that it
    covers by half or more (ours): contrast outside, freedom inside. Raises ValueError when there is nothing to compare.
    """
    terms = []
    for edited, source in features:
        source = source.detach()
        for size in settings.sizes:
            if min(edited.shape[-2:]) < size:
                continue
            edited_patches, source_patches = (
                F.normalize(rearrange(F.avg_pool2d(maps.float(), size), "b c h w -> b (h w) c"), dim=-1)
                for maps in (edited, source)
            )
            held = None
            if free is None:
                places = draw_patches(edited_patches.shape[1], settings.patches, generator, edited.device)
            else:
                covered = F.avg_pool2d(coverage(free, edited.shape[-2:]), size)
                places, held = draw_held_patches(covered.flatten(1) < 0.5, settings.patches, generator)
            samples = torch.arange(len(edited), device=edited.device).unsqueeze(1)
            pair = edited_patches[samples, places], source_patches[samples, places]
            anchor, other = pair if settings.direction == "cut" else pair[::-1]
            terms.append(patch_nce(anchor, other, settings.temperature, held))
    if not terms:
        raise ValueError(f"no feature map is at least {min(settings.sizes)} patches wide: nothing to contrast")
    return torch.stack(terms).sum(0) * (PAPER_TERMS / len(terms))
