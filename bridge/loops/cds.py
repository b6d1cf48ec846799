"""The core's CDS, hosted: our passes inside the host's own CFG."""

from dataclasses import dataclass
from functools import partial

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from latent_preview import prepare_callback
from torch import Tensor

from ...zerocon_core.methods.cds import CDSWeights, Gradient, Score, Scorer, cds_optimize, refine_noise
from ...zerocon_core.noising import Denoiser
from ..model.attention import Capture, capture_options
from ..model.facts import HookedLayers
from .hosted import Run, guider_of, run_hosted


def scorer(run: Run, name: str, layers: HookedLayers) -> Scorer:
    """The model under the condition `name`, with the host's CFG around our passes.

    A latent without gradients runs both branches of CFG in one batch. One with them runs the conditional branch apart: the score
    of CFG is a value, and the features alone carry gradients.
    """
    model, cond, negative = run.model, Capture.numbered(run.conds[name]), run.conds["negative"]

    def score(x: Tensor, sigma: Tensor) -> Score:
        capture = Capture()
        options = capture_options(run.options, layers, capture, differentiable=x.requires_grad)
        levels = sigma * x.new_ones(len(x))

        def passes(args: dict) -> list[Tensor]:
            value, (_, uncond) = args["input"], args["conds"]
            if not x.requires_grad:
                return comfy.samplers.calc_cond_batch(model, [cond, uncond], value, levels, options)
            with torch.enable_grad():
                [conditional] = comfy.samplers.calc_cond_batch(model, [cond], x, levels, options)
            return [conditional.detach(), *comfy.samplers.calc_cond_batch(model, [uncond], value, levels, run.options)]

        with torch.no_grad():
            value = x.detach()
            denoised = comfy.samplers.sampling_function(
                model, value, levels, negative, cond, run.guider.cfg, run.options | {"sampler_calc_cond_batch_function": passes}
            )
        return Score(run.noising.eps(value, sigma, denoised.float()), capture.observation().self_attention)

    return score


def denoiser(run: Run, name: str) -> Denoiser:
    """The model under the condition `name` with CFG, differentiable."""
    options = capture_options(run.options, HookedLayers(), Capture(), differentiable=True)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        levels, conds = sigma * x.new_ones(len(x)), (run.conds["negative"], run.conds[name])
        return comfy.samplers.sampling_function(run.model, x, levels, *conds, run.guider.cfg, options)

    return denoise


@dataclass(frozen=True)
class CDSSettings:
    """How to edit. One iteration a timestep."""

    timesteps: Tensor
    layers: HookedLayers
    """Whose self-attention is compared. Not read with a w_cut of 0."""
    weights: CDSWeights
    cfg: float
    step_size: float
    ids_steps: int = 0
    checkpointing: bool = False
    seed: int = 0

    @property
    def compared(self) -> HookedLayers:
        return HookedLayers(self.layers.self_attention if self.weights.w_cut else frozenset(), max_side=self.layers.max_side)


def edit(run: Run, targets: list[str], settings: CDSSettings) -> tuple[list[Tensor], list[list[float]]]:
    """For each condition named in `targets`, the edited latent (B, C, H, W) and the loss of each iteration."""
    recording, losses = run.recording(settings.checkpointing), [[] for _ in targets]

    def report(iteration: int, zs: list[Tensor], gradients: list[Gradient]) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        for values, gradient in zip(losses, gradients, strict=True):
            values.append(gradient.loss)
        edited = torch.cat(zs)
        run.callback(iteration, edited, edited, len(run.sigmas))

    refine = partial(
        refine_noise, run.noising, run.latent,
        denoise=denoiser(run, "source"), iterations=settings.ids_steps, recording=recording,
    )  # fmt: skip
    edited = cds_optimize(
        run.noising,
        run.latent,
        scorer(run, "source", settings.compared),
        [scorer(run, target, settings.compared) for target in targets],
        run.sigmas,
        step_size=settings.step_size,
        weights=settings.weights,
        mask=run.mask,
        refine=refine if settings.ids_steps else None,
        seed=settings.seed,
        recording=recording,
        callback=report,
    )
    return edited, losses


def optimize(
    model: ModelPatcher,
    latent_image: Tensor,
    source: list,
    targets: list[list],
    negative: list,
    settings: CDSSettings,
    mask: Tensor | None = None,
) -> tuple[list[Tensor], list[list[float]]]:
    """The edit of latent_image (B, C, H, W) for each CONDITIONING of `targets`, in LATENT space, and its losses.

    Where `mask` (B, 1, H, W) is 0 the edits are the source bit for bit.
    """
    names = [f"target {number}" for number in range(len(targets))]
    sigmas = model.get_model_object("model_sampling").sigma(settings.timesteps)
    edited, losses = run_hosted(
        guider_of(model, settings.cfg, source=source, negative=negative, **dict(zip(names, targets, strict=True))),
        lambda run: edit(run, names, settings),
        latent_image,
        sigmas,
        mask=mask,
        backward=bool(settings.weights.w_cut or settings.ids_steps),
        callback=prepare_callback(model, len(sigmas)),
    )
    edited = [model.model.process_latent_out(z).to(latent_image.device) for z in edited]
    if mask is not None:
        edited = [torch.where(mask.to(z.device) == 0, latent_image, z) for z in edited]
    return edited, losses


def mask_for(samples: Tensor, masks: list[Tensor]) -> Tensor | None:
    """The product (B, 1, H, W) of `masks`, each resized as the host does to samples (B, C, H, W); None without any.

    One channel: the sampler reshapes masks once more, and would take the channels of the first sample for further samples.
    """
    batch, _, *size = samples.shape
    resized = [comfy.utils.reshape_mask(mask.float(), (batch, 1, *size)) for mask in masks]
    return torch.stack(resized).prod(0) if resized else None
