"""All metrics of a batch of edits: what PIE-Bench and the papers compare, one image at a time; FID for the whole batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .clip import clip_accuracy, clip_score, directional_similarity, r_precision
from .frechet import frechet_distance
from .pixels import mse, outside, psnr, ssim
from .structure import structure_distance

if TYPE_CHECKING:
    from .networks import Clip, Dino, Inception, Lpips

Columns = dict[str, list[float | None]]
"""By the keys of `report.METRICS`, an entry an image; None where a metric is undefined."""

Tick = Callable[[], None]
"""Called before each image, to show progress or to stop by an exception."""


@dataclass(frozen=True)
class Edits:
    """Source and edited images (B, H, W, 3) in [0, 1]; masks (B, H, W), 1 where the edit is allowed; a text an image."""

    source: Tensor
    edited: Tensor
    mask: Tensor | None = None
    source_texts: list[str] | None = None
    target_texts: list[str] | None = None

    def missing(self) -> list[str]:
        """Why some metrics will be undefined, a sentence each."""
        masks = () if self.mask is None else self.mask
        return [f"background of image {i + 1}: its mask covers everything" for i, mask in enumerate(masks) if covers(mask)]


def covers(mask: Tensor) -> bool:
    """Whether no background is left, so that metrics of it are undefined. So it is for 144 of PIE-Bench's 700 masks."""
    return bool(mask.min() > 0.99)  # some hosts load the white of a grey picture as 254 of 255


def pairs(edits: Edits, tick: Tick) -> Iterator[tuple[Tensor, Tensor]]:
    for source, edited in zip(edits.source.split(1), edits.edited.split(1), strict=True):
        tick()
        yield source, edited


def preservation(edits: Edits, functions: dict[str, Callable[[Tensor, Tensor], Tensor]], tick: Tick) -> Columns:
    """Each function of source and edited image, on the whole image and, where there is a mask, outside of it."""
    columns: Columns = {name: [] for name in functions}
    if edits.mask is not None:
        columns |= {f"background_{name}": [] for name in functions}
    for i, (source, edited) in enumerate(pairs(edits, tick)):
        for name, function in functions.items():
            columns[name].append(float(function(source, edited)))
        if edits.mask is not None:
            mask = edits.mask[i : i + 1]
            background = outside(source, mask), outside(edited, mask)
            for name, function in functions.items():
                columns[f"background_{name}"].append(None if covers(mask) else float(function(*background)))
    return columns


def pixel_metrics(edits: Edits, tick: Tick) -> Columns:
    return preservation(edits, {"psnr": psnr, "ssim": ssim, "mse": mse}, tick)


def lpips_metrics(lpips: "Lpips", edits: Edits, tick: Tick) -> Columns:
    return preservation(edits, {"lpips": lpips}, tick)


def structure_metrics(dino: "Dino", edits: Edits, peak: float, tick: Tick) -> Columns:
    distances = [structure_distance(dino(source, peak), dino(edited, peak)) for source, edited in pairs(edits, tick)]
    return {"structure": torch.cat(distances).tolist()}


def clip_metrics(clip: "Clip", edits: Edits, tick: Tick) -> Columns:
    """Accuracy and direction need source texts too; R-precision is among the batch's own target texts.

    Raises ValueError without target texts.
    """
    if edits.target_texts is None:
        raise ValueError("CLIP compares images with texts; give a target text for each image")
    target_texts = clip.texts(edits.target_texts)
    source, edited = torch.stack([torch.cat([clip.images(image) for image in pair]) for pair in pairs(edits, tick)], 1)
    columns: Columns = {"clip_score": clip_score(edited, target_texts).tolist()}
    if edits.mask is not None:
        inside = outside(edits.edited, 1.0 - edits.mask).split(1)
        scores = clip_score(torch.cat([clip.images(image) for image in inside]), target_texts).tolist()
        columns["clip_score_edited"] = [s if m.any() else None for s, m in zip(scores, edits.mask, strict=True)]
    if edits.source_texts is not None:
        source_texts = clip.texts(edits.source_texts)
        columns["clip_accuracy"] = clip_accuracy(edited, source_texts, target_texts).tolist()
        columns["clip_direction"] = directional_similarity(source, edited, source_texts, target_texts).tolist()
    if len(set(edits.target_texts)) > 1:
        columns["clip_r_precision"] = r_precision(edited, target_texts).tolist()
    return columns


def fid(inception: "Inception", edits: Edits, tick: Tick) -> float:
    """Frechet Inception distance (Heusel et al. 2017) of all edited images to all source images; masks play no part.

    Only a relative figure for so few images: it compares edits of the same sources. Raises ValueError for a single one.
    """
    source, edited = torch.stack([torch.cat([inception(image).cpu() for image in pair]) for pair in pairs(edits, tick)], 1)
    return frechet_distance(source, edited)
