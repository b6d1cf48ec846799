"""How the host's models noise an image."""

from collections.abc import Iterable

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...zerocon_core.noising import Noising


def noising_of(model_sampling: torch.nn.Module) -> Noising:
    """The way of a model's `model_sampling`. Raises ValueError for one that is neither of the two that the core knows."""
    noising = Noising(flow=isinstance(model_sampling, comfy.model_sampling.CONST))
    sigma, one, zero = torch.tensor(0.3), torch.ones(1), torch.zeros(1)
    for latent, noise in ((one, zero), (zero, one)):
        if not torch.allclose(model_sampling.noise_scaling(sigma, noise, latent), noising.noised(latent, noise, sigma)):
            raise ValueError(
                f"the model noises an image as {type(model_sampling).__mro__[2].__name__} does, which is neither adding noise "
                "nor blending with it; use a model that predicts eps, v or velocity"
            )
    return noising


def levels_at(model: ModelPatcher, shares: Iterable[float]) -> Tensor:
    """Noise levels at shares of the model's schedule: 0 is the least noise, 1 the most, 0.5 the middle of its timesteps.

    Every schedule has these, those too that are continuous and have no table of timesteps (EDM).
    """
    sampling = model.get_model_object("model_sampling")
    levels = torch.tensor([sampling.percent_to_sigma(1 - share) for share in shares])
    return levels.clamp(float(sampling.sigma_min), float(sampling.sigma_max))  # the host's ends are 0 and a billion


def is_flow(model: ModelPatcher) -> bool:
    """Whether `model` interpolates between image and noise (SD3, FLUX) instead of adding noise to the image."""
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
