"""Random splats and cameras, and a compositor that loops over pixels and splats."""

import math

import torch
from torch import Tensor

from zerocon_core.splats.gaussians import Camera, Splats


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int, seed: int = 0, dtype: torch.dtype = torch.float64, size: float = 0.12) -> Splats:
    """Splats in a ball of radius 1 around the origin."""
    g = generator(seed)
    rand = lambda *shape: torch.rand(shape, generator=g, dtype=torch.float64)
    means = torch.nn.functional.normalize(rand(count, 3) - 0.5, dim=-1) * rand(count, 1) ** (1 / 3)
    quats = rand(count, 4) - 0.5
    scales = size * (0.2 + rand(count, 3))
    return Splats(*(t.to(dtype) for t in (means, quats, scales, 0.05 + 0.94 * rand(count), rand(count, 3))))


def camera(width: int = 20, height: int = 16, distance: float = 3.0, turn: float = 0.3, dtype=torch.float64, fov: float = 45.0):
    """One that looks at the origin from `turn` radians beside the z axis."""
    c, s = math.cos(turn), math.sin(turn)
    viewmat = torch.tensor([[c, 0, s, 0], [0, 1, 0, 0.1], [-s, 0, c, distance], [0, 0, 0, 1]], dtype=dtype)
    focal = min(width, height) / 2 / math.tan(math.radians(fov) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, 1.1 * focal, height / 2], [0, 0, 1]], dtype=dtype)
    return Camera(viewmat, K, width, height)


def composited(splats: Splats, camera: Camera, background=(0.0, 0.0, 0.0), near=0.01, eps2d=0.3) -> tuple[Tensor, Tensor]:
    """Colours (H, W, 3) and coverage (H, W): 3DGS's equations, one splat at a time, from near to far, in float64."""
    seen = []
    R, t = camera.viewmat[:3, :3].double(), camera.viewmat[:3, 3].double()
    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    for i in range(len(splats)):
        x, y, z = (R @ splats.means[i].double() + t).tolist()
        if z <= near:
            continue
        w, a, b, c = torch.nn.functional.normalize(splats.quats[i].double(), dim=0).tolist()
        turned = torch.tensor(
            [
                [1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b)],
                [2 * (a * b + w * c), 1 - 2 * (a * a + c * c), 2 * (b * c - w * a)],
                [2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)],
            ],
            dtype=torch.float64,
        )
        covariance = turned @ torch.diag(splats.scales[i].double() ** 2) @ turned.T
        # Where the projection is linearised: at most 0.15 of a side outside of the picture.
        lx = max(-(cx + 0.15 * camera.width) / fx, min((camera.width - cx + 0.15 * camera.width) / fx, x / z))
        ly = max(-(cy + 0.15 * camera.height) / fy, min((camera.height - cy + 0.15 * camera.height) / fy, y / z))
        J = torch.tensor([[fx / z, 0, -fx * lx / z], [0, fy / z, -fy * ly / z]], dtype=torch.float64)
        flat = J @ R @ covariance @ R.T @ J.T + eps2d * torch.eye(2, dtype=torch.float64)
        (xx, xy), (_, yy) = torch.linalg.inv(flat).tolist()
        at = fx * x / z + cx, fy * y / z + cy
        seen.append((z, at, (xx, xy, yy), float(splats.opacities[i]), splats.colors[i].tolist()))
    seen.sort(key=lambda splat: splat[0])
    picture = torch.zeros(camera.height, camera.width, 3, dtype=torch.float64)
    covered = torch.zeros(camera.height, camera.width, dtype=torch.float64)
    for row in range(camera.height):
        for column in range(camera.width):
            light, colour = 1.0, [0.0, 0.0, 0.0]
            for _, (u, v), (xx, xy, yy), opacity, rgb in seen:
                dx, dy = column + 0.5 - u, row + 0.5 - v
                alpha = min(0.999, opacity * math.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy))
                if alpha >= 1 / 255 and light > 1e-4:
                    colour = [c + light * alpha * own for c, own in zip(colour, rgb, strict=True)]
                    light *= 1 - alpha
            behind = [c + light * b for c, b in zip(colour, background, strict=True)]
            picture[row, column] = torch.tensor(behind, dtype=torch.float64)
            covered[row, column] = 1 - light
    return picture, covered
