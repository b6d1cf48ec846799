"""The core's CDS as a host sampler, run by the host's own guider machinery."""

from functools import partial

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from latent_preview import prepare_callback
from torch import Tensor

from ...zerocon_core.methods.cds import CDSWeights, Gradient, Score, Scorer, cds_optimize, refine_noise
from ...zerocon_core.noising import Denoiser, to_eps
from ..model.attention import Capture, capture_options
from ..model.autograd import autograd_region, may_write_in_place, reserve_for_backward
from ..model.facts import HookedLayers


class CDSGuider(comfy.samplers.CFGGuider):
    """One source and several targets under classifier-free guidance with the same negative."""

    def __init__(self, model: ModelPatcher, source: list, targets: list[list], negative: list, cfg: float, gradients: bool):
        super().__init__(model)
        named = {f"target {number}": target for number, target in enumerate(targets)}
        self.inner_set_conds({"source": source, "negative": negative} | named)
        self.targets = list(named)
        self.set_cfg(cfg)
        self.gradients = gradients

    def outer_sample(self, *args, **kwargs):
        if self.gradients:  # on the options of this run alone: the host copied them for it
            reserve_for_backward(self.model_options)
        return super().outer_sample(*args, **kwargs)

    def scorer(self, name: str, layers: HookedLayers, model_options: dict) -> Scorer:
        """The model under the condition `name`, with the host's CFG around our passes.

        A latent without gradients runs both branches of CFG in one batch. One with them runs the conditional branch apart: the
        score of CFG is a value, and the features alone carry gradients.
        """
        model, cond, negative = self.inner_model, Capture.numbered(self.conds[name]), self.conds["negative"]

        def score(x: Tensor, sigma: Tensor) -> Score:
            capture = Capture()
            options = capture_options(model_options, layers, capture, differentiable=self.gradients)
            levels = sigma * x.new_ones(x.shape[0])

            def passes(args: dict) -> list[Tensor]:
                value, (_, uncond) = args["input"], args["conds"]
                if not x.requires_grad:
                    return comfy.samplers.calc_cond_batch(model, [cond, uncond], value, levels, options)
                with torch.enable_grad():
                    [conditional] = comfy.samplers.calc_cond_batch(model, [cond], x, levels, options)
                # In its place of CFG: patches may look at it.
                unconditional = comfy.samplers.calc_cond_batch(model, [None, uncond], value, levels, options)[1]
                return [conditional.detach(), unconditional]

            with torch.no_grad():
                value = x.detach()
                denoised = comfy.samplers.sampling_function(
                    model, value, levels, negative, cond, self.cfg, model_options | {"sampler_calc_cond_batch_function": passes}
                )
            return Score(to_eps(value, sigma, denoised.float()), capture.observation().self_attention)

        return score

    def denoiser(self, name: str, model_options: dict) -> Denoiser:
        """The model under the condition `name` with CFG, differentiable."""
        options = capture_options(model_options, HookedLayers(), Capture(), differentiable=True)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            levels = sigma * x.new_ones(x.shape[0])
            conds = self.conds["negative"], self.conds[name]
            return comfy.samplers.sampling_function(self.inner_model, x, levels, *conds, self.cfg, options)

        return denoise


class CDSSampler(comfy.samplers.Sampler):
    """Moves the clean latent instead of denoising a noised one. Keeps the losses of all iterations, one list a target."""

    def __init__(
        self, layers: HookedLayers, step_size: float, weights: CDSWeights, ids_steps: int, checkpointing: bool, seed: int
    ):
        compared = layers.self_attention if weights.w_cut else frozenset()
        self.layers = HookedLayers(compared, max_side=layers.max_side)
        self.step_size = step_size
        self.weights = weights
        self.ids_steps = ids_steps
        self.checkpointing = checkpointing
        self.seed = seed
        self.losses: list[list[float]] = []

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        options = extra_args["model_options"]
        self.losses = [[] for _ in model_wrap.targets]

        def scorer(name: str) -> Scorer:
            return model_wrap.scorer(name, self.layers, options)

        def report(iteration: int, zs: list[Tensor], gradients: list[Gradient]) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            for losses, gradient in zip(self.losses, gradients, strict=True):
                losses.append(gradient.loss)
            edited = torch.cat(zs)
            callback(iteration, edited, edited, len(sigmas))

        recording = partial(
            autograd_region,
            [model_wrap.inner_model, *(extra.model for extra in model_wrap.loaded_models)],
            writes_in_place=may_write_in_place(model_wrap.conds.values(), options),
            checkpointing=self.checkpointing,
        )
        # Tensors made here must not be inference tensors, since gradients are taken with respect to them.
        with torch.inference_mode(False), torch.no_grad():
            source, sigmas = latent_image.float().clone(), sigmas.clone()
            refine = None
            if self.ids_steps:
                denoise = model_wrap.denoiser("source", options)
                refine = lambda noise, sigma: refine_noise(source, noise, sigma, denoise, self.ids_steps, recording)  # noqa: E731
            edited = cds_optimize(
                source,
                scorer("source"),
                [scorer(name) for name in model_wrap.targets],
                sigmas,
                step_size=self.step_size,
                weights=self.weights,
                mask=None if denoise_mask is None else denoise_mask.float().clone(),
                refine=refine,
                seed=self.seed,
                recording=recording,
                callback=report,
            )
            return torch.cat(edited)


def optimize(
    model: ModelPatcher, guider: CDSGuider, sampler: CDSSampler, latent_image: Tensor, timesteps: Tensor, mask: Tensor | None
) -> list[Tensor]:
    """The edit of latent_image (B, C, H, W) for each target of `guider`, in LATENT space.

    One iteration a timestep. Where `mask` (B, 1, H, W) is 0 they are the source bit for bit.
    """
    sigmas = model.get_model_object("model_sampling").sigma(timesteps)
    edited = guider.sample(
        torch.zeros_like(latent_image), latent_image, sampler, sigmas, mask, callback=prepare_callback(model, len(sigmas))
    ).chunk(len(guider.targets))
    if mask is None:
        return list(edited)
    outside, source = (mask == 0).to(edited[0].device), latent_image.to(edited[0])
    return [torch.where(outside, source, latent) for latent in edited]


def mask_for(samples: Tensor, masks: list[Tensor]) -> Tensor | None:
    """The product (B, 1, H, W) of `masks`, each resized as the host does to samples (B, C, H, W); None without any.

    One channel: the sampler reshapes masks once more, and would take the channels of the first sample for further samples.
    """
    batch, _, *size = samples.shape
    resized = [comfy.utils.reshape_mask(mask.float(), (batch, 1, *size)) for mask in masks]
    return torch.stack(resized).prod(0) if resized else None
