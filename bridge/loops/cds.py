"""The core's CDS, hosted: our passes inside the host's own CFG."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from latent_preview import prepare_callback
from torch import Tensor

from ...zerocon_core.methods.cds import TIMESTEPS, CDSWeights, Gradient, Score, Scorer, cds_optimize
from ...zerocon_core.methods.ids import refine_noise
from ...zerocon_core.noising import Denoiser
from ..model.attention import Capture, capture_options
from ..model.comparison import check_comparable
from ..model.facts import HookedLayers
from ..model.noising import levels_at
from ..model.patches import acting_names
from .hosted import Run, guider_of, run_hosted


def scorer(run: Run, name: str, layers: HookedLayers, differentiable: bool) -> Scorer:
    """The model under the condition `name`, with the host's CFG around our passes.

    A latent without gradients runs both branches of CFG in one batch. One with them runs the conditional branch apart: the score
    of CFG is a value, and the features alone carry gradients. `differentiable` is for scores of which one has gradients: then
    all are asked in the same way, and where patches could tell one batch from two, always in two.
    """
    model, cond, negative = run.model, Capture.numbered(run.conds[name]), run.conds["negative"]
    apart = differentiable and run.patched

    def score(x: Tensor, sigma: Tensor) -> Score:
        capture = Capture()
        options = capture_options(run.options, layers, capture, differentiable)
        levels = sigma * x.new_ones(len(x))

        def passes(args: dict) -> list[Tensor]:
            value, (_, uncond) = args["input"], args["conds"]
            if not (apart or x.requires_grad):
                return comfy.samplers.calc_cond_batch(model, [cond, uncond], value, levels, options)
            [conditional] = comfy.samplers.calc_cond_batch(model, [cond], x, levels, options)
            # In its place of CFG: patches may look at it.
            unconditional = comfy.samplers.calc_cond_batch(model, [None, uncond], value, levels, options)[1]
            return [conditional.detach(), unconditional]

        value = x.detach()
        denoised = comfy.samplers.sampling_function(
            model, value, levels, negative, cond, run.guider.cfg, run.options | {"sampler_calc_cond_batch_function": passes}
        )
        return Score(run.noising.eps(value, sigma, denoised.float()).detach(), capture.observation().self_attention)

    return score


def check_repeatable(run: Run, score: Scorer) -> None:
    """Raises ValueError where other nodes make the model answer the same question differently each time.

    Source and edit would drift apart although nothing is asked of them: by chance, or by what is kept from one answer for
    the next (APG's momentum).
    """
    names = acting_names(run.options)
    if not names:
        return
    noise = torch.ones_like(run.latent)
    questions = [run.noising.noised(run.latent, sign * noise, run.sigmas[0]) for sign in (1, -1, 1)]
    first, _, again = (score(x, run.sigmas[0]).eps for x in questions)
    if (first - again).norm() > 1e-3 * first.norm():
        raise ValueError(
            f"the model does not answer the same twice, so source and target cannot be compared; remove from it what does that, "
            f"one of {', '.join(names)}"
        )


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
    """Of the papers' 1000; on any other schedule the same shares of it."""
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


def edit(
    run: Run, targets: list[str], settings: CDSSettings, score: Callable[[str], Scorer]
) -> tuple[list[Tensor], list[list[float]]]:
    """For each condition named in `targets`, the edited latent (B, C, H, W) and the loss of each iteration.

    `score` gives the scorer of a condition by its name.
    """
    recording, losses = run.recording(settings.checkpointing), [[] for _ in targets]
    check_repeatable(run, score("source"))

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
        score("source"),
        [score(target) for target in targets],
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

    def loop(run: Run) -> tuple[list[Tensor], list[list[float]]]:
        score = partial(scorer, run, layers=settings.compared, differentiable=bool(settings.weights.w_cut))
        return edit(run, names, settings, score)

    sigmas = levels_at(model, (settings.timesteps.double() / (TIMESTEPS - 1)).tolist())
    guider = guider_of(model, settings.cfg, source=source, negative=negative, **dict(zip(names, targets, strict=True)))
    for name in names if settings.weights.w_cut else ():
        conds = guider.original_conds["source"], guider.original_conds[name]
        check_comparable(model, settings.compared, latent_image.shape[-2:], sigmas.unique().tolist(), *conds)
    edited, losses = run_hosted(
        guider,
        loop,
        latent_image,
        sigmas,
        mask=mask,
        backward=bool(settings.weights.w_cut or settings.ids_steps),
        checkpointing=settings.checkpointing,
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
