"""Success against preservation: every method, and every choice the papers leave open, on the same held-out toy edits.

    python benchmarks/edit_quality.py --comfyui PATH [--study methods|ablations] [--output DIR] [--jobs N] [--quick]

Edits of colour, shape and pattern and, among the methods, identities (the same caption on both sides). What is measured is said
in toy_bench.score. A method that does nothing preserves perfectly, hence curves. The ablations run on other edits than the
methods, so that defaults chosen from them are judged on edits that had no part in the choice. Each finished batch is a line of
DIR/records.jsonl, by the setting itself, and a run that was stopped goes on where it was. --quick takes 24 edits and one or two
strengths a method. Toy figures: they say nothing about Stable Diffusion.

A further method is a line in METHODS: its name, what is varied, and a value of toy_bench for each strength.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from toy_bench import KINDS, Autoencoder, Batch, Bench, Blocks, Guided, Score, SDEdit, Transplant, draw_edits, score

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import ROOT, start_host

BATCH = 20
FIRST_ABLATED = 1000
"""Number of the first edit of the ablations."""

Method = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True)
class Curve:
    """A method at several strengths, from the gentlest to the strongest edit."""

    name: str
    over: str
    points: dict[float | str, Method]


def over(name: str, parameter: str, values: Iterable, method: Callable[[float], Method]) -> Curve:
    return Curve(name, parameter, {value: method(value) for value in values})


METHODS = [
    Curve("autoencoder", "-", {"-": Autoencoder()}),
    over("SDEdit", "strength", (0.5, 0.7, 0.9), lambda v: SDEdit(v)),
    over("DDIM + word swap", "cfg", (2.0, 3.5, 5.0), lambda v: Guided(cfg=v)),
    over("DiffEdit", "strength", (0.6, 0.8, 1.0), lambda v: Guided(mask=0, strength=v)),
    over("pix2pix-zero", "lambda_xa", (0.1,), lambda v: Guided(v, reference="sampled")),
    over("pix2pix-zero, Direct Inversion", "lambda_xa", (0.2, 0.1), lambda v: Guided(v)),
    over("pix2pix-zeroCon", "lambda_xa", (0.1, 0.05), lambda v: Guided(v, 0.5)),
    over("pix2pix-zeroCon + mask", "lambda_xa", (0.2, 0.1), lambda v: Guided(v, 1.0, mask=0)),
    over("DDS", "step_size", (0.15,), lambda v: Score(step_size=v)),
    over("CDS", "w_cut", (20.0, 5.0), lambda v: Score(v)),
    over("CDS + mask", "w_cut", (5.0,), lambda v: Score(v, mask=1)),
]

BLOCKS: dict[str, Blocks] = {
    "decoder": ("output",), "encoder": ("input",), "encoder and decoder": ("input", "middle", "output"),
}  # fmt: skip

ABLATIONS = [
    over("zeroCon, lambda_cut 0", "lambda_xa", (0.4, 0.2, 0.1, 0.05), lambda v: Guided(v)),
    *(
        over(f"zeroCon, lambda_cut {weight:g}", "lambda_xa", (0.1, 0.05), lambda v, weight=weight: Guided(v, weight))
        for weight in (0.5, 1.0, 2.0, 4.0)
    ),
    *(
        over(f"zeroCon, layers {name}", "lambda_xa", (0.2, 0.1), lambda v, blocks=blocks: Guided(v, 1.0, blocks=blocks))
        for name, blocks in BLOCKS.items()
    ),
    over("CDS", "w_cut", (0.0, 5.0, 20.0, 60.0), lambda v: Score(v)),
    *(
        over(f"CDS, loss on {place}", "w_cut", (20.0,), lambda v, place=place: Score(v, place=place))
        for place in ("self-attention", "cross-attention", "output")
    ),
    *(
        over(f"CDS, layers {name}", "w_cut", (20.0,), lambda v, blocks=blocks: Score(v, blocks=blocks))
        for name, blocks in BLOCKS.items()
    ),
    over("CDS, w_cut 20", "patch sizes", ((1,), (2,), (4,), (1, 2), (1, 2, 4)), lambda v: Score(20.0, sizes=v)),
    over("CDS, w_cut 20", "patches", (16, 64, 256), lambda v: Score(20.0, patches=v)),
    over("CDS, w_cut 20", "contrast", ("cds", "cut"), lambda v: Score(20.0, contrast=v)),
    over("CDS, w_cut 20", "order", ("random", "descending"), lambda v: Score(20.0, order=v)),
    over("zeroCon, 0.1 and 1", "reference", ("sampled", "inverted"), lambda v: Guided(0.1, 1.0, reference=v)),
    over("zeroCon, 0.1 and 1", "lambda_ac and lambda_kl", (0.0, 20.0), lambda v: Guided(0.1, 1.0, lambda_noise=v)),
    over("zeroCon, 0.1 and 1", "refinements", (0, 2), lambda v: Guided(0.1, 1.0, refinements=v)),
    over("zeroCon, 0.1 and 1", "contrast", ("cds", "cut"), lambda v: Guided(0.1, 1.0, contrast=v)),
    over("zeroCon, 0.1 and 1", "end_percent", (0.5, 0.75, 1.0), lambda v: Guided(0.1, 1.0, end=v)),
    Curve("autoencoder", "object's latents of the", {"source": Autoencoder(), "true edit": Transplant()}),
]  # fmt: skip

PICTURED = [
    Guided(), Guided(0.1, reference="sampled"), Guided(0.1, 0.5), Guided(mask=0), Guided(0.1, 1.0, mask=0), Score(), Score(5.0),
]  # fmt: skip


STUDIES = {"methods": METHODS, "ablations": ABLATIONS}


@lru_cache(maxsize=1)
def bench() -> Bench:
    return Bench()


@lru_cache(maxsize=1)
def draw(first: int, count: int, kinds: tuple[str, ...]) -> Batch:
    return Batch(bench(), draw_edits(bench().core.scene, count, kinds, first))


def start_worker(comfyui: Path) -> None:
    torch.set_num_threads(1)
    start_host(comfyui, "--use-pytorch-cross-attention")  # a tenth less time for plain sampling


@torch.inference_mode()
def work(method: Method, first: int, count: int, kinds: tuple[str, ...]) -> dict:
    """One line of the records file."""
    batch = draw(first, count, kinds)
    began = time.process_time()
    latent = method(batch)
    seconds = time.process_time() - began
    images = bench().vae.decode(latent)
    return {"setting": repr(method), "first": first, "count": count, "seconds": seconds, "edits": score(batch, images)}


def rows(curves: list[Curve], lines: list[dict], kinds: Iterable[str] = KINDS) -> list[dict]:
    """A row a curve and strength, over the edits of some kinds."""
    made = []
    for curve in curves:
        for value, method in curve.points.items():
            done = [line for line in lines if line["setting"] == repr(method)]
            records = [record for line in done for record in line["edits"] if record["kind"] in kinds]
            if records:
                value = ", ".join(map(str, value)) if isinstance(value, tuple) else value
                masked = getattr(method, "mask", None) is not None
                made.append({"method": curve.name, "over": curve.over, "value": value, "masked": masked} | figures(records))
                made[-1]["seconds"] = sum(line["seconds"] for line in done) / sum(line["count"] for line in done)
    return made


def figures(records: list[dict]) -> dict[str, float | int | None]:
    """Means over the edits, and over the identities for what is named after them; None without any."""
    edits = [record for record in records if record["kind"] != "identity"]

    def mean(column: str, part: list[dict]) -> float | None:
        return float(np.mean([record[column] for record in part])) if part else None

    by_kind = {kind: [record for record in records if record["kind"] == kind] for kind in KINDS}
    columns = ("success", "others kept", "pose kept", "background", "bystander", "truth")
    return {
        "edits": len(records),
        **{column: mean(column, edits) for column in columns},
        **{kind: mean("success", part) for kind, part in by_kind.items()},
        "identity background": mean("background", by_kind["identity"]),
    }


SHARES = ("success", "colour", "shape", "pattern", "identity", "others kept", "pose kept")
LEVELS = ("background", "bystander", "truth", "identity background", "seconds")


def table(made: list[dict]) -> str:
    """Markdown; shares in percent, PSNR in dB, seconds of one core an edit. Columns without any value are left out."""
    shares, levels = ([c for c in columns if any(row[c] is not None for row in made)] for columns in (SHARES, LEVELS))
    lines = [
        f"| method | over | {' | '.join((*shares, *levels))} | front |",
        "|---|---|" + "---|" * len((*shares, *levels, "front")),
    ]
    best, without_masks = front(made), front([row for row in made if not row["masked"]])
    for row in made:
        value = f"{row['value']:g}" if isinstance(row["value"], float | int) else row["value"]
        setting = f"{row['over']} {value}" if row["over"] != "-" else "-"
        cells = [row["method"], setting, *(f"{row[c]:.0%}" for c in shares), *(f"{row[c]:.1f}" for c in levels)]
        lines.append(f"| {' | '.join(cells)} | {'yes' if row in best else 'but for masks' if row in without_masks else ''} |")
    return "\n".join(lines)


def front(made: list[dict]) -> list[dict]:
    """The rows that no other row beats in one of success and background without losing in the other: the Pareto front."""
    point = lambda row: (row["success"], row["background"])  # noqa: E731
    beats = lambda a, b: a != b and all(x >= y for x, y in zip(a, b, strict=True))  # noqa: E731
    return [row for row in made if not any(beats(point(other), point(row)) for other in made)]


def plot(panels: dict[str, list[dict]], file: Path) -> None:
    """Success over preservation, a panel a title, a curve a method; points on the Pareto front are ringed.

    A row without a strength, the autoencoder's, is a line: the ceiling of preservation.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 6), layout="constrained", sharey=True)
    for axes, (title, rows_of_panel) in zip(grid, panels.items(), strict=True):
        made = [row for row in rows_of_panel if row["over"] != "-"]
        for row in rows_of_panel:
            if row["over"] == "-":
                axes.axvline(row["background"], linestyle=":", color="black", label=row["method"])
        for number, method in enumerate(dict.fromkeys(row["method"] for row in made)):
            points = [row for row in made if row["method"] == method]
            x, y = [row["background"] for row in points], [100 * row["success"] for row in points]
            label = f"{method}, over {points[0]['over']}" if len(points) > 1 else method
            axes.plot(x, y, "so"[number % 2] + "-", color=pyplot.colormaps["tab20"](number), label=label)
            for row, at in zip(points, zip(x, y, strict=True), strict=True):
                axes.annotate(f"{row['value']:g}", at, (4, 4), textcoords="offset points", fontsize=7)
        x, y = zip(*((row["background"], 100 * row["success"]) for row in front(made)), strict=True)
        axes.plot(x, y, "o", markersize=13, fillstyle="none", color="black", label="Pareto front")
        axes.set(xlabel="preservation: PSNR where the true edit changes nothing, dB", ylim=(35, 103))
        axes.set_title(f"{title}: {made[0]['edits']} edits", fontsize=10)
    grid[0].set_ylabel("success, %")
    figure.legend(*grid[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    figure.suptitle("Toy world: up and to the right is better", fontsize=11)
    figure.savefig(file, dpi=110)


@torch.inference_mode()
def draw_sheet(count: int = 8) -> Image.Image:
    """The first edits of colour, shape and pattern: source, one row a method of PICTURED, true edit."""
    batch = draw(0, count, KINDS[:3])
    truth = np.stack([bench().core.scene.render(edit.target) for edit in batch.edits])
    results = [bench().vae.decode(method(batch)).numpy() for method in PICTURED]
    framed = [
        np.pad(row, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=1.0) for row in (batch.images.numpy(), *results, truth)
    ]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in framed])
    picture = Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8))
    return picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST)


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
    parser.add_argument("--study", choices=STUDIES, default="methods")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "edit_quality")
    parser.add_argument("--edits", type=int, help="default: 200 for the methods, 60 for the ablations")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, one core each")
    parser.add_argument("--only", nargs="+", default=[""], help="curves whose names begin so")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--picture", type=Path, help="where to draw some methods side by side; nothing else is done then")
    options = parser.parse_args()
    if options.picture:
        start_worker(options.comfyui)
        draw_sheet().save(options.picture)
        return
    methods = options.study == "methods"
    count = 24 if options.quick else options.edits or (200 if methods else 60)
    kinds, begin = (KINDS, 0) if methods else (KINDS[:3], FIRST_ABLATED)
    curves = [curve for curve in STUDIES[options.study] if curve.name.startswith(tuple(options.only))]
    if options.quick:
        curves = [Curve(curve.name, curve.over, dict(list(curve.points.items())[::2])) for curve in curves]
    settings = list(dict.fromkeys(method for curve in curves for method in curve.points.values()))
    # Batch by batch, so that what a worker knows of the sources serves all methods.
    parts = [(first, min(BATCH, begin + count - first)) for first in range(begin, begin + count, BATCH)]
    wanted = {(repr(method), *part): (method, *part, kinds) for part in parts for method in settings}

    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "records.jsonl"
    lines = {(line["setting"], line["first"], line["count"]): line for line in read_lines(file)}
    todo = [task for key, task in wanted.items() if key not in lines]
    spawn, began = multiprocessing.get_context("spawn"), time.monotonic()
    with ProcessPoolExecutor(options.jobs, spawn, start_worker, (options.comfyui,)) as pool, file.open("a") as stream:
        for number, future in enumerate(as_completed([pool.submit(work, *task) for task in todo]), 1):
            line = future.result()
            lines[line["setting"], line["first"], line["count"]] = line
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            left = (time.monotonic() - began) / number * (len(todo) - number)
            print(f"{number}/{len(todo)}, {left / 60:.0f} min left: {line['setting']}", file=sys.stderr, flush=True)
    lines = [lines[key] for key in wanted]
    made = rows(curves, lines)
    (options.output / f"{options.study}.md").write_text(table(made) + "\n")
    (options.output / f"{options.study}.json").write_text(json.dumps(made, indent=1) + "\n")
    print(table(made))
    if methods:
        objects, patterns = rows(curves, lines, KINDS[:2]), rows(curves, lines, KINDS[2:3])
        (options.output / "objects.md").write_text(table(objects) + "\n")
        plot({"colour and shape of the object": objects, "pattern of the background": patterns}, options.output / "methods.png")
        print("\nColour and shape edits alone\n\n" + table(objects))


if __name__ == "__main__":
    main()
