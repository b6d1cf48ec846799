"""Seconds of an iteration of CDS: the published way, ours, and the passes alone."""

import torch
from zerocon_pack.bridge.loops.cds import CDSSettings, optimize
from zerocon_pack.bridge.model.facts import decoder_self_attention
from zerocon_pack.zerocon_core.methods.cds import CDSWeights, draw_timesteps
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE, patch_nce_loss

from .guided_step import bare_pass
from .published import CFG, STEP_SIZE, W_CUT, cds_iteration
from .shapes import Passes, Shape
from .timing import Timing, timed

UNIT = "a pass"
AGAINST = ("published way", "published way, fused attention")


def measure(shape: Shape, iterations: int, rounds: int) -> Timing:
    run = Iteration(shape, iterations)
    ways = {
        AGAINST[0]: lambda: run.published(fused=False),
        AGAINST[1]: lambda: run.published(fused=True),
        "CDS": run.ours,
        "CDS, checkpointing": lambda: run.ours(checkpointing=True),
        "DDS": lambda: run.ours(w_cut=0.0),
        "the passes of ours alone": run.passes_alone,
        UNIT: lambda: run.bare(1, gradient=False),
    }
    units = dict.fromkeys(ways, iterations) | {"the passes of ours alone": 1, UNIT: 1}
    return timed(f"an iteration of CDS, {shape}", ways, rounds, units)


class Iteration:
    """Each way over the same iterations from the same latent."""

    def __init__(self, shape: Shape, iterations: int) -> None:
        self.model = shape.model()
        self.passes = Passes(self.model, shape)
        self.source, self.target, self.negative = shape.conditionings(3)
        self.z_src = shape.latent()
        self.timesteps = draw_timesteps(iterations, 50, 948, "random", torch.Generator().manual_seed(0))
        self.sigmas = self.model.get_model_object("model_sampling").sigma(self.timesteps)
        self.layers = decoder_self_attention(self.model.model.diffusion_model)

    @torch.inference_mode()
    def ours(self, w_cut: float = W_CUT, checkpointing: bool = False) -> None:
        weights = CDSWeights(w_cut=w_cut)
        settings = CDSSettings(self.timesteps, self.layers, weights, CFG, STEP_SIZE, checkpointing=checkpointing)
        optimize(self.model, self.z_src, self.source, [self.target], self.negative, settings)

    def published(self, fused: bool) -> None:
        device = self.passes.device
        weights = [weight for name, weight in self.model.model.named_parameters() if "attn1" in name]
        for weight in weights:
            weight.requires_grad_(True)
        contexts = [torch.cat([self.negative[0][0], c[0][0]]).to(device) for c in (self.source, self.target)]
        generator, z_src = torch.Generator().manual_seed(0), self.z_src.to(device)
        z = z_src
        for sigma in self.sigmas.to(device):
            noise = torch.randn(z_src.shape, generator=generator).to(device)
            z = cds_iteration(
                self.passes, z, z_src, noise, sigma, *contexts, weights,
                lambda pairs: patch_nce_loss(pairs, PatchNCE(), generator), fused,
            )  # fmt: skip
        for weight in weights:
            weight.requires_grad_(False)

    def passes_alone(self) -> None:
        """Source under CFG, edit without the prompt, edit with gradients: without hooks and losses."""
        self.bare(2, gradient=False)
        self.bare(1, gradient=False)
        self.bare(1, gradient=True)

    def bare(self, count: int, gradient: bool) -> None:
        context = torch.cat([self.negative[0][0], self.target[0][0]]).to(self.passes.device)[:count]
        bare_pass(self.passes, self.z_src, self.sigmas[0], context, gradient)
