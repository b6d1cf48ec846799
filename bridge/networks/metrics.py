"""Metrics of edits, their networks under the host's memory management."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...zerocon_core.metrics.edits import Edits, clip_metrics, fid, lpips_metrics, pixel_metrics, structure_metrics
from ...zerocon_core.metrics.report import Report
from ..files import networks as files
from ..files.networks import OFF, Tell

Figures = TypeVar("Figures")


@dataclass(frozen=True)
class Networks:
    """A name from `files` each, or OFF. `peak` is what white is for the structure network: 1, or PIE-Bench's 255."""

    structure: str
    lpips: str
    clip: str
    fid: str
    peak: float = 1.0


def fit_mask(mask: Tensor, images: Tensor) -> Tensor:
    """Masks (M, h, w) at the images' size, resized as the host resizes masks; one mask serves the whole batch."""
    mask = mask.float()
    if mask.shape[1:] != images.shape[1:3]:
        mask = torch.nn.functional.interpolate(mask[:, None], size=images.shape[1:3], mode="bilinear")[:, 0]
    return mask.clamp(0, 1).expand(len(images), -1, -1)


def measure(edits: Edits, networks: Networks, tell: Tell) -> Report:
    """Every metric that these inputs and networks allow, one network in memory after the other."""
    chosen = [name for name in (networks.structure, networks.lpips, networks.clip, networks.fid) if name != OFF]
    bar = comfy.utils.ProgressBar((1 + len(chosen)) * len(edits.source))

    def tick() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    report = Report(pixel_metrics(edits, tick), left_out=edits.missing())
    if not chosen:
        return report
    # Its import of transformers takes longer than the rest of the pack.
    from ...zerocon_core.metrics.networks import load_clip, load_dino, load_inception, load_lpips

    if (name := networks.structure) != OFF:
        load = partial(load_dino, files.network_folder(name, "vit", tell))
        report.add("structure", name, through(load, structure_metrics, edits, networks.peak, tick))
    if (name := networks.lpips) != OFF:
        load = partial(load_lpips, name, files.lpips_trunk(name, tell))
        report.add("lpips", f"lpips package 0.1, {name}", through(load, lpips_metrics, edits, tick))
    if (name := networks.clip) != OFF:
        load = partial(load_clip, files.network_folder(name, "clip", tell))
        report.add("clip", name, through(load, clip_metrics, edits, tick))
        if edits.source_texts is None:
            report.left_out.append("CLIP accuracy and direction: source_text is empty")
    if networks.fid != OFF:
        load = partial(load_inception, files.inception_file(tell))
        report.networks["fid"] = "torch-fidelity package, Inception of 2015-12-05"
        report.batch["fid"] = through(load, fid, edits, tick)
    return report


def through(load: Callable[[], nn.Module], metrics: Callable[..., Figures], *arguments) -> Figures:
    """`metrics` of a network that is on the host's device for such models, in its books, and gone afterwards."""
    network = load()
    patcher = ModelPatcher(
        network,
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
    comfy.model_management.load_models_gpu([patcher])
    return metrics(network, *arguments)
