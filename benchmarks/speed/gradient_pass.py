"""Seconds of a pass with gradients against plain autograd with the same hooks and losses on the same float32 weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import comfy.samplers
import torch
from torch import Tensor
from zerocon_pack.bridge.model.attention import observe
from zerocon_pack.bridge.model.autograd import autograd_region
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers
from zerocon_pack.zerocon_core.methods.guidance import Guidance, GuidanceWeights

from .shapes import Shape
from .timing import Timing, timed

UNIT = "a pass"
FLOOR = "plain autograd"
AGAINST = (FLOOR,)
WAYS = (FLOOR, "gradient pass", "gradient pass, checkpointing")
SIGMA = 5.0


def measure(shape: Shape, rounds: int) -> tuple[Timing, float]:
    """The timing, and the largest difference between the gradients of all ways, relative to the largest gradient."""
    return run_inside(shape, lambda guider, options: compare(GradientPass(shape, guider, options), shape, rounds))


def compare(run: "GradientPass", shape: Shape, rounds: int) -> tuple[Timing, float]:
    unet = run.model.diffusion_model
    regions: dict[str, Callable[[], AbstractContextManager]] = {
        FLOOR: torch.enable_grad,
        "gradient pass": lambda: autograd_region([unet]),
        "gradient pass, checkpointing": lambda: autograd_region([unet], checkpointing=True),
    }
    gradients = {way: run.gradient(region) for way, region in regions.items()}
    largest = gradients[FLOOR].abs().max()
    difference = max(float((gradient - gradients[FLOOR]).abs().max() / largest) for gradient in gradients.values())
    ways = {way: lambda region=region: run.gradient(region) for way, region in regions.items()}
    ways |= {"observing pass without gradients": lambda: run.observe(run.x), UNIT: run.plain}
    return timed(f"a pass with gradients, {shape}", ways, rounds, {}), difference


class GradientPass:
    """A pass of the edit as a guided step takes it, both losses, where the host would sample."""

    def __init__(self, shape: Shape, guider: comfy.samplers.CFGGuider, options: dict) -> None:
        self.model, self.options = guider.inner_model, options
        self.cond = guider.conds["positive"]
        layers = transformer_layers(self.model.diffusion_model)
        decoder = frozenset(layer for layer in layers if layer.block == "output")
        self.layers = HookedLayers(decoder, frozenset(layers))
        self.x = (shape.latent() * SIGMA).to(guider.model_patcher.load_device)
        self.sigma = torch.full((1,), SIGMA, device=self.x.device)
        self.reference = self.observe(self.x + 1)

    @torch.no_grad()
    def plain(self) -> None:
        comfy.samplers.calc_cond_batch(self.model, [self.cond], self.x, self.sigma, self.options)

    def observe(self, x: Tensor):
        with nullcontext() if x.requires_grad else torch.no_grad():
            return observe(self.model, self.cond, x, self.sigma, self.options, self.layers)

    def gradient(self, region: Callable[[], AbstractContextManager]) -> Tensor:
        """The move of x, as long as the gradient times the noise level's factor."""
        weights = GuidanceWeights(0.1, 0.1, relative=False)
        with region():
            guidance = Guidance(weights, torch.Generator().manual_seed(0))
            return guidance.shift(self.observe, self.x, self.sigma[0], self.reference)


class Inside(comfy.samplers.Sampler):
    """Calls `work` with the guider and its options where the host would sample: with conditionings as the host processed them."""

    def __init__(self, work: Callable[[comfy.samplers.CFGGuider, dict], object]) -> None:
        self.work = work
        self.result: object = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        self.result = self.work(model_wrap, extra_args["model_options"])
        return latent_image


def run_inside(shape: Shape, work: Callable):
    """What `work` returns, outside of inference mode."""
    guider, sampler = comfy.samplers.CFGGuider(shape.model()), Inside(work)
    positive, negative = shape.conditionings(2)
    guider.set_conds(positive, negative)
    latent = shape.latent()
    guider.sample(torch.zeros_like(latent), latent, sampler, torch.tensor([SIGMA, 0.0]), disable_pbar=True)
    return sampler.result
