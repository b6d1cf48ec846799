"""Frechet distance between sets of images (Heusel et al. 2017)."""

import math

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the Gaussians that two sets of features (N, C) and (M, C) have the mean and covariance of; FID on Inception's.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). Biased upwards for few images: compare only sets of the same size.
    Raises ValueError for fewer than two images a set.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"the Frechet distance needs at least 2 images a set, got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    means = (a.mean(0) - b.mean(0)).square().sum()
    # With S_a = A^T A and S_b = B^T B, the eigenvalues of S_a S_b are the squares of the singular values of A B^T. A has no more
    # rows than the set has images: for a few of them this takes milliseconds where Inception's covariances take seconds.
    a, b = covariance_factor(a), covariance_factor(b)
    distance = means + a.square().sum() + b.square().sum() - 2.0 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(distance))  # rounding takes equal sets below 0


def covariance_factor(features: Tensor) -> Tensor:
    """A with A^T A the covariance of features (N, C), (min(N, C), C)."""
    factor: Tensor = torch.linalg.qr(features - features.mean(0), mode="r").R
    return factor / math.sqrt(len(features) - 1)
