"""Frechet distance between sets of images (Heusel et al. 2017)."""

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
    covariance_a, covariance_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    # The eigenvalues of a product of two positive semi-definite matrices are real and not negative, up to rounding.
    roots = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp(min=0.0).sqrt()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + covariance_a.trace() + covariance_b.trace() - 2.0 * roots.sum())
