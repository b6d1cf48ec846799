"""Seconds of a guided step: the published way, ours, the host's own step, and the passes alone."""

from collections.abc import Callable

import comfy.samplers
import torch
from torch import Tensor
from zerocon_pack.bridge.loops.guidance import ZeroConGuider
from zerocon_pack.bridge.loops.inversion import default_sigmas
from zerocon_pack.bridge.model.attention import hook_layers
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers
from zerocon_pack.zerocon_core.methods.guidance import GuidanceWeights
from zerocon_pack.zerocon_core.methods.inversion import Trajectory

from .published import LAMBDA_XA, attention, pix2pix_zero_step
from .shapes import Passes, Shape
from .timing import Timing, timed

CFG = 5.0
EULER = comfy.samplers.sampler_object("euler")
UNIT = "a pass"
BOTH = GuidanceWeights(LAMBDA_XA, 0.1, relative=False)
AGAINST = ("published way, L_xa", "published way, L_xa, fused attention")


def measure(shape: Shape, steps: int, rounds: int) -> Timing:
    run = GuidedStep(shape, steps)
    ways = {
        AGAINST[0]: lambda: run.published(fused=False),
        AGAINST[1]: lambda: run.published(fused=True),
        "ours, L_xa": lambda: run.ours(GuidanceWeights(LAMBDA_XA, 0.0)),
        "ours, L_xa and L_cut": lambda: run.ours(BOTH),
        "ours, L_xa and L_cut, checkpointing": lambda: run.ours(BOTH, checkpointing=True),
        "the passes of ours alone": run.passes_alone,
        "a step of the host under CFG": run.plain,
        UNIT: lambda: run.bare(1, gradient=False),
    }
    units = dict.fromkeys(ways, steps) | {"the passes of ours alone": 1, UNIT: 1}
    return timed(f"a guided step, {shape}", ways, rounds, units)


class GuidedStep:
    """Each way over the same steps from the same latent."""

    def __init__(self, shape: Shape, steps: int) -> None:
        model = shape.model()
        self.passes = Passes(model, shape)
        self.source, self.edited, self.negative = shape.conditionings(3)
        self.x = shape.latent() * 14
        self.sigmas = default_sigmas(model, 1000 // 20)[: steps + 1]
        self.trajectory = Trajectory(self.sigmas, [model.model.process_latent_in(self.x)] * len(self.sigmas))
        layers = transformer_layers(model.model.diffusion_model)
        decoder = frozenset(layer for layer in layers if layer.block == "output")
        self.model = hook_layers(model, HookedLayers(decoder, frozenset(layers)))

    def ours(self, weights: GuidanceWeights, checkpointing: bool = False) -> None:
        guider = ZeroConGuider(self.model, self.trajectory, weights, 0.0, 1.0, 0, checkpointing=checkpointing)
        guider.inner_set_conds({"positive": self.edited, "negative": self.negative, "source": self.source})
        self.sample(guider)

    def plain(self) -> None:
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.edited, self.negative)
        self.sample(guider)

    @torch.inference_mode()
    def sample(self, guider: comfy.samplers.CFGGuider) -> None:
        guider.set_cfg(CFG)
        guider.sample(torch.zeros_like(self.x), self.x, EULER, self.sigmas, disable_pbar=True)

    def pair(self, conditioning: list) -> Tensor:
        """Embeddings (2, tokens, d) of [negative, prompt]."""
        return torch.cat([self.negative[0][0], conditioning[0][0]]).to(self.passes.device)

    def published(self, fused: bool) -> None:
        x = start = self.x.to(self.passes.device)
        sigmas = self.sigmas.to(self.passes.device)
        contexts = self.pair(self.source), self.pair(self.edited)
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = pix2pix_zero_step(self.passes, x, start, sigma, sigma_next, *contexts, CFG, fused)

    def passes_alone(self) -> None:
        """Source, edit with gradients, CFG: without hooks and losses."""
        self.bare(1, gradient=False)
        self.bare(1, gradient=True)
        self.bare(2, gradient=False)

    def bare(self, count: int, gradient: bool) -> None:
        bare_pass(self.passes, self.x, self.sigmas[0], self.pair(self.edited)[:count], gradient)


def bare_pass(passes: Passes, x: Tensor, sigma: Tensor, context: Tensor, gradient: bool) -> None:
    """A plain pass of the U-Net, as many samples as `context` has; and the gradient of its output's sum by plain autograd."""
    x, sigma = x.to(passes.device).repeat(len(context), 1, 1, 1), sigma.to(passes.device)
    options: dict[str, Callable] = {"optimized_attention_override": attention(fused=True)}
    if not gradient:
        with torch.inference_mode():
            passes(x, sigma, context, **options)
        return
    x.requires_grad_(True)
    torch.autograd.grad(passes(x, sigma, context, **options).sum(), x)
