"""The autoencoder: principal components of the first pictures, then the refinement of their inverse."""

import torch
from torch.nn import functional as F
from zerocon_pack.zerocon_core.tabletop import weights
from zerocon_pack.zerocon_core.tabletop.autoencoder import PatchAutoencoder, principal_components

from ..common import Run, export, log, write_atomically
from .dataset import RUNS, held_out_pictures, pick_pictures, shards

BATCH = 4
FIRST = 1_000  # pictures that the principal components are those of
# What sampling leaves in a latent is not quite that of any picture.
LATENT_NOISE = 0.02


def linear_part() -> PatchAutoencoder:
    """The autoencoder with its final encoder and an untrained refinement."""
    torch.manual_seed(1)
    model = PatchAutoencoder()
    path = RUNS / "components.pt"
    if not path.exists():
        images = pick_pictures(shards(), torch.arange(FIRST)) * 2.0 - 1.0
        components = principal_components(images)
        write_atomically(path, lambda scratch: torch.save(components, scratch))
    for buffer, value in zip((model.mean, model.components, model.scales), torch.load(path), strict=True):
        buffer.copy_(value)
    return model


def train(steps: int, until: int | None) -> None:
    """Minimise the error of the refined pictures."""
    model, images = linear_part(), shards()
    run = Run("tabletop/autoencoder", {"autoencoder": model}, peak=1e-3)
    held_out = held_out_pictures(64)

    def loss(generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(sum(map(len, images)), (BATCH,), generator=generator)
        x = pick_pictures(images, index) * 2.0 - 1.0
        latent = model.encode(x)
        latent = latent + LATENT_NOISE * torch.randn(latent.shape, generator=generator)
        error = (model.decode(latent) - x) / 2.0
        return (error.abs() + 4.0 * error.square()).mean()

    def report() -> None:
        log.info("autoencoder step %d held-out PSNR %.2f dB", run.step, psnr(model, held_out))
        export(weights.FOLDER / "autoencoder.safetensors", model.state_dict(), exact=("mean", "components", "scales"))

    log.info("the linear part alone: %.2f dB", psnr(model, held_out, linear=True))
    run.train(loss, steps, until, after_save=report)


@torch.no_grad()
def psnr(model: PatchAutoencoder, images: torch.Tensor, linear: bool = False) -> float:
    """Mean PSNR in dB of the reconstructions of pictures (N, 3, H, W) in [0, 1]."""
    decode = model.decode_linear if linear else model.decode
    parts = [decode(model.encode(x * 2.0 - 1.0)) / 2.0 + 0.5 for x in images.split(16)]
    error = F.mse_loss(torch.cat(parts).clamp(0.0, 1.0), images, reduction="none").mean(dim=(1, 2, 3))
    return float((-10.0 * error.log10()).mean())
