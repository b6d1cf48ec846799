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
        self.leaves = {name: value.clone() for name, value in self.parameters.items()}
        groups = [{"params": [leaf], "lr": learning_rate * RATES[name]} for name, leaf in self.leaves.items()]
        self.adam = torch.optim.Adam(groups, eps=1e-15)

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
        """One step of Adam. Colours stay displayable; what never had a gradient stays what it was, bit for bit."""
        if self.region is not None:
            gradients = {name: gradient * _along(self.region, gradient) for name, gradient in gradients.items()}
        for name, leaf in self.leaves.items():
            leaf.copy_(parameters[name])
            leaf.grad = gradients[name]
        self.adam.step()
        moved = {name: leaf.clone() for name, leaf in self.leaves.items()}
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
