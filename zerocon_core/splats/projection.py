"""Splats as ellipses in a picture: EWA splatting (Zwicker et al. 2001) as 3DGS and gsplat ("classic") do it."""

from typing import NamedTuple

import torch
from torch import Tensor

from .gaussians import Camera

LINEAR_WITHIN = 0.3 / 2
"""The projection is linearised at most this share of the picture's side beyond its border (gsplat)."""


class Ellipses(NamedTuple):
    """What a camera sees of N splats, in pixels."""

    centres: Tensor
    """(N, 2)"""
    conics: Tensor
    """Inverse covariances (N, 3): the entries xx, xy and yy."""
    deviations: Tensor
    """Standard deviations (N, 2) in x and y."""
    depths: Tensor
    """(N,), in world units."""


def rotations(quats: Tensor) -> Tensor:
    """Rotation matrices (N, 3, 3) of quaternions (N, 4), wxyz."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).view(-1, 3, 3)  # fmt: skip


def project(means: Tensor, quats: Tensor, scales: Tensor, camera: Camera, near_plane: float, eps2d: float) -> Ellipses:
    """The ellipses of splats (N, ...). `eps2d` is added to the variances in the picture, so that none is thinner than a pixel.

    What lies nearer than `near_plane` is given as if it lay there; its depth says that it does not.
    """
    turn, K = camera.viewmat[:3, :3], camera.K
    points = means @ turn.T + camera.viewmat[:3, 3]
    depths = points[:, 2]
    z = depths.clamp_min(near_plane)
    focal, middle = torch.stack([K[0, 0], K[1, 1]]), K[:2, 2]
    size = torch.tensor([camera.width, camera.height]).to(K)
    beyond = LINEAR_WITHIN * size
    slope = points[:, :2] / z[:, None]
    # gsplat linearises where the splat is, but not far outside of the picture, where a line is no likeness of the projection.
    at = torch.minimum(torch.maximum(slope, -(middle + beyond) / focal), (size - middle + beyond) / focal)
    along = focal / z[:, None]
    # The rows of the projection's derivative: (f / z, 0, -f x / z^2) and (0, f / z, -f y / z^2).
    jacobian = torch.diag_embed(along)
    jacobian = torch.cat([jacobian, -(along * at)[..., None]], dim=-1)
    spread = jacobian @ turn @ (rotations(quats) * scales[:, None, :])
    covariance = spread @ spread.mT
    xx, xy, yy = covariance[:, 0, 0] + eps2d, covariance[:, 0, 1], covariance[:, 1, 1] + eps2d
    determinant = (xx * yy - xy * xy).clamp_min(1e-10)
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[:, None]
    return Ellipses(slope * focal + middle, conics, torch.stack([xx, yy], dim=-1).sqrt(), depths)
