"""The U-Net and the text encoder, trained together on the autoencoder's latents."""

from functools import partial

import numpy as np
import torch
from torch import nn
from zerocon_pack.bridge import tabletop as bridge
from zerocon_pack.zerocon_core.tabletop import weights

from ..common import Run, export, log, write_atomically
from ..diffusion import TextEncoder, plain_attention, prepare, weight
from ..wording import Wording, word_ids
from .autoencoder import linear_part
from .dataset import RUNS, pick_pictures, scenes, shards
from .wording import WORDS, phrase

BATCH = 8


def build() -> tuple[nn.Module, TextEncoder, Wording, Run]:
    """Denoiser, text encoder, wording and their run, at the step it has reached."""
    denoiser, clip = bridge.build_model(bridge.TabletopLatentFormat()), bridge.build_clip()
    wording = Wording(partial(word_ids, clip), WORDS, phrase, scattered=0.3)
    text, run = prepare(denoiser, clip, wording.vocabulary(), "tabletop/diffusion")
    return denoiser, text, wording, run


def train(steps: int, until: int | None) -> None:
    """Minimise the weighted error of the predicted noise over all noise levels of the host's schedule."""
    denoiser, text, wording, run = build()
    sampling, data = denoiser.model_sampling, latents()
    subjects = scenes()
    attention = {"optimized_attention_override": plain_attention}

    def loss(generator: torch.Generator) -> torch.Tensor:
        rng = np.random.default_rng(generator.initial_seed())
        index, mirrored = rng.integers(len(data), size=BATCH), rng.integers(2, size=BATCH)
        rows = text.rows([wording.tokens(subjects[i], rng) for i in index])
        level = torch.randint(1000, (BATCH,), generator=generator)
        sigma = sampling.sigmas[level].view(-1, 1, 1, 1)
        clean = data[index, mirrored].float()
        noise = torch.randn(clean.shape, generator=generator)
        x = sampling.calculate_input(sigma, clean + sigma * noise)
        predicted = denoiser.diffusion_model(x, level.float(), context=text(rows), transformer_options=attention)
        return (weight(sigma) * (predicted - noise).square()).mean()

    def save() -> None:
        export(weights.FOLDER / "unet.safetensors", denoiser.diffusion_model.state_dict())
        export(weights.FOLDER / "text_encoder.safetensors", bridge.pack_text_encoder(text.weights()))

    run.train(loss, steps, until, after_save=save)


@torch.no_grad()
def latents() -> torch.Tensor:
    """Latents of the rendered scenes and of their mirror images, (N, 2, 16, 16, 16) in fp16, encoded shard by shard."""
    model, parts = linear_part(), []
    for number, images in enumerate(shards()):
        path = RUNS / "latents" / f"{number:03}.pt"
        if not path.exists():
            x = pick_pictures([images], torch.arange(len(images))) * 2.0 - 1.0
            both = torch.stack([model.encode(x), model.encode(x.flip(-1))], dim=1).half()
            write_atomically(path, partial(torch.save, both))
        parts.append(torch.load(path, weights_only=True))
    data = torch.cat(parts)
    log.info("%d latents, deviation %.3f", len(data), data.float().std())
    return data
