"""Structure distance (Tumanyan et al. 2022): what stays when appearance changes, seen in the keys of a DINO transformer."""

import torch
from torch import Tensor


def self_similarity(keys: Tensor) -> Tensor:
    """Cosine similarity of each token's key to each other's: (B, T, C) to (B, T, T)."""
    lengths: Tensor = torch.linalg.vector_norm(keys, dim=2, keepdim=True)
    return keys @ keys.transpose(1, 2) / (lengths @ lengths.transpose(1, 2)).clamp(min=1e-8)


def structure_distance(source: Tensor, edited: Tensor) -> Tensor:
    """Mean squared difference of the self-similarities, (B,), of keys (B, T, C) with the heads concatenated."""
    return (self_similarity(source) - self_similarity(edited)).square().mean((1, 2))
