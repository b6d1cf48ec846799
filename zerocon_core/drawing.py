"""Pictures with words and axes, drawn with PIL."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .maps.words import resize

INK, PALE, PAPER = "#202020", "#d8d8d8", "white"
CURVES = "#0072b2", "#d55e00", "#202020"  # told apart by colour-blind people too (Okabe and Ito)


INFERNO = [
    (0, 0, 4), (20, 11, 52), (57, 9, 99), (95, 19, 110), (133, 33, 107), (169, 46, 94),
    (203, 65, 73), (230, 93, 47), (247, 132, 16), (252, 174, 18), (245, 219, 76), (252, 255, 164),
]  # fmt: skip
"""Matplotlib's colour map of that name (CC0) at even distances."""


def to_picture(image: Image.Image) -> Tensor:
    """(H, W, 3) from 0 to 1."""
    return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255)


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """PIL's own font, which is one for all sizes where a size is named."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


# Grids of pictures

GRID, CELL = 2048, 512
"""Largest width of a grid and of a picture in it, in pixels."""
GAP = 6


def grid_columns(count: int) -> int:
    return min(count, max(4, math.ceil(math.sqrt(count))))


def cell_size(height: int, width: int, count: int) -> tuple[int, int]:
    """Height and width at which `count` pictures of this shape fit into a grid, small ones enlarged."""
    scale = min(CELL, GRID // grid_columns(count)) / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def labelled_grid(pictures: Tensor, labels: Sequence[str]) -> Tensor:
    """`pictures` (N, H, W, 3) in rows, a label under each, as one picture (H', W', 3)."""
    count, height, width, _ = pictures.shape
    columns = grid_columns(count)
    font = font_of(max(16, width // 18))
    label_height = int(1.5 * font.size)
    across, down = width + GAP, height + label_height + GAP
    sheet = Image.new("RGB", (columns * across + GAP, math.ceil(count / columns) * down + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    values = pictures.clamp(0, 1).mul(255).round().byte().cpu().numpy()
    for number, (picture, label) in enumerate(zip(values, labels, strict=True)):
        left, top = GAP + number % columns * across, GAP + number // columns * down
        sheet.paste(Image.fromarray(picture), (left, top))
        draw.text((left + width // 2, top + height + label_height // 2), fitted(label, font, width), INK, font, anchor="mm")
    return to_picture(sheet)


def lay_over(image: Tensor | None, heat: Tensor, opacity: float) -> Tensor:
    """Heat (B, N, H, W) as colours over an image (B or 1, H', W', channels) of each sample, or alone: (B, N, H, W, 3)."""
    if image is None:
        return colours(heat)
    height, width = heat.shape[-2:]
    under = resize(image[..., :3].float().movedim(-1, 1), (height, width)).movedim(1, -1).unsqueeze(1).to(heat)
    return torch.lerp(under, colours(heat), opacity)


def colours(heat: Tensor) -> Tensor:
    """Heat from 0 to 1, of any shape, as colours (..., 3) from black over red to light yellow."""
    table = torch.tensor(INFERNO, dtype=heat.dtype, device=heat.device) / 255
    place = heat.clamp(0, 1) * (len(table) - 1)
    below = place.long().clamp_max(len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (place - below).unsqueeze(-1))


def heat_grids(
    heat: Tensor, labels: Sequence[Sequence[str]], size: tuple[int, int], image: Tensor | None, opacity: float
) -> Tensor:
    """Maps (B, N, h, w) of images of `size` as one labelled grid a sample (B, H, W, 3), laid over the `image` if there is one."""
    cells = lay_over(image, resize(heat, cell_size(*size, heat.shape[1])), opacity)
    return torch.stack([labelled_grid(*row) for row in zip(cells, labels, strict=True)])


def fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, shortened until it is at most `width` wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


# Curves

PANEL = 640, 320
MARGINS = 84, 44, 20, 60  # left, top, right, bottom of the axes in a panel
SHARP = 2  # lines are drawn this much larger and shrunk, which smooths them


@dataclass(frozen=True)
class Panel:
    """Curves over the same axes. All have a value at every place of the horizontal axis."""

    title: str
    curves: Mapping[str, Sequence[float]]


def plot(panels: Sequence[Panel], places: Sequence[str], axis: str, columns: int = 2) -> Tensor:
    """A picture (H, W, 3) of `panels` in rows. `places` are the words below the horizontal axis, `axis` is its name."""
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (SHARP * PANEL[0] * min(columns, len(panels)), SHARP * PANEL[1] * rows), PAPER)
    for number, panel in enumerate(panels):
        drawn = draw_panel(panel, places, axis)
        sheet.paste(drawn, (number % columns * drawn.width, number // columns * drawn.height))
    return to_picture(sheet.resize((sheet.width // SHARP, sheet.height // SHARP), Image.Resampling.LANCZOS))


def draw_panel(panel: Panel, places: Sequence[str], axis: str) -> Image.Image:
    """One panel, SHARP times as large as it will be."""
    picture = Image.new("RGB", (SHARP * PANEL[0], SHARP * PANEL[1]), PAPER)
    draw, font = ImageDraw.Draw(picture), font_of(14 * SHARP)
    left, top, right, bottom = (SHARP * margin for margin in MARGINS)
    right, bottom = picture.width - right, picture.height - bottom
    levels = axis_levels([value for curve in panel.curves.values() for value in curve])

    def across(place: int) -> float:
        return left + (right - left) * (place + 0.5) / len(places)

    def up(value: float) -> float:
        return bottom - (bottom - top) * (value - levels[0]) / (levels[-1] - levels[0])

    for level in levels:
        draw.line([(left, up(level)), (right, up(level))], PALE, SHARP)
        draw.text((left - 6 * SHARP, up(level)), f"{level:.4g}", INK, font, anchor="rm")
    for place in range(0, len(places), math.ceil(len(places) / 10)):
        draw.line([(across(place), bottom), (across(place), bottom + 4 * SHARP)], INK, SHARP)
        draw.text((across(place), bottom + 14 * SHARP), places[place], INK, font, anchor="mm")
    draw.line([(left, top), (left, bottom), (right, bottom)], INK, SHARP)
    draw.text(((left + right) // 2, picture.height - 16 * SHARP), axis, INK, font, anchor="mm")
    draw.text((left, top // 2), panel.title, INK, font, anchor="lm")

    for curve, colour in zip(panel.curves.values(), CURVES, strict=False):
        points = [(across(place), up(value)) for place, value in enumerate(curve)]
        for start, end in pairwise(points):
            draw.line([start, end], colour, 2 * SHARP)
        for x, y in points:
            draw.ellipse([x - 3 * SHARP, y - 3 * SHARP, x + 3 * SHARP, y + 3 * SHARP], colour)
    if len(panel.curves) > 1:
        draw_legend(draw, list(panel.curves), font, right, top // 2)
    return picture


def draw_legend(draw: ImageDraw.ImageDraw, names: Sequence[str], font: ImageFont.FreeTypeFont, right: int, y: int) -> None:
    """Names in the colours of their curves, in one row that ends at `right`."""
    for name, colour in reversed(list(zip(names, CURVES, strict=False))):
        draw.text((right, y), name, colour, font, anchor="rm")
        right -= int(font.getlength(name)) + 6 * SHARP
        draw.line([(right - 20 * SHARP, y), (right, y)], colour, 3 * SHARP)
        right -= 36 * SHARP


def axis_levels(values: Sequence[float]) -> list[float]:
    """Five to ten round numbers at even distances, from at most the least of `values` to at least the greatest."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
