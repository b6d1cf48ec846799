"""Seconds of a pass with gradients against plain autograd with the same hooks and losses on the same float32 weights."""

import torch
from torch import Tensor
from zerocon_pack.bridge.loops.hosted import Run, guider_of, run_hosted
from zerocon_pack.bridge.model.attention import observe
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers
from zerocon_pack.zerocon_core.methods.cds import Recording
from zerocon_pack.zerocon_core.methods.guidance import Guidance, GuidanceWeights
from zerocon_pack.zerocon_core.observation import Observation

from .shapes import Shape
from .timing import Timing, timed

UNIT = "a pass"
FLOOR = "plain autograd"
AGAINST = (FLOOR,)
SIGMA = 5.0


def measure(shape: Shape, rounds: int) -> tuple[Timing, float]:
    """The timing, and the largest difference between the gradients of all ways, relative to the largest gradient."""
    positive, _ = shape.conditionings(2)
    guider, latent = guider_of(shape.model(), positive=positive), shape.latent()
    return run_hosted(guider, lambda run: compare(GradientPass(shape, run), shape, rounds), latent, torch.tensor([SIGMA, 0.0]))


def compare(ours: "GradientPass", shape: Shape, rounds: int) -> tuple[Timing, float]:
    regions: dict[str, Recording] = {
        FLOOR: torch.enable_grad,
        "gradient pass": ours.run.recording(),
        "gradient pass, checkpointing": ours.run.recording(checkpointing=True),
    }
    gradients = {way: ours.gradient(region) for way, region in regions.items()}
    largest = gradients[FLOOR].abs().max()
    difference = max(float((gradient - gradients[FLOOR]).abs().max() / largest) for gradient in gradients.values())
    ways = {way: lambda region=region: ours.gradient(region) for way, region in regions.items()}
    ways |= {"observing pass without gradients": lambda: ours.observe(ours.x), UNIT: ours.plain}
    return timed(f"a pass with gradients, {shape}", ways, rounds, {}), difference


class GradientPass:
    """A pass of the edit as a guided step takes it, both losses, where the host would sample."""

    def __init__(self, shape: Shape, run: Run) -> None:
        self.run, self.cond = run, run.conds["positive"]
        layers = transformer_layers(run.model.diffusion_model)
        decoder = frozenset(layer for layer in layers if layer.block == "output")
        self.layers = HookedLayers(decoder, frozenset(layers))
        self.x = (shape.latent() * SIGMA).to(run.latent)
        self.sigma = torch.full((1,), SIGMA, device=self.x.device)
        self.reference = self.observe(self.x + 1)

    def plain(self) -> None:
        self.run.ask([self.cond], self.x, self.sigma[0])

    def observe(self, x: Tensor) -> Observation:
        return observe(self.run.model, self.cond, x, self.sigma, self.run.options, self.layers, differentiable=True)

    def gradient(self, region: Recording) -> Tensor:
        """The move of x, as long as the gradient times the noise level's factor."""
        weights = GuidanceWeights(0.1, 0.1, relative=False)
        with region():
            guidance = Guidance(self.run.noising, weights, torch.Generator().manual_seed(0))
            return guidance.shift(self.observe, self.x, self.sigma[0], self.reference)
