"""How good edited images are, by the renderer's truth and the toy world's classifier."""

import torch
from torch import Tensor
from zerocon_pack.zerocon_core.toyworld.classifier import classify
from zerocon_pack.zerocon_core.toyworld.scene import bystander_mask, render

from .bench import Batch
from .edits import ATTRIBUTES


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def score(batch: Batch, images: Tensor) -> list[dict]:
    """One record an edit.

    Success: the classifier finds the new attribute; an identity succeeds when it finds all of the old ones. `background` and
    `bystander` are PSNR against the source over the pixels that the true edit leaves as they are, all of them and those of the
    bystander. The pose is kept when the centre moves by less than 5 % of the side and the radius by less than 15 %, as the
    classifier sees them before and after.
    """
    found, before = (classify(pictures, batch.bench.judge) for pictures in (images, batch.images))
    records = []
    for i, edit in enumerate(batch.edits):
        source, truth = batch.images[i], torch.from_numpy(render(edit.target))
        unchanged = (source == truth).all(-1)
        bystander = unchanged & torch.from_numpy(bystander_mask(edit.source) > 0.5)
        move = found.pose[i] - before.pose[i]
        right = {name: getattr(found, name)[i] == getattr(edit.target, name) for name in ATTRIBUTES}
        records.append(
            {
                "kind": edit.kind,
                "success": right.get(edit.kind, all(right.values())),
                "others kept": all(value for name, value in right.items() if name != edit.kind),
                "pose kept": bool(move[:2].norm() < 0.05 and move[2].abs() < 0.15 * before.pose[i, 2]),
                "background": psnr(images[i][unchanged], source[unchanged]),
                "bystander": psnr(images[i][bystander], source[bystander]),
                "truth": psnr(images[i], truth),
            }
        )
    return records
