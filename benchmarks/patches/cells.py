"""Each method under a patch: how far it is from what it shall be, as figures that must stay within a bound."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor
from zerocon_pack.bridge.loops.cds import CDSSettings, optimize, scorer
from zerocon_pack.bridge.loops.differences import noise_level, prompt_differences
from zerocon_pack.bridge.loops.guidance import ZeroConGuider
from zerocon_pack.bridge.loops.hosted import Run, guider_of, run_hosted
from zerocon_pack.bridge.loops.inversion import default_sigmas
from zerocon_pack.bridge.loops.word_maps import attention_maps
from zerocon_pack.bridge.model.attention import observe
from zerocon_pack.bridge.model.facts import all_cross_attention, decoder_self_attention
from zerocon_pack.bridge.model.noising import is_flow
from zerocon_pack.nodes.attention_hooked_unet import AttentionHookedUNet
from zerocon_pack.nodes.attention_map_preview import AttentionMapPreview
from zerocon_pack.nodes.cds_optimize import CDSOptimize
from zerocon_pack.nodes.ddim_invert import DDIMInvert
from zerocon_pack.nodes.edit_mask import EditMask
from zerocon_pack.nodes.patchnce_guidance import PatchNCEGuidance
from zerocon_pack.nodes.soft_contrastive_train import SoftContrastiveTrain
from zerocon_pack.zerocon_core.maps.differences import average_difference
from zerocon_pack.zerocon_core.maps.words import average_maps
from zerocon_pack.zerocon_core.methods.cds import CDSWeights, cds_gradient
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE, patch_nce_loss
from zerocon_pack.zerocon_core.observation import Observation

from .patches import Patch
from .reference import cross_attention, denoised, gradient_error, inverted, probed
from .subject import Subject, execute
from .training import gradient_to_adapters, lora

GRADIENT, ANSWER, MOVE = 2e-4, 2e-4, 1e-3
"""Bounds: of a gradient to central differences, of an answer to the host's own, and of what equal prompts may move."""
STEPS = 4
PATCHNCE = dict(temperature=0.07, patches=256, patch_sizes="1, 2", contrast="cds")

Figures = dict[str, tuple[float, float]]
"""What was measured and the bound that it must not exceed."""


def error(value: Tensor, truth: Tensor) -> float:
    value, truth = value.detach().double(), truth.detach().double()
    return float((value - truth).norm() / truth.norm())


def repeated(run: Callable[[], Tensor]) -> tuple[Tensor, Figures]:
    """The result of two runs, which must be the same bits, and finite."""
    first, second = run(), run()
    same = torch.equal(first, second) and bool(torch.isfinite(first).all())
    return first, {"two runs": (0.0 if same else error(second, first), 0.0)}


def invert(subject: Subject) -> tuple[dict, Any, Tensor]:
    return execute(
        DDIMInvert, model=subject.model, image_latent=subject.latent, conditioning=subject.source, steps=STEPS, lambda_ac=0.0,
        lambda_kl=0.0, regularization_steps=1, rolls=1, refinements=0, seed=0,
    )  # fmt: skip


def inversion(subject: Subject) -> Figures:
    noise, figures = repeated(lambda: invert(subject)[0]["samples"])
    sigmas = default_sigmas(subject.model, STEPS)
    truth = inverted(subject.model, subject.source, subject.latent["samples"], sigmas)
    return figures | {"answer": (error(noise, truth), ANSWER)}


def guider_for(subject: Subject, trajectory, edited: list, lambda_cut: float = 0.2) -> ZeroConGuider:
    (hooked,) = execute(AttentionHookedUNet, model=subject.model, self_attention="decoder", cross_attention="all", max_side=0)
    (guider,) = execute(
        PatchNCEGuidance, hooked_model=hooked, source=subject.source, edited=edited, negative=subject.negative,
        trajectory=trajectory, cfg=3.0, lambda_xa=0.1, lambda_cut=lambda_cut, weighting="absolute", start_percent=0.0,
        end_percent=1.0, seed=0, **PATCHNCE,
    )  # fmt: skip
    return guider


def in_double(seen: Observation) -> Observation:
    halves = ({key: value.double() for key, value in maps.items()} for maps in (seen.cross_attention, seen.self_attention))
    return Observation(*halves)


def guidance_gradient(guider: ZeroConGuider, options: dict, x: Tensor, level: Tensor) -> float:
    """How far the guider's move of x is from the slopes of its loss, which no pass with gradients has a part in."""
    run = guider.run
    weights, scale = run.guidance.weights, float(run.guidance.noising.gradient_scale(level[0]))
    gradient = -guider.shift(x, level, options) / scale

    def look(x: Tensor, name: str) -> Observation:
        with run.recording(), torch.no_grad():
            return in_double(observe(guider.inner_model, guider.conds[name], x, level, options, guider.layers, True))

    reference = look(guider.source_at(level[0]).to(x), "source")

    def loss(x: Tensor) -> float:
        xa, cut = run.guidance.losses(look(x, "positive"), reference, x)
        return float(weights.lambda_xa * xa.sum() + weights.lambda_cut * cut.sum())

    return gradient_error(loss, x, gradient, GRADIENT)


def guidance(subject: Subject) -> Figures:
    noise, trajectory, sigmas = invert(subject)
    guider = guider_for(subject, trajectory, subject.edited)

    def sample() -> Tensor:
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(torch.zeros_like(noise["samples"]), noise["samples"], sampler, sigmas, disable_pbar=True, seed=0)

    _, figures = repeated(sample)
    level = sigmas[1:2]
    source = trajectory.latents[1]
    x = source + 0.1 * source.std() * torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    slopes = probed(guider, noise["samples"], level, lambda g, options: guidance_gradient(g, options, x.clone(), level))
    same = guider_for(subject, trajectory, subject.source, lambda_cut=0.0)
    move = probed(same, noise["samples"], level, lambda g, options: g.shift(source.clone(), level, options))
    return figures | {"gradient": (slopes, GRADIENT), "equal prompts": (float(move.norm() / source.norm()), MOVE)}


def cds_slopes(run: Run, subject: Subject) -> float:
    """How far the contrastive gradient is from the slopes of the contrastive loss."""
    layers = decoder_self_attention(run.model.diffusion_model)
    scores = {name: scorer(run, name, layers, differentiable=True) for name in ("source", "target")}
    weights, recording = CDSWeights(0.0, 1.0, PatchNCE()), run.recording()
    draw = torch.Generator().manual_seed(5)  # near z ToMe merges the same tokens: where it changes its mind, it jumps
    noise, sigma = torch.randn(run.latent.shape, generator=draw), run.sigmas[0]
    z = run.latent + 0.1 * run.latent.std() * torch.randn(run.latent.shape, generator=draw)
    with recording(), torch.no_grad():
        source = scores["source"](run.noising.noised(run.latent, noise, sigma), sigma)
    scale = z[0, 0].numel() / 2000

    def direction(z: Tensor) -> Any:
        return cds_gradient(run.noising, z, noise, sigma, source, scores["target"], weights, torch.Generator(), recording)

    def loss(z: Tensor) -> float:
        with recording(), torch.no_grad():
            seen = scores["target"](run.noising.noised(z, noise, sigma), sigma).features
            maps = [(seen[key].double(), source.features[key].double()) for key in seen]
            return float(patch_nce_loss(maps, weights.patchnce, torch.Generator()).sum())

    return gradient_error(loss, z, direction(z).direction / scale, GRADIENT)


def equal_prompts(subject: Subject) -> float:
    """How far CDS moves a latent towards what it shows already, with passes that have gradients but without contrast."""
    layers = decoder_self_attention(subject.model.model.diffusion_model)
    indifferent = CDSWeights(w_cut=3.0, patchnce=PatchNCE(temperature=1e9))
    settings = CDSSettings(torch.tensor([700, 300]), layers, indifferent, 5.0, 0.3)
    samples = subject.latent["samples"]
    [edited], _ = optimize(subject.model, samples, subject.source, [subject.source], subject.negative, settings)
    return error(edited, samples)


def cds(subject: Subject) -> Figures:
    def edit() -> Tensor:
        latents, _ = execute(
            CDSOptimize, model=[subject.model], image_latent=[subject.latent], source=[subject.source], target=[subject.edited],
            negative=[subject.negative], cfg=[5.0], steps=[2], step_size=[0.1], step_rule=["fixed"], w_dds=[1.0], w_cut=[3.0],
            min_timestep=[0.05], max_timestep=[0.948], timestep_order=["random"], ids_steps=[0], checkpointing=[False], seed=[0],
            **{name: [value] for name, value in PATCHNCE.items()},
        )  # fmt: skip
        return latents[0]["samples"]

    _, figures = repeated(edit)
    guider = guider_of(subject.model, 5.0, source=subject.source, target=subject.edited, negative=subject.negative)
    sigma = noise_level(subject.model, 0.5)
    slopes = run_hosted(guider, lambda run: cds_slopes(run, subject), subject.latent["samples"], sigma, backward=True)
    return figures | {"gradient": (slopes, GRADIENT), "equal prompts": (equal_prompts(subject), MOVE)}


def masks(subject: Subject) -> Figures:
    def mask() -> Tensor:
        return execute(
            EditMask, model=[subject.model], image_latent=[subject.latent], prompts=[subject.edited], source=[subject.source],
            strength=[0.5], draws=[2], threshold=[0.5], clamp=[3.0], smoothing=[1.0], seed=[0],
        )[1]  # fmt: skip

    _, figures = repeated(mask)
    samples, prompts = subject.latent["samples"], [subject.source, subject.edited]
    found = prompt_differences(subject.model, samples, prompts, 0.5, 2, 0, lambda draw, mean: None)
    sigma, z = noise_level(subject.model, 0.5)[0], subject.model.model.process_latent_in(samples)

    share = 1 - sigma if is_flow(subject.model) else 1  # of the image in what is noised

    def predict(noise: Tensor) -> Tensor:
        x = share * z + sigma * noise
        return torch.stack([(x - share * denoised(subject.model, prompt, x, sigma)) / sigma for prompt in prompts])

    truth = average_difference(predict, samples.shape, 2, torch.Generator().manual_seed(0))
    return figures | {"answer": (error(found, truth), ANSWER)}


def word_maps(subject: Subject) -> Figures:
    def maps() -> Tensor:
        return execute(
            AttentionMapPreview, model=subject.model, image_latent=subject.latent, conditioning=subject.source,
            prompt=subject.caption, words="", tokens="", strength=0.5, opacity=0.5, seed=0, clip=subject.clip,
        )[1]  # fmt: skip

    _, figures = repeated(maps)
    samples, layers = subject.latent["samples"], all_cross_attention(subject.model.model.diffusion_model)
    found = attention_maps(subject.model, samples, subject.source, layers, 0.5, 0)
    sigma, size = noise_level(subject.model, 0.5)[0], samples.shape[-2:]
    noise = torch.randn(1, *samples.shape[1:], generator=torch.Generator().manual_seed(0))
    share = 1 - sigma if is_flow(subject.model) else 1
    x = share * subject.model.model.process_latent_in(samples) + sigma * noise
    seen = cross_attention(subject.model, subject.source, x, sigma, found.shape[1])
    _, *shares = subject.source[0][1].get("area", ("percentage", 1, 1, 0, 0))  # of an area at the upper left
    height, width = (round(share * side) for share, side in zip(shares, size, strict=False))
    truth = torch.zeros_like(found)
    truth[..., :height, :width] = average_maps([square(maps, height / width) for maps in seen], (height, width))
    return figures | {"answer": (error(found, truth), ANSWER)}


def square(probabilities: Tensor, aspect: float) -> Tensor:
    """(B, heads, positions, tokens) as (B, heads, h, w, tokens) of a map `aspect` times as high as wide."""
    height = round((probabilities.shape[2] * aspect) ** 0.5)
    return probabilities.unflatten(2, (height, -1)).float()


def training(subject: Subject) -> Figures:
    weights, figures = repeated(lambda: lora(subject, checkpointing=False))
    checkpointed = error(lora(subject, checkpointing=True), weights)
    return figures | {"checkpointing": (checkpointed, 0.0), "gradient": (gradient_to_adapters(subject, GRADIENT), GRADIENT)}


NODES = (AttentionHookedUNet, AttentionMapPreview, CDSOptimize, DDIMInvert, EditMask, PatchNCEGuidance, SoftContrastiveTrain)
SENTENCE = re.compile(rf"({'|'.join(node.define_schema().display_name for node in NODES)}): .*;")
"""A refusal begins with the node's name in the page, and has a way out."""

METHODS: dict[str, Callable[[Subject], Figures]] = {
    "inversion": inversion, "guidance": guidance, "CDS": cds, "masks": masks, "word maps": word_maps, "training": training,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What a method does under a patch: refuses with a sentence, or its figures."""

    figures: Figures
    refusal: str = ""
    crash: str = ""

    @property
    def right(self) -> bool:
        return bool(self.figures) and all(value <= bound for value, bound in self.figures.values())

    @property
    def worst(self) -> str:
        """The figure closest to its bound, of those that may differ from 0."""
        if not self.figures:
            return ""
        value, _ = max(self.figures.values(), key=lambda figure: figure[0] / figure[1] if figure[1] else float(figure[0] > 0))
        return f"{value:.0e}"

    @property
    def text(self) -> str:
        """In one line."""
        if self.figures:
            figures = ", ".join(f"{name} {value:.1e}" for name, (value, _) in self.figures.items())
            return f"{'right' if self.right else 'WRONG'} ({figures})"
        return f"refused: {self.refusal}" if self.refusal else f"CRASH: {self.crash}"

    @property
    def good(self) -> bool:
        return self.right or bool(self.refusal)


def check(method: str, patch: Patch, subject: Subject) -> Cell:
    """The cell of a method under a patch, in inference mode as the host runs nodes."""
    with torch.inference_mode():
        try:
            return Cell(METHODS[method](patch(subject)))
        except Exception as error:
            if isinstance(error, ValueError) and SENTENCE.match(str(error)):
                return Cell({}, refusal=str(error))
            return Cell({}, crash=f"{type(error).__name__}: {error}")
