"""Splats that stay in place: a picture of them is linear in their colours, and its transpose carries pictures back to the splats.

That a picture's values are handed to the splats by the shares that they have in its pixels is how GaussianEditor (Chen et al.
2024) traces masks; the memory of views and the lift of edits are ours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, pad

from .gaussians import Camera, Splats
from .render import EPS2D, NEAR_PLANE, Pairs, Shares, see


@dataclass(frozen=True)
class View:
    """What a camera sees of splats that stay in place. It costs 12 bytes a pair of a pixel and a splat in it."""

    pairs: Pairs
    """Of int32."""
    parts: Shares
    ends: Tensor
    """How many pairs there are before each pixel's first (H * W,) and in all, int32."""
    count: int
    """Of all splats, seen or not."""
    size: tuple[int, int]
    """Height and width of the picture."""

    def render(self, values: Tensor, background: Tensor | None = None) -> Tensor:
        """The picture (H, W, D) of splats of these values (N, D), differentiable in them, before a background (D,) or black."""
        picture: Tensor = _Sum.apply(values, self)  # type: ignore[no-untyped-call]
        if background is not None:
            picture = picture + self.parts.left[:, None] * background
        return picture.view(*self.size, -1)

    def gather(self, picture: Tensor) -> Tensor:
        """For each splat the sum (N, D) of a picture (H, W, D) over its pixels by the shares that it has in them."""
        # Column by column: several times as fast as rows of a few values.
        splats = self.pairs.splats.long()
        columns = [
            picture.new_zeros(self.count).scatter_add(0, splats, self.parts.pairs * column.index_select(0, self.pairs.pixels))
            for column in picture.flatten(0, 1).T.contiguous()
        ]
        return torch.stack(columns, dim=-1)

    @property
    def mass(self) -> Tensor:
        """How many pixels each splat makes up in sum (N,)."""
        return self.gather(self.parts.pairs.new_ones(*self.size, 1))[:, 0]

    @property
    def covered(self) -> Tensor:
        """How much of each pixel splats make up (H, W)."""
        return (1 - self.parts.left).view(self.size)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.pairs, *self.parts, self.ends))


@torch.no_grad()
def view_of(splats: Splats, camera: Camera, near_plane: float = NEAR_PLANE, eps2d: float = EPS2D) -> View:
    """What `camera` sees of splats that stay where they are."""
    camera = camera.to(splats.means)
    pairs, parts = see(splats.means, splats.quats, splats.scales, splats.opacities, camera, near_plane, eps2d)
    # What no light reaches is a large part of all pairs.
    lit = parts.pairs > 0
    pairs = Pairs(pairs.pixels[lit].int(), pairs.splats[lit].int())
    counts = torch.bincount(pairs.pixels, minlength=len(parts.left))
    ends = pad(counts.cumsum(0), (1, 0)).int()
    return View(pairs, Shares(parts.pairs[lit], parts.left), ends, len(splats), (camera.height, camera.width))


class _Sum(torch.autograd.Function):
    """The picture (H * W, D) of a View before black, whose gradient is `View.gather`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, view: View) -> Tensor:
        ctx.view = view
        return embedding_bag(
            view.pairs.splats, values, view.ends, mode="sum", per_sample_weights=view.parts.pairs, include_last_offset=True
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.view.gather(gradient.view(*ctx.view.size, -1)), None


class Views(Sequence[View]):
    """What several cameras see of the same splats. Views are kept while they fit into `room` bytes; the others are rebuilt."""

    def __init__(self, splats: Splats, cameras: Sequence[Camera], room: float = float("inf")):
        self.splats, self.cameras, self.room = splats, cameras, room
        self.kept: dict[int, View] = {}

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, number: int) -> View:  # type: ignore[override] # no slices
        if number in self.kept:
            return self.kept[number]
        view = view_of(self.splats, self.cameras[number])
        if view.nbytes <= self.room:
            self.kept[number] = view
            self.room -= view.nbytes
        return view


def back_project(views: Sequence[View], pictures: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean (N, D) of each splat's pixels in pictures (H, W, D), by its shares in them, and the sum of those shares (N,).

    The mean of a splat that no view shows is 0.
    """
    total, mass = torch.zeros(()), torch.zeros(())
    for view, picture in zip(views, pictures, strict=True):
        total, mass = total + view.gather(picture), mass + view.mass
    return total / torch.where(mass > 0, mass, 1)[:, None], mass


def region(views: Sequence[View], masks: Iterable[Tensor]) -> Tensor:
    """The splats (N,) whose pixels masks (H, W), one a view, cover by more than half."""
    share, _ = back_project(views, (mask[..., None] for mask in masks))
    return share[:, 0] > 0.5


def lift(views: Sequence[View], colors: Tensor, edited: Tensor, background: Tensor, strength: float = 1.0) -> Tensor:
    """The colours (N, 3) after an edit of the views' pictures, `edited` (views, H, W, 3); ours.

    Each splat moves by the mean of what the edit changed in its pixels, so an edit of nothing changes nothing. More steps towards
    the edited pictures would fit what their views do not agree on.
    """
    changes = (picture - view.render(colors, background).clamp(0, 1) for view, picture in zip(views, edited, strict=True))
    change, _ = back_project(views, changes)
    return displayable(colors + strength * change, colors)


def displayable(colors: Tensor, before: Tensor) -> Tensor:
    """Colours (N, 3) kept in [0, 1], or where those before the edit lay outside, no farther outside than these."""
    return torch.minimum(torch.maximum(colors, before.clamp_max(0)), before.clamp_min(1))
