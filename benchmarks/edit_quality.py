"""Success against preservation: every method on the same held-out toy edits, each over its own strength.

    python benchmarks/edit_quality.py --comfyui PATH [--output DIR] [--jobs N] [--quick]

200 edits, a quarter each of colour, shape, pattern and identity (the same caption on both sides). Success: the classifier finds
the new attribute; an identity succeeds when it finds all of the old ones. Preservation: PSNR against the source over the pixels
that the true edit leaves as they are, which the renderer knows; the autoencoder alone is its ceiling. A method that does nothing
preserves perfectly, hence the curves. Each finished batch is a line of DIR/records.jsonl, and a run that was stopped goes on
where it was. --quick takes 24 edits and two strengths a method. Toy figures: they say nothing about Stable Diffusion.

A further method is a function of (bench, batch, start, strength) and a line in CURVES.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import cds_edits
import numpy as np
import torch
from toy_edits import STEPS, Bench, Edit, Method

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import ROOT, start_host

KINDS = ("colour", "shape", "pattern", "identity")
BATCH = 8


def sdedit(bench: Bench, batch: list[Edit], start: SimpleNamespace, strength: float) -> torch.Tensor:
    """Noise to a share `strength` of the schedule and sample with the target caption: the host's own sampler."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(bench.model)
    guider.set_conds(targets(bench, batch), bench.conditioning([bench.encode("")] * len(batch)))
    guider.set_cfg(5.0)
    noise = torch.randn(start.latent.shape, generator=torch.Generator().manual_seed(0))
    sigmas = bench.sigmas[round((1 - strength) * STEPS) :]
    euler = comfy.samplers.sampler_object("euler")
    return bench.vae.decode(guider.sample(noise, start.latent, euler, sigmas, disable_pbar=True, seed=0))


def word_swap(bench: Bench, batch: list[Edit], start: SimpleNamespace, cfg: float) -> torch.Tensor:
    return bench.sample(Method("", direction=False, cfg=cfg), batch, start)


def pix2pix_zero(bench: Bench, batch: list[Edit], start: SimpleNamespace, lambda_xa: float) -> torch.Tensor:
    return bench.sample(Method("", direction=False, lambda_xa=lambda_xa), batch, start)


def zerocon(bench: Bench, batch: list[Edit], start: SimpleNamespace, lambda_xa: float) -> torch.Tensor:
    """lambda_cut is ten times lambda_xa, as in the shipped workflow for SD."""
    return bench.sample(Method("", direction=False, lambda_xa=lambda_xa, lambda_cut=10 * lambda_xa), batch, start)


def cds(bench: Bench, batch: list[Edit], start: SimpleNamespace, w_cut: float) -> torch.Tensor:
    return cds_edits.edit(bench, batch, cds_edits.Setting("descending", 0.15, w_cut))[1]


def dds(bench: Bench, batch: list[Edit], start: SimpleNamespace, step_size: float) -> torch.Tensor:
    return cds_edits.edit(bench, batch, cds_edits.Setting("descending", step_size, 0.0))[1]


def autoencoder(bench: Bench, batch: list[Edit], start: SimpleNamespace, _: float) -> torch.Tensor:
    return bench.vae.decode(start.latent)


@dataclass(frozen=True)
class Curve:
    """A method and the strengths it is run at, from the gentlest to the strongest edit."""

    edit: Callable[[Bench, list[Edit], SimpleNamespace, float], torch.Tensor]
    over: str
    strengths: tuple[float, ...]


CURVES = {
    "autoencoder": Curve(autoencoder, "-", (0.0,)),
    "SDEdit": Curve(sdedit, "strength", (0.4, 0.6, 0.8, 1.0)),
    "DDIM + word swap": Curve(word_swap, "cfg", (1.0, 2.0, 3.5, 5.0, 7.5)),
    "pix2pix-zero": Curve(pix2pix_zero, "lambda_xa", (0.4, 0.2, 0.1, 0.05)),
    "zeroCon": Curve(zerocon, "lambda_xa", (0.2, 0.1, 0.05, 0.025)),
    "DDS": Curve(dds, "step size", (0.05, 0.1, 0.15, 0.3)),
    "CDS": Curve(cds, "w_cut", (150.0, 60.0, 20.0, 5.0)),
}


def targets(bench: Bench, batch: list[Edit]) -> list:
    return bench.conditioning([bench.encode(bench.core.scene.caption(edit.target)) for edit in batch])


def draw_edits(scene, first: int, count: int) -> list[Edit]:
    """Edits number `first` and on, the kinds in turn; the new value is drawn with the number as its seed."""
    values = {"colour": scene.COLOURS, "shape": scene.SHAPES, "pattern": scene.PATTERNS}
    drawn = []
    for number in range(first, first + count):
        source, kind = scene.scene_from_seed(scene.HELD_OUT_SEED + number), KINDS[number % len(KINDS)]
        target = source
        if kind != "identity":
            others = [value for value in values[kind] if value != getattr(source, kind)]
            target = replace(source, **{kind: others[np.random.default_rng(number).integers(len(others))]})
        drawn.append(Edit(source, target, kind))
    return drawn


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def score(bench: Bench, batch: list[Edit], images: torch.Tensor) -> list[dict]:
    """One record an edit."""
    render = bench.core.scene.render
    found = bench.core.classifier.classify(images, bench.judge)
    records = []
    for i, edit in enumerate(batch):
        source, truth = (torch.from_numpy(render(scene)) for scene in (edit.source, edit.target))
        unchanged = (source == truth).all(-1)
        right = {name: getattr(found, name)[i] == getattr(edit.target, name) for name in ("colour", "shape", "pattern")}
        records.append(
            {
                "kind": edit.attribute,
                "success": right.get(edit.attribute, all(right.values())),
                "others kept": all(value for name, value in right.items() if name != edit.attribute),
                "preservation": psnr(images[i][unchanged], source[unchanged]),
                "truth": psnr(images[i], truth),
            }
        )
    return records


@lru_cache(maxsize=1)
def bench() -> Bench:
    return Bench()


@lru_cache(maxsize=1)
def inverted(first: int, count: int) -> tuple[list[Edit], SimpleNamespace]:
    batch = draw_edits(bench().core.scene, first, count)
    return batch, bench().invert(batch)


def start_worker(comfyui: Path) -> None:
    torch.set_num_threads(1)
    start_host(comfyui)


@torch.inference_mode()
def work(method: str, strength: float, first: int, count: int) -> dict:
    """One line of the records file."""
    batch, start = inverted(first, count)
    began = time.monotonic()
    images = CURVES[method].edit(bench(), batch, start, strength)
    line = {"method": method, "strength": strength, "first": first, "count": count}
    return line | {"seconds": time.monotonic() - began, "edits": score(bench(), batch, images)}


def summary(lines: list[dict]) -> list[dict]:
    """A row a method and strength."""
    rows = []
    for method, curve in CURVES.items():
        for strength in curve.strengths:
            done = [line for line in lines if (line["method"], line["strength"]) == (method, strength)]
            records = [record for line in done for record in line["edits"]]
            if records:
                rows.append({"method": method, "over": curve.over, "strength": strength} | figures(records))
                rows[-1]["seconds"] = sum(line["seconds"] for line in done) / len(records)
    return rows


def figures(records: list[dict]) -> dict[str, float]:
    edits = [record for record in records if record["kind"] != "identity"]
    identities = [record for record in records if record["kind"] == "identity"]

    def mean(part: list[dict], column: str) -> float:
        return float(np.mean([record[column] for record in part]))

    by_kind = {kind: mean([r for r in records if r["kind"] == kind], "success") for kind in KINDS}
    return {
        "edits": len(records), "success": mean(edits, "success"), **by_kind, "others kept": mean(edits, "others kept"),
        "preservation": mean(edits, "preservation"), "identity preservation": mean(identities, "preservation"),
        "truth": mean(edits, "truth"),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Markdown; shares in percent, PSNR in dB."""
    shares, levels = ("success", *KINDS, "others kept"), ("preservation", "identity preservation", "truth")
    lines = ["| method | over | " + " | ".join(shares + levels) + " | s an edit |", "|---|---|" + "---|" * 10]
    for row in rows:
        cells = [row["method"], f"{row['over']} {row['strength']:g}", *(f"{row[c]:.0%}" for c in shares)]
        cells += [f"{row[c]:.1f}" for c in (*levels, "seconds")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict], file: Path) -> None:
    """Success over preservation, a curve a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    for method in dict.fromkeys(row["method"] for row in rows):
        points = [row for row in rows if row["method"] == method]
        x, y = [row["preservation"] for row in points], [100 * row["success"] for row in points]
        axes.plot(x, y, "o-", label=f"{method}, over {points[0]['over']}" if len(points) > 1 else method)
        for row, at in zip(points, zip(x, y, strict=True), strict=True):
            if len(points) > 1:
                axes.annotate(f"{row['strength']:g}", at, (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="preservation: PSNR where the true edit changes nothing, dB", ylabel="success, %", ylim=(-3, 103))
    axes.set_title(f"Toy world, {rows[0]['edits']} edits: up and to the right is better", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


def read_lines(file: Path) -> list[dict]:
    """Finished batches; a last line cut off in the middle is removed from the file."""
    if not file.exists():
        return []
    whole, newline, _ = file.read_text().rpartition("\n")
    file.write_text(whole + newline)
    return [json.loads(line) for line in whole.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "edit_quality")
    parser.add_argument("--methods", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, one core each")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    count = 24 if options.quick else options.edits
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "records.jsonl"
    lines = read_lines(file)
    done = {(line["method"], line["strength"], line["first"], line["count"]) for line in lines}
    # Batch by batch, so that a worker's inversion serves all methods.
    wanted = [
        (method, strength, first, min(BATCH, count - first))
        for first in range(0, count, BATCH)
        for method in options.methods
        for strength in CURVES[method].strengths[:: 3 if options.quick else 1]
    ]
    todo = [task for task in wanted if task not in done]
    spawn, began = multiprocessing.get_context("spawn"), time.monotonic()
    with ProcessPoolExecutor(options.jobs, spawn, start_worker, (options.comfyui,)) as pool, file.open("a") as stream:
        for number, future in enumerate(as_completed([pool.submit(work, *task) for task in todo]), 1):
            lines.append(future.result())
            stream.write(json.dumps(lines[-1]) + "\n")
            stream.flush()
            left = (time.monotonic() - began) / number * (len(todo) - number)
            print(f"{number}/{len(todo)}, {left / 60:.0f} min left: {lines[-1]['method']}", file=sys.stderr, flush=True)
    rows = summary([line for line in lines if (line["method"], line["strength"], line["first"], line["count"]) in set(wanted)])
    (options.output / "table.md").write_text(table(rows) + "\n")
    (options.output / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows, options.output / "success_preservation.png")
    print(table(rows))


if __name__ == "__main__":
    main()
