"""Refusals that several nodes share: one sentence that names the node, what it got and what it needs."""

import torch


def check_latent(node: str, samples: torch.Tensor) -> None:
    if samples.ndim != 4:
        raise ValueError(f"{node}: the latent is {tuple(samples.shape)}; it needs image latents (B, C, H, W)")
    if not torch.isfinite(samples).all():
        raise ValueError(f"{node}: the latent holds NaN or infinite values; check the image and the VAE that encoded it")


def only(node: str, name: str, values: list):
    """The value of an input that is no list. The host hands lists to all inputs of a node that takes one."""
    if len(values) != 1:
        raise ValueError(f"{node}: {name} came as a list of {len(values)}; it needs one value")
    return values[0]
