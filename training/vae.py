"""The autoencoder: the host's AutoencoderKL at a quarter of the image's resolution."""

import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors.torch import save_file
from torch.nn import functional as F
from zerocon_pack.zerocon_core.toyworld import config, scene

from .common import WEIGHTS, Run, log, reset_weights, write_atomically
from .dataset import pick, pictures, tensor

BATCH = 8
KL_WEIGHT = 1e-4
# An error in the object is seen and classified; one in the background is not.
OBJECT_WEIGHT = 2.0


def build() -> tuple[AutoencoderKL, Run]:
    """The model and its run, at the step it has reached."""
    model = AutoencoderKL(**config.VAE_PARAMS).train()
    reset_weights(model, seed=1)
    return model, Run("vae", {"vae": model}, peak=1e-3)


def moments(model: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log variance of the latent, each (B, 4, h, w), for images (B, 3, H, W) in [0, 1]."""
    mean, log_variance = model.quant_conv(model.encoder(images * 2.0 - 1.0)).float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode(model: AutoencoderKL, latent: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W), about [0, 1] and not clamped."""
    return model.decoder(model.post_quant_conv(latent)).float() * 0.5 + 0.5


def train(steps: int) -> None:
    """Minimise a weighted reconstruction error with a slight pull of the latents to the unit normal."""
    model, run = build()
    images, masks = pictures()

    def loss(generator: torch.Generator) -> torch.Tensor:
        index = pick(generator, BATCH).numpy()
        x = tensor(images[index])
        weight = 1.0 + OBJECT_WEIGHT * torch.from_numpy(masks[index]).float()[:, None] / 255.0
        # Nearly twice as fast on a CPU with bf16 instructions, and the weights stay fp32.
        with torch.autocast("cpu", torch.bfloat16):
            mean, log_variance = moments(model, x)
            noise = torch.randn(mean.shape, generator=generator)
            y = decode(model, mean + noise * (0.5 * log_variance).exp())
        error = 2.0 * (y - x)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        return (weight * (error.abs() + 4.0 * error.square())).mean() + KL_WEIGHT * divergence

    def report() -> None:
        log.info("vae step %d held-out PSNR %.2f dB", run.step, psnr(model))

    run.train(loss, steps, after_save=report)
    run.use_average(lambda: export(model))


def psnr(model: AutoencoderKL, count: int = 64) -> float:
    """Mean PSNR in dB of the reconstruction of `count` held-out scenes."""
    x = torch.stack([torch.from_numpy(scene.render(s)) for s in scene.held_out_scenes(count)]).movedim(-1, 1)
    y = decode(model, moments(model, x)[0]).clamp(0.0, 1.0)
    return float((-10.0 * torch.log10(F.mse_loss(y, x, reduction="none").mean(dim=(1, 2, 3)))).mean())


def export(model: AutoencoderKL) -> None:
    """Write the weights as they ship, with the latents' scale and their linear preview."""
    images, _ = pictures()
    x = tensor(images[:1024])
    latent = torch.cat([moments(model, part)[0] for part in x.split(64)])
    scale = 1.0 / latent.std()
    # Least squares from the scaled latent to the shrunk image in [-1, 1], which is what the host's previewer expects.
    inputs = F.pad((latent * scale).movedim(1, -1).reshape(-1, config.LATENT_CHANNELS), (0, 1), value=1.0)
    targets = (F.avg_pool2d(x, config.DOWNSCALE) * 2.0 - 1.0).movedim(1, -1).reshape(-1, 3)
    factors = torch.linalg.lstsq(inputs, targets).solution
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    tensors |= {"latent.scale": scale, "latent.rgb_factors": factors[:-1].contiguous(), "latent.rgb_bias": factors[-1].clone()}
    write_atomically(WEIGHTS / "vae.safetensors", lambda path: save_file(tensors, path))
