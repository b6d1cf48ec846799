"""Splats, and the camera that looks at them. The frame of both is 3DGS's: x to the right, y down, z forward."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Splats:
    """N Gaussians in world coordinates, each of one colour from all sides."""

    means: Tensor
    """(N, 3)"""
    quats: Tensor
    """Rotations (N, 4), wxyz, of any length but 0."""
    scales: Tensor
    """Standard deviations (N, 3) along the turned axes."""
    opacities: Tensor
    """(N,) in [0, 1]."""
    colors: Tensor
    """(N, 3), display values; those of a picture are in [0, 1]."""

    def __len__(self) -> int:
        return len(self.means)

    def to(self, device: torch.device) -> "Splats":
        return Splats(*(t.to(device) for t in (self.means, self.quats, self.scales, self.opacities, self.colors)))


@dataclass(frozen=True)
class Camera:
    """A pinhole, and the picture that it makes. Pixel (i, j) is seen through its middle, (i + 0.5, j + 0.5), as in gsplat."""

    viewmat: Tensor
    """World to camera (4, 4)."""
    K: Tensor
    """Intrinsics (3, 3) in pixels."""
    width: int
    height: int

    def to(self, like: Tensor) -> "Camera":
        return replace(self, viewmat=self.viewmat.to(like), K=self.K.to(like))
