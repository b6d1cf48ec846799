"""Metrics of edits, their networks under the host's memory management."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor, nn

from ...zerocon_core.metrics.edits import (
    Edits,
    Tick,
    clip_metrics,
    fid,
    lpips_metrics,
    pixel_metrics,
    structure_metrics,
)
from ...zerocon_core.metrics.report import Report, Value
from ..files.downloads import Tell
from ..files.folders import OFF
from ..files.networks import inception_file, lpips_trunk, network_folder
from .memory import on_device

Network = TypeVar("Network", bound=nn.Module)
Figures = Mapping[str, list[Value] | float]
"""A list with an entry an image, or one figure for the whole batch."""


@dataclass(frozen=True)
class Networks:
    """A name from `files.networks` each, or OFF. `peak` is what white is for the structure network: 1, or PIE-Bench's 255."""

    structure: str
    lpips: str
    clip: str
    fid: str
    peak: float = 1.0


@dataclass(frozen=True)
class Look(Generic[Network]):
    """What is measured through one network: the part's key in a report, and what the report calls the network."""

    key: str
    called: str
    load: Callable[[], Network]
    figures: Callable[[Network, Edits, Tick], Figures]


def fit_mask(mask: Tensor, images: Tensor) -> Tensor:
    """Masks (M, h, w) at the images' size, resized as the host resizes masks; one mask serves the whole batch."""
    mask = mask.float()
    if mask.shape[1:] != images.shape[1:3]:
        mask = torch.nn.functional.interpolate(mask[:, None], size=images.shape[1:3], mode="bilinear")[:, 0]
    return mask.clamp(0, 1).expand(len(images), -1, -1)


def measure(edits: Edits, networks: Networks, tell: Tell) -> Report:
    """Every metric that these inputs and networks allow, one network in memory after the other."""
    chosen = list(looks(networks, tell))
    bar = comfy.utils.ProgressBar((1 + len(chosen)) * len(edits.source))

    def tick() -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    report = Report(pixel_metrics(edits, tick), left_out=edits.missing())
    for look in chosen:
        report.add(look.key, look.called, through(look, edits, tick))
    if networks.clip != OFF and edits.source_texts is None:
        report.left_out.append("CLIP accuracy and direction: source_text is empty")
    return report


def through(look: Look[Network], edits: Edits, tick: Tick) -> Figures:
    """The figures of a network that is on the host's device for such models, in its books, and gone afterwards."""
    network = look.load()
    with on_device(network):
        return look.figures(network, edits, tick)


def looks(networks: Networks, tell: Tell) -> Iterator[Look]:
    """Those that are switched on. What they import takes longer than the rest of the pack."""
    if (structure := networks.structure) != OFF:
        from ...zerocon_core.metrics.networks import load_dino

        yield Look(
            "structure", structure,
            lambda: load_dino(network_folder(structure, "vit", tell)),
            lambda dino, edits, tick: structure_metrics(dino, edits, networks.peak, tick),
        )  # fmt: skip
    if (lpips := networks.lpips) != OFF:
        from ...zerocon_core.metrics.networks import load_lpips

        yield Look("lpips", f"lpips package 0.1, {lpips}", lambda: load_lpips(lpips, lpips_trunk(lpips, tell)), lpips_metrics)
    if (clip := networks.clip) != OFF:
        from ...zerocon_core.metrics.networks import load_clip

        yield Look("clip", clip, lambda: load_clip(network_folder(clip, "clip", tell)), clip_metrics)
    if networks.fid != OFF:
        from ...zerocon_core.metrics.networks import load_inception

        yield Look(
            "fid", "torch-fidelity package, Inception of 2015-12-05",
            lambda: load_inception(inception_file(tell)),
            lambda inception, edits, tick: {"fid": fid(inception, edits, tick)},
        )  # fmt: skip
