"""The host's SPLAT and its cameras as the core's, and back.

A splat's frame is 3DGS's, y down and z forward; a camera's is the page's (three.js), y up, looking down -z. One is the other
turned by half around x.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..zerocon_core.splats.gaussians import Camera, Splats

SH_DC = 0.28209479177387814
"""The constant spherical harmonic: a splat's base colour is 0.5 + SH_DC * its first coefficient."""
FOV = 35.0
"""Of a camera that does not tell its own, as everywhere in the host."""
FILLED = 0.9
"""Share of the picture that a framed splat fills, as in the host."""
TO_SPLAT = torch.tensor([1.0, -1.0, -1.0])
FIELDS = {"means": "positions", "scales": "scales", "quats": "rotations", "opacities": "opacities", "colors": "sh"}

CameraInfo = dict[str, Any]


@dataclass(frozen=True)
class Cameras:
    """Several cameras of the host and the side of their square pictures in pixels."""

    infos: tuple[CameraInfo, ...]
    size: int

    def __len__(self) -> int:
        return len(self.infos)

    def pinholes(self) -> list[Camera]:
        return [pinhole(info, self.size, self.size) for info in self.infos]


def splat_device() -> torch.device:
    """Where splats are drawn: the GPU if it is CUDA, else the CPU, since transmittance is summed in float64."""
    device = comfy.model_management.get_torch_device()
    return device if device.type == "cuda" else torch.device("cpu")


def splats_from(splat: Any) -> Splats:
    """The one splat of a SPLAT, in float32, as tensors that gradients can be taken of. Its colours are the base colours.

    Raises ValueError for anything else.
    """
    if not all(hasattr(splat, name) for name in FIELDS.values()):
        raise ValueError(
            f"this is a {type(splat).__name__}; it needs a splat, such as TripoSplat makes or Get Splat reads from a file"
        )
    if len(splat.positions) != 1:
        raise ValueError(f"the splat is a batch of {len(splat.positions)}; it needs one splat, so give them one by one")
    count = length(splat)
    if count == 0:
        raise ValueError("the splat is empty; check the node or the file that it comes from")
    with torch.inference_mode(False):
        means, scales, quats, opacities, sh = (
            getattr(splat, name)[0, :count].detach().float().to(splat_device(), copy=True)
            for name in ("positions", "scales", "rotations", "opacities", "sh")
        )
        for tensor in (means, scales, quats, opacities, sh):
            if not torch.isfinite(tensor).all():
                raise ValueError("the splat holds NaN or infinite values; check the node or the file that it comes from")
        return Splats(means, quats, scales, opacities[:, 0], 0.5 + SH_DC * sh[:, 0])


def length(splat: Any) -> int:
    return splat.positions.shape[1] if splat.counts is None else int(splat.counts[0])


def sh_degree(splat: Any) -> int:
    """0 where each splat has one colour from all sides."""
    return math.isqrt(splat.sh.shape[2]) - 1


def splat_with(splat: Any, before: Splats, after: Splats) -> Any:
    """A copy of the SPLAT `before` was taken from, with what `after` changes. What is equal in both keeps its bits.

    View-dependent colour is kept as it is.
    """
    edited, count = copy.copy(splat), length(splat)
    for name, field in FIELDS.items():
        old, new = getattr(before, name), getattr(after, name).detach()
        if name == "quats":
            new = torch.where(new == old, new, torch.nn.functional.normalize(new, dim=-1))
        tensor = getattr(splat, field).clone()
        target = tensor[0, :count, 0] if name == "colors" else tensor[0, :count]
        value = ((new - 0.5) / SH_DC if name == "colors" else new).view(target.shape).to(target)
        target.copy_(torch.where((new != old).view(target.shape).to(target.device), value, target))
        setattr(edited, field, tensor)
    return edited


def pinhole(info: Mapping[str, Any], width: int, height: int) -> Camera:
    """A camera of the host as the core's. Raises ValueError for an orthographic one."""
    if info.get("cameraType") == "orthographic":
        raise ValueError("the camera is orthographic; it needs a perspective one, so choose perspective in Create Camera Info")
    eye = _vector(info, "position") * TO_SPLAT
    if quaternion := info.get("quaternion"):
        axes = _axes(*(float(quaternion.get(name, name == "w")) for name in "wxyz"))
        right, up, backward = (axis * TO_SPLAT for axis in axes)
        rows = torch.stack([right, -up, -backward])
    else:
        forward = torch.nn.functional.normalize(_vector(info, "target") * TO_SPLAT - eye, dim=0)
        right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), forward), dim=0)
        rows = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat = torch.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rows, -rows @ eye
    fov, zoom = float(info.get("fov") or FOV), float(info.get("zoom") or 1.0)
    # The host spans the angle over the shorter side.
    focal = min(width, height) / 2 / math.tan(math.radians(fov) / 2) * zoom
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Camera(viewmat, K, width, height)


def framing(splats: Splats, pitch: float, distance: float, fov: float) -> CameraInfo:
    """A camera in front of the splats, `pitch` degrees above them, that looks at their middle; at distance 0 it frames them."""
    middle = splats.means.mean(0)
    if distance == 0:
        away = (splats.means - middle).norm(dim=-1)
        # Splats far off are few: floaters and backdrops.
        extent = float(away.sort().values[int(0.99 * (len(away) - 1))])
        distance = max(extent, 1e-4) / (math.tan(math.radians(fov) / 2) * FILLED)
    x, y, z = (middle.cpu() * TO_SPLAT).tolist()
    level, up = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    return {
        "position": {"x": x, "y": y + distance * up, "z": z + distance * level},
        "target": {"x": x, "y": y, "z": z},
        "fov": fov,
        "zoom": 1.0,
        "cameraType": "perspective",
    }


def orbit(first: CameraInfo, count: int) -> tuple[CameraInfo, ...]:
    """The camera `first`, turned about the upright axis through its target in `count` equal steps."""
    return tuple(turned(first, 2 * math.pi * i / count) for i in range(count))


def turned(info: CameraInfo, angle: float) -> CameraInfo:
    c, s = math.cos(angle), math.sin(angle)
    target = _vector(info, "target").tolist()
    x, y, z = (_vector(info, "position") - _vector(info, "target")).tolist()
    position = {"x": target[0] + c * x + s * z, "y": target[1] + y, "z": target[2] - s * x + c * z}
    if not (q := info.get("quaternion")):
        return info | {"position": position}
    w, x, y, z = (float(q.get(name, name == "w")) for name in "wxyz")
    c, s = math.cos(angle / 2), math.sin(angle / 2)
    quaternion = {"w": c * w - s * y, "x": c * x + s * z, "y": c * y + s * w, "z": c * z - s * x}
    return info | {"position": position, "quaternion": quaternion}


def _vector(info: Mapping[str, Any], name: str) -> Tensor:
    return torch.tensor([float((info.get(name) or {}).get(axis, 0.0)) for axis in "xyz"])


def _axes(*quaternion: float) -> Sequence[Tensor]:
    """Where a rotation (w, x, y, z) takes the three axes."""
    w, x, y, z = torch.nn.functional.normalize(torch.tensor(quaternion), dim=0).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
            [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
            [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).unbind()
