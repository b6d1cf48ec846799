"""The toy world's models, and what methods share about a batch of edits."""

from functools import cached_property

import comfy.samplers
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from zerocon_pack.bridge.loops.differences import prompt_differences
from zerocon_pack.bridge.loops.hosted import guider_of
from zerocon_pack.bridge.loops.inversion import default_sigmas, invert
from zerocon_pack.bridge.model.conditioning import encode_caption
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers
from zerocon_pack.bridge.toyworld import load_toy_world
from zerocon_pack.zerocon_core.maps.differences import edit_mask, heat_map
from zerocon_pack.zerocon_core.methods.inversion import NoiseRegularization, Trajectory
from zerocon_pack.zerocon_core.toyworld.classifier import load_classifier
from zerocon_pack.zerocon_core.toyworld.scene import caption

from .edits import Edit, pictures

STEPS = 20
ITERATIONS = 30
"""Of DDS and CDS, with steps of 0.15: together half as far as the papers' 200 steps of 0.0488."""

EULER = comfy.samplers.sampler_object("euler")


class Bench:
    """The toy world's models and classifier, with as many `steps` of inversion and sampling and `iterations` of DDS and CDS."""

    def __init__(self, steps: int = STEPS, iterations: int = ITERATIONS) -> None:
        self.steps, self.iterations = steps, iterations
        self.model, self.clip, self.vae = load_toy_world()
        self.sigmas = default_sigmas(self.model, steps)
        self.judge = load_classifier()
        self.encoded: dict[str, Tensor] = {}

    def encode(self, text: str) -> Tensor:
        if text not in self.encoded:
            self.encoded[text] = encode_caption(self.clip, text)[0][0]
        return self.encoded[text]

    def conditioning(self, texts: list[str]) -> list:
        """A CONDITIONING that holds the prompt of every sample of a batch."""
        return [[torch.cat([self.encode(text) for text in texts]), {}]]

    def layers(self, blocks: tuple[str, ...]) -> HookedLayers:
        """The self-attention of these blocks and all cross-attention."""
        layers = transformer_layers(self.model.model.diffusion_model)
        return HookedLayers(frozenset(layer for layer in layers if layer.block in blocks), frozenset(layers))


class Batch:
    """Edits with everything about their sources that methods share, each made when it is first asked for."""

    def __init__(self, bench: Bench, edits: list[Edit]) -> None:
        self.bench, self.edits = bench, edits
        self.inversions: dict[tuple[float, int], tuple[Tensor, Trajectory]] = {}

    @cached_property
    def images(self) -> Tensor:
        return pictures([edit.source for edit in self.edits])

    @cached_property
    def latent(self) -> Tensor:
        return self.bench.vae.encode(self.images)

    @cached_property
    def source(self) -> list:
        return self.bench.conditioning([caption(edit.source) for edit in self.edits])

    @cached_property
    def target(self) -> list:
        return self.bench.conditioning([caption(edit.target) for edit in self.edits])

    @cached_property
    def negative(self) -> list:
        return self.bench.conditioning([""] * len(self.edits))

    def inverted(self, lambda_noise: float = 0.0, refinements: int = 0) -> tuple[Tensor, Trajectory]:
        """Noise in LATENT space and the trajectory there, with both weights of the noise regularisation at `lambda_noise`."""
        key = lambda_noise, refinements
        if key not in self.inversions:
            regularization = NoiseRegularization(lambda_noise, lambda_noise) if lambda_noise else None
            self.inversions[key] = invert(
                self.bench.model, self.latent, self.source, self.bench.sigmas, regularization, refinements, 0
            )
        return self.inversions[key]

    def sampled(self, noise: Tensor) -> Trajectory:
        """What the sampler makes of `noise` under the source caption: pix2pix-zero's published reference."""
        latents = []
        guider = guider_of(self.bench.model, positive=self.source)
        result = self.sample(guider, noise, self.bench.sigmas, lambda step, denoised, x, total: latents.append(x.clone()))
        latents.append(self.bench.model.model.process_latent_in(result))
        return Trajectory(self.bench.sigmas, latents)

    def sample(self, guider: comfy.samplers.CFGGuider, latent: Tensor, sigmas: Tensor, callback=None) -> Tensor:
        """From an inverted latent: Euler steps without further noise."""
        return guider.sample(torch.zeros_like(latent), latent, EULER, sigmas, disable_pbar=True, seed=0, callback=callback)

    def mask(self, grow: int) -> Tensor:
        """The found mask (B, h, w), grown by so many latent positions."""
        return max_pool2d(self.found_mask, 2 * grow + 1, stride=1, padding=grow)

    @cached_property
    def found_mask(self) -> Tensor:
        """Of source and target prompt with the defaults of Edit Mask, (B, h, w); empty where both are the same."""
        prompts = [self.source, self.target]
        differences = prompt_differences(self.bench.model, self.latent, prompts, 0.65, 10, 0, lambda draw, mean: None)
        mask = torch.zeros_like(differences)
        edited = torch.tensor([edit.kind != "identity" for edit in self.edits])
        mask[edited] = edit_mask(heat_map(differences[edited], 3.0, 1.0), 0.5)
        return mask
