"""The toy world as a test bench: held-out edits whose true result the renderer knows, the methods, and their scores.

A method is a value that is called with a batch of edits and returns the edited latents. `repr` of it is its whole setting.
Toy figures compare methods and settings of this code with each other; they say nothing about Stable Diffusion.
"""

import sys
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack

KINDS = ("colour", "shape", "pattern", "identity")
STEPS = 20
CFG = 5.0
ITERATIONS = 30
"""Of DDS and CDS, with steps of 0.15: together half as far as the papers' 200 steps of 0.0488."""

Blocks = tuple[Literal["input", "middle", "output"], ...]


@dataclass(frozen=True)
class Edit:
    """A scene, its true edit, and the attribute that changes; "identity" changes nothing."""

    source: "Scene"  # noqa: F821 (known once the pack is imported)
    target: "Scene"  # noqa: F821
    kind: str

    @property
    def words(self) -> tuple[str, str]:
        return getattr(self.source, self.kind), getattr(self.target, self.kind)

    def with_value(self, value: str) -> "Scene":  # noqa: F821
        """The scene with another value of the edited attribute."""
        return replace(self.source, **{self.kind: value})


def draw_edits(scene, count: int, kinds: tuple[str, ...] = KINDS, first: int = 0) -> list[Edit]:
    """Edits number `first` and on of the held-out scenes, the kinds in turn; a number always gives the same edit."""
    drawn = []
    for number in range(first, first + count):
        source, kind = scene.scene_from_seed(scene.HELD_OUT_SEED + number), kinds[number % len(kinds)]
        edit = Edit(source, source, kind)
        if kind != "identity":
            others = [value for value in values(scene, kind) if value != getattr(source, kind)]
            edit = replace(edit, target=edit.with_value(others[np.random.default_rng(number).integers(len(others))]))
        drawn.append(edit)
    return drawn


def values(scene, attribute: str) -> tuple[str, ...]:
    return {"colour": scene.COLOURS, "shape": scene.SHAPES, "pattern": scene.PATTERNS}[attribute]


class Bench:
    """The toy world's models and the parts of the pack that the methods use."""

    def __init__(self) -> None:
        core = "toyworld.scene toyworld.classifier cds guidance inversion masks patchnce".split()
        self.core = SimpleNamespace(**{name.split(".")[-1]: pack(f"zerocon_core.{name}") for name in core})
        bridge = "attention cds conditioning guider inversion masks toyworld".split()
        self.bridge = SimpleNamespace(**{name: pack(f"bridge.{name}") for name in bridge})
        self.model, self.clip, self.vae = self.bridge.toyworld.load_toy_world()
        self.sigmas = self.bridge.inversion.default_sigmas(self.model, STEPS)
        self.judge = self.core.classifier.load_classifier()

    @cache  # noqa: B019 (one bench a process)
    def encode(self, text: str) -> Tensor:
        return self.bridge.conditioning.encode_caption(self.clip, text)[0][0]

    def layers(self, blocks: Blocks):
        """The self-attention of these blocks and all cross-attention."""
        layers = self.bridge.attention.transformer_layers(self.model.model.diffusion_model)
        chosen = frozenset(layer for layer in layers if layer.block in blocks)
        return self.bridge.attention.HookedLayers(chosen, frozenset(layers))

    def classify(self, images: Tensor):
        return self.core.classifier.classify(images, self.judge)


class Batch:
    """Edits with everything about their sources that methods share, each made when it is first asked for."""

    def __init__(self, bench: Bench, edits: list[Edit]) -> None:
        self.bench, self.edits = bench, edits
        self.inversions: dict[tuple, tuple] = {}

    def conditioning(self, texts: list[str]) -> list:
        return [[torch.cat([self.bench.encode(text) for text in texts]), {}]]

    def captions(self, side: str) -> list[str]:
        return [self.bench.core.scene.caption(getattr(edit, side)) for edit in self.edits]

    @cached_property
    def images(self) -> Tensor:
        return torch.from_numpy(np.stack([self.bench.core.scene.render(edit.source) for edit in self.edits]))

    @cached_property
    def latent(self) -> Tensor:
        return self.bench.vae.encode(self.images)

    @cached_property
    def source(self) -> list:
        return self.conditioning(self.captions("source"))

    @cached_property
    def target(self) -> list:
        return self.conditioning(self.captions("target"))

    @cached_property
    def negative(self) -> list:
        return self.conditioning([""] * len(self.edits))

    def inverted(self, lambda_noise: float = 0.0, refinements: int = 0) -> tuple:
        """Noise in LATENT space and the trajectory there, with both weights of the noise regularisation at `lambda_noise`."""
        key = lambda_noise, refinements
        if key not in self.inversions:
            regularization = None
            if lambda_noise:
                regularization = self.bench.core.inversion.NoiseRegularization(lambda_noise, lambda_noise)
            self.inversions[key] = self.bench.bridge.inversion.invert(
                self.bench.model, self.latent, self.source, self.bench.sigmas, regularization, refinements, 0
            )
        return self.inversions[key]

    def sampled(self, noise: Tensor):
        """What the sampler makes of `noise` under the source caption, as a trajectory: pix2pix-zero's published reference."""
        latents = []
        guider = self.bench.bridge.inversion.ConditionalGuider(self.bench.model, self.source)
        result = self.sample(guider, noise, self.bench.sigmas, lambda step, denoised, x, total: latents.append(x.clone()))
        latents.append(self.bench.model.model.process_latent_in(result))
        return self.bench.core.inversion.Trajectory(self.bench.sigmas, latents)

    def sample(self, guider, latent: Tensor, sigmas: Tensor, callback=None) -> Tensor:
        """From an inverted latent: Euler steps without further noise."""
        import comfy.samplers

        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(torch.zeros_like(latent), latent, euler, sigmas, disable_pbar=True, seed=0, callback=callback)

    def mask(self, grow: int) -> Tensor:
        """The found mask (B, h, w), grown by so many latent positions."""
        return torch.nn.functional.max_pool2d(self.found_mask, 2 * grow + 1, stride=1, padding=grow)

    @cached_property
    def found_mask(self) -> Tensor:
        """Of source and target prompt with the defaults of Edit Mask, (B, h, w); empty where both are the same."""
        prompts = [self.source, self.target]
        differences = self.bench.bridge.masks.prompt_differences(
            self.bench.model, self.latent, prompts, 0.65, 10, 0, lambda draw, mean: None
        )
        masks, mask = self.bench.core.masks, torch.zeros_like(differences)
        edited = torch.tensor([edit.kind != "identity" for edit in self.edits])
        mask[edited] = masks.edit_mask(masks.heat_map(differences[edited], 3.0, 1.0), 0.5)
        return mask


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
        scene, vae = batch.bench.core.scene, batch.bench.vae
        objects = [np.maximum(scene.object_mask(edit.source), scene.object_mask(edit.target)) for edit in batch.edits]
        side = batch.images.shape[1] // batch.latent.shape[-1]
        place = torch.nn.functional.max_pool2d(torch.from_numpy(np.stack(objects))[:, None], side)
        place = torch.nn.functional.max_pool2d((place > 0).float(), 3, stride=1, padding=1)
        truth = vae.encode(torch.from_numpy(np.stack([scene.render(edit.target) for edit in batch.edits])))
        return torch.lerp(batch.latent, truth, place)


@dataclass(frozen=True)
class SDEdit:
    """Noise to a share of the schedule, sample with the target caption (Meng et al. 2022): the host's own sampler."""

    strength: float

    def __call__(self, batch: Batch) -> Tensor:
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(batch.bench.model)
        guider.set_conds(batch.target, batch.negative)
        guider.set_cfg(CFG)
        noise = torch.randn(batch.latent.shape, generator=torch.Generator().manual_seed(0))
        sigmas, euler = batch.bench.sigmas[round((1 - self.strength) * STEPS) :], comfy.samplers.sampler_object("euler")
        return guider.sample(noise, batch.latent, euler, sigmas, disable_pbar=True, seed=0)


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
        patchnce = bench.core.patchnce.PatchNCE(direction=self.contrast)
        weights = bench.core.guidance.GuidanceWeights(self.lambda_xa, self.lambda_cut, patchnce=patchnce)
        model = bench.bridge.attention.hook_layers(bench.model, bench.layers(self.blocks))
        mask = None if self.mask is None else batch.mask(self.mask)
        guider = bench.bridge.guider.ZeroConGuider(model, trajectory, weights, 0.0, self.end, 0, mask, mask is not None)
        guider.inner_set_conds({"positive": batch.target, "negative": batch.negative, "source": batch.source})
        guider.set_cfg(self.cfg)
        first = round((1 - self.strength) * STEPS)
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
        cds, core = bench.bridge.cds, bench.core.cds
        patchnce = bench.core.patchnce.PatchNCE(sizes=self.sizes, patches=self.patches, direction=self.contrast)
        weights = core.CDSWeights(w_cut=self.w_cut, patchnce=patchnce)
        kind = cds.CDSGuider if self.place == "self-attention" else reading_elsewhere(cds.CDSGuider, self.place)
        guider = kind(bench.model, batch.source, [batch.target], batch.negative, 7.5, bool(self.w_cut))
        sampler = cds.CDSSampler(bench.layers(self.blocks), self.step_size, weights, 0, False, 0)
        timesteps = core.draw_timesteps(ITERATIONS, 50, 948, self.order, torch.Generator().manual_seed(0))
        mask = None if self.mask is None else batch.mask(self.mask).unsqueeze(1)
        [latent] = cds.optimize(bench.model, guider, sampler, batch.latent, timesteps, mask)
        return latent


@cache
def reading_elsewhere(guider: type, place: str) -> type:
    """A CDS guider whose features are the cross-attention outputs of the same blocks, or the model's noise prediction."""
    from comfy.model_patcher import create_model_options_clone
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    attention = pack("bridge.model.attention")

    class Elsewhere(guider):
        def scorer(self, name, layers, model_options):
            def score(x, sigma):
                capture = attention.Capture()
                options = create_model_options_clone(model_options)
                if place == "cross-attention":
                    patches = options.setdefault("transformer_options", {}).setdefault("patches", {})
                    patches.setdefault("attn2_output_patch", []).append(attention.self_attention_hook(layers, capture))
                else:
                    add_wrapper_with_key(WrappersMP.APPLY_MODEL, "output", file_eps, options, is_model_options=True)

                answer = super(Elsewhere, self).scorer(name, attention.HookedLayers(), options)(x, sigma)
                return answer._replace(features=capture.observation().self_attention or outputs)

            outputs = {}

            def file_eps(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
                denoised = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
                eps = ((x - denoised) / t.view(-1, 1, 1, 1)).chunk(len(transformer_options["uuids"]))
                outputs.update((n, e) for n, e in zip(transformer_options["uuids"], eps, strict=True) if isinstance(n, int))
                return denoised

            return score

    return Elsewhere


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def score(batch: Batch, images: Tensor) -> list[dict]:
    """One record an edit.

    Success: the classifier finds the new attribute; an identity succeeds when it finds all of the old ones. `background` and
    `bystander` are PSNR against the source over the pixels that the true edit leaves as they are, all of them and those of the
    bystander. The pose is kept when the centre moves by less than 5 % of the side and the radius by less than 15 %, as the
    classifier sees them before and after.
    """
    scene, bench = batch.bench.core.scene, batch.bench
    found, before = bench.classify(images), bench.classify(batch.images)
    records = []
    for i, edit in enumerate(batch.edits):
        source, truth = batch.images[i], torch.from_numpy(scene.render(edit.target))
        unchanged = (source == truth).all(-1)
        bystander = unchanged & torch.from_numpy(scene.bystander_mask(edit.source) > 0.5)
        move = found.pose[i] - before.pose[i]
        right = {name: getattr(found, name)[i] == getattr(edit.target, name) for name in KINDS[:3]}
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
