"""The U-Net and the text encoder, trained together on the autoencoder's latents."""

from functools import partial

import comfy.clip_model
import numpy as np
import torch
from autoencoder import linear_part
from common import RUNS, Run, export, log, pack, reset_weights, write_atomically
from dataset import pick_pictures, scenes, shards
from torch import nn
from wording import UNKNOWN, Wording

bridge = pack("nodes.bridge.tabletop")

BATCH = 8
# Share of the unweighted loss that small noise levels keep, see `weight`.
FLOOR = 0.3


class TextEncoder(nn.Module):
    """The host's text encoder on a small table of the tokens in use; row 0 is the unknown word's and stays zero."""

    def __init__(self, encoder: nn.Module, vocabulary: list[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.table = nn.Embedding(len(vocabulary) + 1, bridge.config.TEXT_CONFIG["hidden_size"], padding_idx=0)
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


def _layer(layer: "comfy.clip_model.CLIPLayer", x: torch.Tensor, mask: torch.Tensor, attention: object) -> torch.Tensor:
    """The layer's own forward without its in-place additions, which autograd refuses."""
    x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
    return x + layer.mlp(layer.layer_norm2(x))


def build() -> tuple[nn.Module, TextEncoder, Wording, Run]:
    """Denoiser, text encoder, wording and their run, at the step it has reached."""
    denoiser = bridge.build_model(bridge.TabletopLatentFormat())
    reset_weights(denoiser.diffusion_model, seed=2)
    for name, module in denoiser.diffusion_model.named_modules():
        # Residual branches start silent.
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    clip = bridge.build_clip()
    wording = Wording(lambda text: [id for id, _ in clip.tokenize(text)["l"][0] if id < 49406])
    encoder = clip.cond_stage_model.clip_l.transformer
    reset_weights(encoder, seed=3)
    text = TextEncoder(encoder, wording.vocabulary())
    for module in (denoiser.diffusion_model, text):
        module.requires_grad_(True).train()
    # The table above stands in for it.
    encoder.text_model.embeddings.token_embedding.requires_grad_(False)
    return denoiser, text, wording, Run("diffusion", {"unet": denoiser.diffusion_model, "text": text}, peak=6e-4, decay=0.9995)


def weight(sigma: torch.Tensor) -> torch.Tensor:
    """Weight of the noise error, so that every noise level has about the same say.

    Below sigma 1 it is min-SNR's with a floor, because inversion needs small noise right too. Above, it grows with sigma: an
    object's colour is settled where the picture is still all noise, and there the plain error hardly notices it.
    """
    return (5.0 * sigma.square()).clamp(FLOOR, 1.0) * sigma.clamp(min=1.0)


def train(steps: int, until: int) -> None:
    """Minimise the weighted error of the predicted noise over all noise levels of the host's schedule."""
    denoiser, text, wording, run = build()
    sampling, data = denoiser.model_sampling, latents()
    subjects = scenes()
    attention = {"optimized_attention_override": _attention}

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
        export("unet", denoiser.diffusion_model.state_dict())
        export("text_encoder", bridge.pack_text_encoder(text.weights()))

    run.train(loss, steps, until, after_save=save)


def _attention(
    _host: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *_: object, **__: object
) -> torch.Tensor:
    """Plain attention: for so few tokens its backward pass is faster than that of the fused kernels."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


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
