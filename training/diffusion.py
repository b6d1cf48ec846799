"""The U-Net and the text encoder, trained together on the autoencoder's latents."""

from functools import partial

import comfy.clip_model
import comfy.model_base
import comfy.sd
import numpy as np
import torch
from torch import nn
from zerocon_pack.bridge import toyworld as bridge
from zerocon_pack.zerocon_core.toyworld import scene, weights

from .common import RUNS, WEIGHTS, Run, export, log, reset_weights, write_atomically
from .dataset import pick, pictures, scenes, tensor
from .wording import UNKNOWN, Wording, phrase, word_ids

BATCH = 16
LATENT_COUNT = 24_000
# Share of the unweighted loss that small noise levels keep, see `weight`.
FLOOR = 0.3


class TextEncoder(nn.Module):
    """The host's text encoder on a small table of the tokens in use; row 0 is the unknown word's and stays zero."""

    def __init__(self, encoder: nn.Module, vocabulary: list[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.table = nn.Embedding(len(vocabulary) + 1, encoder.text_projection.out_features, padding_idx=0)
        self.vocabulary = vocabulary
        self._row = {UNKNOWN: 0} | {id: row for row, id in enumerate(vocabulary, start=1)}
        nn.init.normal_(self.table.weight[1:], std=0.3)
        nn.init.normal_(encoder.text_model.embeddings.position_embedding.weight, std=0.1)
        nn.init.eye_(encoder.text_projection.weight)
        for layer in encoder.text_model.encoder.layers:
            layer.forward = partial(_layer, layer)

    def rows(self, ids: list[list[int]]) -> torch.Tensor:
        """Token ids as rows of the table, (B, 77)."""
        return torch.tensor([[self._row[id] for id in line] for line in ids])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Context (B, 77, C) for the U-Net."""
        return self.encoder(embeds=self.table(rows), num_tokens=[rows.shape[1]] * rows.shape[0])[0]

    def weights(self) -> dict[str, torch.Tensor]:
        """The host's state dict with the whole token table."""
        state = self.encoder.state_dict()
        tokens = torch.zeros_like(state[bridge.TOKENS])
        tokens[self.vocabulary] = self.table.weight[1:].detach()
        return state | {bridge.TOKENS: tokens}


def _layer(layer: comfy.clip_model.CLIPLayer, x: torch.Tensor, mask: torch.Tensor, attention: object) -> torch.Tensor:
    """The layer's own forward without its in-place additions, which autograd refuses."""
    x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
    return x + layer.mlp(layer.layer_norm2(x))


def build() -> tuple[nn.Module, TextEncoder, Wording, Run]:
    """Denoiser, text encoder, wording and their run, at the step it has reached."""
    denoiser, clip = bridge.build_model(bridge.ToyLatentFormat()), bridge.build_clip()
    words = (*scene.COLOURS, *scene.SHAPES, *scene.PATTERNS, "a", "an", "the", "on", "background")
    wording = Wording(partial(word_ids, clip), words, phrase, scattered=0.5)
    text, run = prepare(denoiser, clip, wording.vocabulary(), "diffusion")
    return denoiser, text, wording, run


def prepare(
    denoiser: comfy.model_base.BaseModel, clip: comfy.sd.CLIP, vocabulary: list[int], name: str
) -> tuple[TextEncoder, Run]:
    """Give a denoiser and a text encoder their initial weights, or those that the run called `name` has reached."""
    reset_weights(denoiser.diffusion_model, seed=2)
    for place, module in denoiser.diffusion_model.named_modules():
        # Residual branches start silent.
        if place.endswith(("out_layers.3", "proj_out")) or place == "out.2":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    encoder = clip.cond_stage_model.clip_l.transformer
    reset_weights(encoder, seed=3)
    text = TextEncoder(encoder, vocabulary)
    for module in (denoiser.diffusion_model, text):
        module.requires_grad_(True).train()
    # The table above stands in for it.
    encoder.text_model.embeddings.token_embedding.requires_grad_(False)
    return text, Run(name, {"unet": denoiser.diffusion_model, "text": text}, peak=6e-4, decay=0.9995)


def weight(sigma: torch.Tensor) -> torch.Tensor:
    """Weight of the noise error, so that every noise level has about the same say.

    Below sigma 1 it is min-SNR's with a floor, because inversion needs small noise right too. Above, it grows with sigma: an
    object's colour is settled where the picture is still all noise, and there the plain error hardly notices it.
    """
    return (5.0 * sigma.square()).clamp(FLOOR, 1.0) * sigma.clamp(min=1.0)


def train(steps: int) -> None:
    """Minimise the weighted error of the predicted noise over all noise levels of the host's schedule."""
    denoiser, text, wording, run = build()
    sampling = denoiser.model_sampling
    data, subjects = latents(), scenes()[:LATENT_COUNT]
    attention = {"optimized_attention_override": plain_attention}

    def loss(generator: torch.Generator) -> torch.Tensor:
        index = pick(generator, BATCH, LATENT_COUNT)
        rng = np.random.default_rng(generator.initial_seed())
        rows = text.rows([wording.tokens(subjects[i], rng) for i in index])
        level = torch.randint(1000, (BATCH,), generator=generator)
        sigma = sampling.sigmas[level].view(-1, 1, 1, 1)
        noise = torch.randn(BATCH, *data.shape[1:], generator=generator)
        x = sampling.calculate_input(sigma, data[index].float() + sigma * noise)
        # Faster on a CPU with bf16 instructions; the weights stay fp32.
        with torch.autocast("cpu", torch.bfloat16):
            predicted = denoiser.diffusion_model(x, level.float(), context=text(rows), transformer_options=attention)
        return (weight(sigma) * (predicted.float() - noise).square()).mean()

    def save() -> None:
        export(WEIGHTS / "unet.safetensors", denoiser.diffusion_model.state_dict())
        export(WEIGHTS / "text_encoder.safetensors", bridge.pack_text_encoder(text.weights()))

    run.train(loss, steps, after_save=save)


def plain_attention(
    _host: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *_: object, **__: object
) -> torch.Tensor:
    """Plain attention: for so few tokens its backward pass is faster than that of the fused kernels."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def latents() -> torch.Tensor:
    """Scaled latents of the first training scenes, (N, 4, h, w) in fp16, encoded once with the shipped autoencoder."""
    path = RUNS / "latents.pt"
    if not path.exists():
        log.info("encoding %d scenes", LATENT_COUNT)
        state = weights.read("vae")
        vae, scale = bridge.build_vae(state), state["latent.scale"]
        images, _ = pictures()
        with torch.no_grad():
            parts = [_encode(vae, tensor(images[i : i + 100])) * scale for i in range(0, LATENT_COUNT, 100)]
        write_atomically(path, lambda scratch: torch.save(torch.cat(parts).half(), scratch))
    return torch.load(path, weights_only=True)


def _encode(vae: object, images: torch.Tensor) -> torch.Tensor:
    return vae.first_stage_model.encode(images * 2.0 - 1.0)
