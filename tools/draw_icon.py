"""Draw the registry's icon and banner from pictures of the toy world: python -m tools.draw_icon"""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.comfy_server import ROOT
from zerocon_core.toyworld.scene import Background, Bystander, Pose, Scene, render

SOURCE = Scene(
    colour="red",
    shape="circle",
    pattern="striped",
    pose=Pose(0.5, 0.5, 0.3, 0.0),
    background=Background(((0.44, 0.46, 0.50), (0.60, 0.62, 0.66)), 0.25, 0.3, (0.0, 0.0)),
    bystander=Bystander(0.86, 0.15, 0.06, (0.82, 0.82, 0.82)),
)
EDIT = replace(SOURCE, colour="blue")
GROUND, LETTERS = (24, 26, 31), (236, 238, 242)


def icon(side: int = 400) -> Image.Image:
    """The source above the diagonal, its edit below."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    below = np.clip((x + y - side + 1) / 2 + 0.5, 0, 1)[..., None]
    return rounded(render(SOURCE, side) * (1 - below) + render(EDIT, side) * below)


def banner(width: int = 2100, height: int = 900, tile: int = 320, gap: int = 56) -> Image.Image:
    """The way of an edit: from the source to noise, and from there to the translation."""
    sheet = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((width // 2, 190), "ComfyUI-ZeroCon", LETTERS, ImageFont.load_default(size=112), anchor="mm")
    line = "image translation by text, without training"
    draw.text((width // 2, 300), line, (150, 154, 164), ImageFont.load_default(size=50), anchor="mm")
    noise = np.random.default_rng(0).normal(0.5, 0.25, (tile // 5, tile // 5, 3)).repeat(5, axis=0).repeat(5, axis=1)
    steps = [(SOURCE, 0.0), (SOURCE, 0.55), (SOURCE, 1.0), (EDIT, 0.55), (EDIT, 0.0)]
    left, top = (width - len(steps) * tile - (len(steps) - 1) * gap) // 2, 440
    for i, (scene, share) in enumerate(steps):
        picture = rounded((1 - share) * render(scene, tile) + share * noise)
        sheet.paste(picture, (left + i * (tile + gap), top), picture)
    return sheet


def rounded(picture: np.ndarray, radius: float = 0.09) -> Image.Image:
    """An RGB picture in [0, 1] with round, transparent corners."""
    image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
    mask = Image.new("L", (image.width * 4, image.height * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), radius * mask.width, 255)
    image.putalpha(mask.resize(image.size, Image.Resampling.LANCZOS))
    return image


if __name__ == "__main__":
    icon().save(ROOT / "assets" / "icon.png", optimize=True)
    banner().save(ROOT / "assets" / "banner.png", optimize=True)
