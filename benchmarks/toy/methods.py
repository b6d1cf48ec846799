"""The methods: each a value that is called with a batch of edits and returns the edited latents. Its `repr` says all of it."""

from dataclasses import dataclass
from typing import Literal

import comfy.samplers
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from zerocon_pack.bridge.loops.cds import CDSSettings, edit, optimize
from zerocon_pack.bridge.loops.guidance import ZeroConGuider
from zerocon_pack.bridge.loops.hosted import Run, guider_of, run_hosted
from zerocon_pack.bridge.model.attention import hook_layers
from zerocon_pack.zerocon_core.methods.cds import CDSWeights, draw_timesteps
from zerocon_pack.zerocon_core.methods.guidance import GuidanceWeights
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE
from zerocon_pack.zerocon_core.toyworld.scene import object_mask

from .bench import EULER, Batch
from .edits import pictures
from .elsewhere import scorer_elsewhere

CFG = 5.0

Blocks = tuple[Literal["input", "middle", "output"], ...]


@dataclass(frozen=True)
class Autoencoder:
    """Nothing but encoding and decoding: the ceiling of preservation."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.latent


@dataclass(frozen=True)
class Transplant:
    """The source's latents with those of the true edit where the object is or will be, and one position around it.

    No model has a part in it: what changes outside is what the decoder makes of the inside.
    """

    def __call__(self, batch: Batch) -> Tensor:
        objects = [np.maximum(object_mask(edit.source), object_mask(edit.target)) for edit in batch.edits]
        side = batch.images.shape[1] // batch.latent.shape[-1]
        place = max_pool2d(torch.from_numpy(np.stack(objects))[:, None], side)
        place = max_pool2d((place > 0).float(), 3, stride=1, padding=1)
        truth = batch.bench.vae.encode(pictures([edit.target for edit in batch.edits]))
        return torch.lerp(batch.latent, truth, place)


@dataclass(frozen=True)
class SDEdit:
    """Noise to a share of the schedule, sample with the target caption (Meng et al. 2022): the host's own sampler."""

    strength: float

    def __call__(self, batch: Batch) -> Tensor:
        guider = comfy.samplers.CFGGuider(batch.bench.model)
        guider.set_conds(batch.target, batch.negative)
        guider.set_cfg(CFG)
        noise = torch.randn(batch.latent.shape, generator=torch.Generator().manual_seed(0))
        sigmas = batch.bench.sigmas[round((1 - self.strength) * batch.bench.steps) :]
        return guider.sample(noise, batch.latent, EULER, sigmas, disable_pbar=True, seed=0)


@dataclass(frozen=True)
class Guided:
    """Sampling from the inverted noise with the words swapped in the caption, held to the source by either loss.

    Plain (DDIM + word swap), pix2pix-zero (lambda_xa), pix2pix-zeroCon (lambda_cut) and DiffEdit (mask 0, no lambda) are all
    settings of PatchNCE Guidance. `reference` "sampled" is pix2pix-zero's published one; "inverted" takes the latents of the
    inversion, as Direct Inversion (Ju et al. 2024) does. `mask` puts the inverted source back outside the mask of Edit Mask,
    grown by so many positions.
    """

    lambda_xa: float = 0.0
    lambda_cut: float = 0.0
    cfg: float = CFG
    contrast: str = "cds"
    blocks: Blocks = ("output",)
    reference: Literal["inverted", "sampled"] = "inverted"
    lambda_noise: float = 0.0
    refinements: int = 0
    end: float = 1.0
    mask: Literal[None, 0, 1] = None
    strength: float = 1.0

    def __call__(self, batch: Batch) -> Tensor:
        bench = batch.bench
        noise, trajectory = batch.inverted(self.lambda_noise, self.refinements)
        if self.reference == "sampled":
            trajectory = batch.sampled(noise)
        weights = GuidanceWeights(self.lambda_xa, self.lambda_cut, patchnce=PatchNCE(direction=self.contrast))
        model = hook_layers(bench.model, bench.layers(self.blocks))
        mask = None if self.mask is None else batch.mask(self.mask)
        guider = ZeroConGuider(model, trajectory, weights, 0.0, self.end, 0, mask, mask is not None)
        guider.inner_set_conds({"positive": batch.target, "negative": batch.negative, "source": batch.source})
        guider.set_cfg(self.cfg)
        first = round((1 - self.strength) * bench.steps)
        if first:
            noise = bench.model.model.process_latent_out(trajectory.latents[first])
        return batch.sample(guider, noise, bench.sigmas[first:])


@dataclass(frozen=True)
class Score:
    """DDS (w_cut 0) and CDS.

    `mask` is that of Edit Mask, grown by so many positions. `place` is where the contrastive loss reads: self-attention is CDS's.
    """

    w_cut: float = 0.0
    step_size: float = 0.15
    order: str = "descending"
    contrast: str = "cds"
    sizes: tuple[int, ...] = (1, 2)
    patches: int = 256
    blocks: Blocks = ("output",)
    place: Literal["self-attention", "cross-attention", "output"] = "self-attention"
    mask: Literal[None, 0, 1] = None

    def __call__(self, batch: Batch) -> Tensor:
        bench = batch.bench
        patchnce = PatchNCE(sizes=self.sizes, patches=self.patches, direction=self.contrast)
        weights = CDSWeights(w_cut=self.w_cut, patchnce=patchnce)
        timesteps = draw_timesteps(bench.iterations, 50, 948, self.order, torch.Generator().manual_seed(0))
        settings = CDSSettings(timesteps, bench.layers(self.blocks), weights, cfg=7.5, step_size=self.step_size)
        mask = None if self.mask is None else batch.mask(self.mask).unsqueeze(1)
        if self.place != "self-attention":
            return self.elsewhere(batch, settings)
        [latent], _ = optimize(bench.model, batch.latent, batch.source, [batch.target], batch.negative, settings, mask)
        return latent

    def elsewhere(self, batch: Batch, settings: CDSSettings) -> Tensor:
        model = batch.bench.model
        conditions = {"source": batch.source, "target": batch.target, "negative": batch.negative}

        def loop(run: Run) -> Tensor:
            [latent], _ = edit(run, ["target"], settings, lambda name: scorer_elsewhere(run, name, self.place, settings))
            return model.model.process_latent_out(latent)

        sigmas = model.get_model_object("model_sampling").sigma(settings.timesteps)
        guider, quiet = guider_of(model, settings.cfg, **conditions), lambda *seen: None
        return run_hosted(guider, loop, batch.latent, sigmas, backward=True, callback=quiet)
