"""Curves of success over preservation, and a sheet of some methods' edits."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from runs.records import Row

from ..toy.bench import Batch
from ..toy.edits import pictures
from ..toy.methods import Guided, Score
from .report import front

PICTURED = [
    Guided(), Guided(0.2, reference="sampled"), Guided(0.2, 0.5), Guided(mask=0), Guided(0.2, 1.0, mask=0), Score(), Score(5.0),
]  # fmt: skip


def plot(panels: dict[str, list[Row]], file: Path) -> None:
    """Success over preservation, a panel a title, a curve a method; points on the Pareto front are ringed."""
    panels = {title: rows for title, rows in panels.items() if rows}
    figure = Figure(figsize=(6 * len(panels), 6), layout="constrained")
    [grid] = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        draw_panel(axes, rows)
        axes.set(xlabel="preservation: PSNR where the true edit changes nothing, dB", ylim=(35, 103))
        axes.set_title(f"{title}: {rows[0]['edits']} edits", fontsize=10)
    grid[0].set_ylabel("success, %")
    figure.legend(*grid[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    figure.suptitle("Toy world: up and to the right is better", fontsize=11)
    figure.savefig(file, dpi=110)


def draw_panel(axes: Axes, rows: list[Row]) -> None:
    """A row without a strength, the autoencoder's, is a line: the ceiling of preservation."""
    made = [row for row in rows if row["over"] != "-"]
    for row in rows:
        if row["over"] == "-":
            axes.axvline(row["background"], linestyle=":", color="black", label=row["method"])
    for number, method in enumerate(dict.fromkeys(row["method"] for row in made)):
        points = [row for row in made if row["method"] == method]
        x, y = places(points)
        label = f"{method}, over {points[0]['over']}" if len(points) > 1 else method
        axes.plot(x, y, "so"[number % 2] + "-", color=colormaps["tab20"](number), label=label)
        for row, at in zip(points, zip(x, y, strict=True), strict=True):
            axes.annotate(f"{row['value']:g}", at, (4, 4), textcoords="offset points", fontsize=7)
    axes.plot(*places(front(made)), "o", markersize=13, fillstyle="none", color="black", label="Pareto front")


def places(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [row["background"] for row in rows], [100 * row["success"] for row in rows]


@torch.inference_mode()
def draw_sheet(batch: Batch) -> Image.Image:
    """Source, one row a method of PICTURED, true edit."""
    results = [batch.bench.vae.decode(method(batch)) for method in PICTURED]
    framed = [
        np.pad(row.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=1.0)
        for row in (batch.images, *results, pictures([edit.target for edit in batch.edits]))
    ]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in framed])
    picture = Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8))
    return picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)
