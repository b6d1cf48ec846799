"""The tabletop's autoencoder: a linear transform of patches, exact and local, and a small network that refines its inverse.

A latent at one place is what the patch of 8x8 pixels there holds, and nothing else: what an edit leaves alone in the latent, it
leaves alone in the picture but for the few pixels around that the refinement looks at.

Latents are whitened halfway: of unit variance over all channels together, and in each of the square root of its component's
deviation. Whitened wholly, the component that is the brightness of a patch would weigh no more in a diffusion model's loss than
the faintest detail, 26 times smaller in the picture, and samples would be mottled by its errors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import weights
from .config import DOWNSCALE, LATENT_CHANNELS

PATCH_VALUES = 3 * DOWNSCALE**2


class PatchAutoencoder(nn.Module):
    """Principal components of patches as latents, decoded by their inverse plus a learned residual.

    The names `encode` and `decode` and pictures (B, 3, H, W) in [-1, 1] are those of the host's autoencoders.
    """

    mean: Tensor
    components: Tensor
    scales: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(PATCH_VALUES))
        self.register_buffer("components", torch.zeros(LATENT_CHANNELS, PATCH_VALUES))
        self.register_buffer("scales", torch.ones(LATENT_CHANNELS))
        self.refine = Refinement()

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, 16, H / 8, W / 8)."""
        patches = F.pixel_unshuffle(images, DOWNSCALE) - _channels(self.mean)
        return F.conv2d(patches, (self.components / self.scales[:, None])[..., None, None])

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W)."""
        residual: Tensor = self.refine(latents)
        return self.decode_linear(latents) + residual

    def decode_linear(self, latents: Tensor) -> Tensor:
        """The nearest pictures that `encode` alone can account for."""
        inverse = (self.components * self.scales[:, None]).T[..., None, None]
        return F.pixel_shuffle(F.conv2d(latents, inverse) + _channels(self.mean), DOWNSCALE)


class Refinement(nn.Sequential):
    """What the linear inverse lacks of the picture: residual blocks at 8, 4 and 2 pixels a step."""

    def __init__(self) -> None:
        first, second, third = 128, 64, 48
        out = nn.Conv2d(third, 3 * 4, 3, padding=1)
        for parameter in out.parameters():
            nn.init.zeros_(parameter)
        super().__init__(
            nn.Conv2d(LATENT_CHANNELS, first, 3, padding=1),
            *(Residual(first) for _ in range(3)),
            nn.Conv2d(first, 4 * second, 1),
            nn.PixelShuffle(2),
            *(Residual(second) for _ in range(2)),
            nn.Conv2d(second, 4 * third, 1),
            nn.PixelShuffle(2),
            *(Residual(third) for _ in range(2)),
            out,
            nn.PixelShuffle(2),
        )


class Residual(nn.Module):
    """Two convolutions beside the identity; no norm, so that a place depends on its neighbourhood only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.second(F.silu(self.first(F.silu(x))))
        return x + residual


def load_autoencoder() -> PatchAutoencoder:
    """The autoencoder with the shipped weights."""
    return weights.load(PatchAutoencoder(), "autoencoder")


def principal_components(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (192,), components (16, 192) and scales (16,) of the patches of pictures (B, 3, H, W) in [-1, 1]."""
    patches = F.pixel_unshuffle(images, DOWNSCALE).movedim(1, -1).reshape(-1, PATCH_VALUES).double()
    variances, vectors = torch.linalg.eigh(torch.cov(patches.T))
    deviations = variances.flip(0)[:LATENT_CHANNELS].sqrt()
    scales = (deviations * deviations.mean()).sqrt()
    return patches.mean(dim=0).float(), vectors.T.flip(0)[:LATENT_CHANNELS].float(), scales.float()


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]
