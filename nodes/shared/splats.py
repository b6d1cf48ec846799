"""What the nodes that edit splats check, and how they look at them."""

import torch

from ...bridge.loops.splats import room
from ...bridge.splats import Cameras, sh_degree, splats_from
from ...zerocon_core.splats.gaussians import Splats
from ...zerocon_core.splats.views import Views, region
from .checks import check_images, check_mask
from .refusals import warn


def seen_splats(cls, splat, cameras: Cameras) -> tuple[Splats, Views]:
    """The splats and what the cameras see of them. Refuses splats that none of them sees."""
    splats = splats_from(splat)
    if degree := sh_degree(splat):
        warn(cls, f"the splat has view-dependent colour (SH degree {degree}), which is kept; its base colour is shown and edited")
    with torch.inference_mode(False), torch.no_grad():
        views = Views(splats, cameras.pinholes(), room())
        if not any(view.pairs.pixels.numel() for view in views):
            raise ValueError(
                f"none of the {len(cameras)} cameras sees the splat; move the first camera, or set distance to 0 to frame it"
            )
    return splats, views


def check_views(name: str, images: torch.Tensor, cameras: Cameras) -> torch.Tensor:
    """The images (views, H, W, 3) of all cameras, as tensors that gradients may meet."""
    check_images(name, images)
    if len(images) != len(cameras):
        raise ValueError(
            f"there are {len(images)} {name} and {len(cameras)} cameras; it needs one a camera, in the order of Splat Views"
        )
    _check_size(name, images.shape[1:3], cameras)
    with torch.inference_mode(False):
        return images[..., :3].detach().float().clone()


def region_of(masks: torch.Tensor, views: Views, cameras: Cameras) -> torch.Tensor | None:
    """The splats (N,) that masks (views, H, W) mean; None for masks that are 0 everywhere."""
    check_mask(masks)
    masks = masks.reshape(-1, *masks.shape[-2:])
    if len(masks) != len(cameras):
        raise ValueError(
            f"there are {len(masks)} masks and {len(cameras)} cameras; it needs one for each camera, so find the masks in the "
            "images of Splat Views"
        )
    _check_size("masks", masks.shape[1:], cameras)
    if not masks.any():
        return None
    with torch.inference_mode(False), torch.no_grad():
        inside = region(views, masks.detach().float().clone().to(views.splats.means))
    if not inside.any():
        raise ValueError(
            "the masks together mean no splat, since none covers more than half of what the views show of one; draw them over "
            "the same thing in every view"
        )
    return inside


def _check_size(name: str, size: tuple[int, ...], cameras: Cameras) -> None:
    if tuple(size) != (cameras.size, cameras.size):
        raise ValueError(
            f"the {name} are {size[1]}x{size[0]} and the cameras' pictures {cameras.size}x{cameras.size}; bring them to that "
            "size with Upscale Image, or set size in Splat Views"
        )
