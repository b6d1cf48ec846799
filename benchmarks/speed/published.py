"""The published loops: one step of pix2pix-zero and one iteration of CDS, as their authors' code takes them.

Both run every pass under CFG and with explicit attention in every layer. `fused` gives them a fused kernel wherever they do not
read the probabilities themselves, which is what they would cost with PyTorch's own attention today.
"""

from collections.abc import Callable

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from .shapes import TOKENS, Passes

LAMBDA_XA = 0.1
W_CUT, CFG, STEP_SIZE = 3.0, 7.5, 0.0488

Attention = Callable[..., Tensor]


def attention(fused: bool, maps: list[Tensor] | None = None) -> Attention:
    """The override of all attention; the probabilities of cross-attention are kept in `maps`."""

    def attend(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        kept = maps is not None and k.shape[1] == TOKENS
        if fused and not kept:
            return attention_pytorch(q, k, v, heads)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        probabilities = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        if kept:
            maps.append(probabilities)
        return (probabilities @ v).transpose(1, 2).flatten(2)

    return attend


def pix2pix_zero_step(
    passes: Passes, x: Tensor, reference: Tensor, sigma: Tensor, sigma_next: Tensor, source: Tensor, edited: Tensor, cfg: float,
    fused: bool,
) -> Tensor:  # fmt: skip
    """One step from x (1, C, H, W): 2 + 6 + 2 sample-passes, counting one with gradients as three.

    `source` and `edited` are embeddings (2, tokens, d) of [negative, prompt]. Reference and edit run under CFG in batches of two,
    with gradients through both halves, and eps is computed again under CFG.
    """
    maps: list[Tensor] = []

    def denoise(x: Tensor, context: Tensor) -> Tensor:
        maps.clear()
        return passes(x, sigma, context, optimized_attention_override=attention(fused, maps))

    with torch.no_grad():
        denoise(reference.repeat(2, 1, 1, 1), source)
        kept = [m.clone() for m in maps]
    with torch.enable_grad():
        pair = x.repeat(2, 1, 1, 1).requires_grad_(True)
        denoise(pair, edited)
        loss = sum((m - r).square().sum((2, 3)).mean() for m, r in zip(maps, kept, strict=True))
        (gradient,) = torch.autograd.grad(loss, pair)
    maps.clear()
    pair = pair.detach() - LAMBDA_XA * (1 + sigma**2) * gradient
    with torch.no_grad():
        unconditional, conditional = denoise(pair, edited).chunk(2)
    denoised = unconditional + cfg * (conditional - unconditional)
    return pair[:1] + (pair[:1] - denoised) / sigma * (sigma_next - sigma)


def cds_iteration(
    passes: Passes, z: Tensor, z_src: Tensor, noise: Tensor, sigma: Tensor, source: Tensor, target: Tensor,
    weights: list[Tensor], loss: Callable[[list[tuple[Tensor, Tensor]]], Tensor], fused: bool,
) -> Tensor:  # fmt: skip
    """One iteration from z (1, C, H, W): 4 sample-passes without gradients and 2 with.

    `source` and `target` are embeddings (2, tokens, d) of [negative, prompt], `loss` compares feature maps. Source and target run
    under CFG without gradients, then the target under CFG with them, also those of the self-attention `weights`, which nobody
    reads.
    """
    features: list[Tensor] = []

    def read(n: Tensor, options: dict) -> Tensor:
        if options["block"][0] == "output":
            height, width = options["activations_shape"][-2:]
            features.append(n.unflatten(1, (height, width)).permute(0, 3, 1, 2))
        return n

    def eps(x: Tensor, context: Tensor) -> Tensor:
        features.clear()
        options = {"optimized_attention_override": attention(fused), "patches": {"attn1_output_patch": [read]}}
        unconditional, conditional = ((x - passes(x, sigma, context, **options)) / sigma).chunk(2)
        return unconditional + CFG * (conditional - unconditional)

    with torch.no_grad():
        both = torch.stack([source, target], 1).flatten(0, 1)
        source_eps, target_eps = eps(torch.cat([z_src, z] * 2) + sigma * noise, both).chunk(2)
        reference = [maps[2:3].clone() for maps in features]
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        eps((z + sigma * noise).repeat(2, 1, 1, 1), target)
        cut = loss([(maps[1:], r) for maps, r in zip(features, reference, strict=True)])
        gradient, *_ = torch.autograd.grad(cut.sum(), [z, *weights], allow_unused=True)
    features.clear()
    return z.detach() - STEP_SIZE * (target_eps - source_eps + W_CUT * z[0, 0].numel() / 2000 * gradient)
