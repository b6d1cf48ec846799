"""What of splats an optimiser moves, in coordinates that may take any value: opacities as logits, scales as logarithms."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .gaussians import Camera, Splats
from .render import rasterization_on
from .views import Views, displayable

Trained = Literal["colors", "colors and opacity", "everything"]
TRAINED: tuple[Trained, ...] = get_args(Trained)
Parameters = Mapping[str, Tensor]

RATES = {"colors": 1.0, "opacities": 20.0, "means": 0.064, "scales": 2.0, "quats": 0.4}
"""Learning rates in units of that of the colours: those of PDS (Koo et al. 2024) to its rate of the base colour."""


def parameters_of(splats: Splats, trained: Trained) -> dict[str, Tensor]:
    """What an optimiser moves, by the names of `Splats`."""
    parameters = {"colors": splats.colors}
    if trained != "colors":
        parameters["opacities"] = splats.opacities.clamp(1e-6, 1 - 1e-6).logit()
    if trained == "everything":
        parameters |= {"means": splats.means, "scales": splats.scales.log(), "quats": splats.quats}
    return parameters


def splats_of(parameters: Parameters, splats: Splats) -> Splats:
    """`splats` with what was trained of them."""
    activated = {"opacities": torch.sigmoid, "scales": torch.exp}
    return replace(splats, **{name: activated.get(name, torch.clone)(value) for name, value in parameters.items()})


class Adam:
    """Adam (Kingma and Ba 2015) at a learning rate for each parameter, as a function from parameters to parameters.

    A parameter that never had a gradient stays what it was, bit for bit.
    """

    def __init__(self, rates: Mapping[str, float], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-15):
        self.rates, self.betas, self.eps = rates, betas, eps
        self.steps = 0
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def __call__(self, parameters: Parameters, gradients: Parameters) -> dict[str, Tensor]:
        self.steps += 1
        return {name: value - self.rates[name] * self.step(name, gradients[name]) for name, value in parameters.items()}

    def step(self, name: str, gradient: Tensor) -> Tensor:
        first, second = self.betas
        mean = self.means[name] = torch.lerp(gradient, self.means.get(name, torch.zeros_like(gradient)), first)
        square = self.squares[name] = torch.lerp(gradient**2, self.squares.get(name, torch.zeros_like(gradient)), second)
        return mean / (1 - first**self.steps) / ((square / (1 - second**self.steps)).sqrt() + self.eps)


class Training:
    """Splats that are trained by their pictures from several cameras, all of them or a region (N,).

    While only colours are trained, a view is drawn from what is kept of it, as far as `room` bytes go.
    """

    def __init__(
        self,
        splats: Splats,
        cameras: Sequence[Camera],
        background: Tensor,
        trained: Trained,
        learning_rate: float,
        region: Tensor | None = None,
        room: float = float("inf"),
    ):
        self.splats, self.background, self.region = splats, background, region
        self.views = Views(splats, cameras, room)
        self.parameters = parameters_of(splats, trained)
        self.adam = Adam({name: learning_rate * RATES[name] for name in self.parameters})

    def picture(self, parameters: Parameters, number: int) -> Tensor:
        """The picture (H, W, 3) of one camera, not kept within [0, 1], where gradients would end; differentiable."""
        if parameters.keys() == {"colors"}:
            return self.views[number].render(parameters["colors"], self.background)
        splats, camera = splats_of(parameters, self.splats), self.views.cameras[number].to(self.background)
        pictures, _ = rasterization_on(splats.means.device)(
            splats.means, splats.quats, splats.scales, splats.opacities, splats.colors,
            camera.viewmat[None], camera.K[None], camera.width, camera.height, backgrounds=self.background[None],
        )  # fmt: skip
        return pictures[0]

    def update(self, parameters: Parameters, gradients: Parameters) -> Parameters:
        """One step of the optimiser. Colours stay displayable."""
        if self.region is not None:
            gradients = {name: gradient * _along(self.region, gradient) for name, gradient in gradients.items()}
        moved = self.adam(parameters, gradients)
        return moved | {"colors": displayable(moved["colors"], self.splats.colors)}

    def trained(self, parameters: Parameters) -> Splats:
        """The splats with these parameters. Those outside of the region are what they were, bit for bit."""
        after = splats_of(parameters, self.splats)
        if self.region is None:
            return after
        kept = {
            name: torch.where(_along(self.region, getattr(after, name)), getattr(after, name), getattr(self.splats, name))
            for name in parameters
        }
        return replace(self.splats, **kept)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) as (N, 1, ...) beside `like` (N, ...)."""
    return values.view(-1, *(1,) * (like.dim() - 1))
