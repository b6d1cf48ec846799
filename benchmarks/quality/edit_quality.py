"""Success against preservation: every method, and every choice the papers leave open, on the same held-out toy edits.

    python -m benchmarks.quality.edit_quality [--study methods|ablations] [--output DIR] [--jobs N] [--quick]

Edits of colour, shape and pattern and, among the methods, identities (the same caption on both sides). What is measured is said
in toy.score. A method that does nothing preserves perfectly, hence curves. The ablations run on other edits than the methods, so
that defaults chosen from them are judged on edits that had no part in the choice. Each finished batch is a line of
DIR/records.jsonl, by the setting itself, and a run that was stopped goes on where it was. --quick takes 24 edits and one or two
strengths a method. Toy figures: they say nothing about Stable Diffusion.
"""

import argparse
import json
import os
import sys
import time
from functools import lru_cache, partial
from pathlib import Path

import torch

from runs.engine import Item, pool, run_all
from runs.records import Records, Row

from ..toy.bench import ITERATIONS, STEPS, Batch, Bench
from ..toy.edits import ATTRIBUTES, KINDS, draw_edits
from ..toy.score import score
from .drawing import draw_sheet, plot
from .report import Curve, rows, table
from .studies import STUDIES, Method

BATCH = 20
FIRST_ABLATED = 1000
"""Number of the first edit of the ablations."""

OUTPUT = Path("output") / "edit_quality"


@lru_cache(maxsize=1)
def bench() -> Bench:
    return Bench()


@lru_cache(maxsize=1)
def draw(first: int, count: int, kinds: tuple[str, ...]) -> Batch:
    return Batch(bench(), draw_edits(count, kinds, first))


@torch.inference_mode()
def work(method: Method, first: int, count: int, kinds: tuple[str, ...]) -> Row:
    """The scores of a method on a batch, and the seconds of one core that it took."""
    batch = draw(first, count, kinds)
    began = time.process_time()
    latent = method(batch)
    seconds = time.process_time() - began
    return {"seconds": seconds, "edits": score(batch, bench().vae.decode(latent))}


def work_items(curves: list[Curve], study: str, count: int) -> list[Item]:
    """Batch by batch, so that what a process knows of the sources serves all methods."""
    kinds, begin = (KINDS, 0) if study == "methods" else (ATTRIBUTES, FIRST_ABLATED)
    parts = [(first, min(BATCH, begin + count - first)) for first in range(begin, begin + count, BATCH)]
    methods = dict.fromkeys(method for curve in curves for method in curve.points.values())
    return [Item((repr(method), *part), partial(work, method, *part, kinds)) for part in parts for method in methods]


def write_report(output: Path, study: str, curves: list[Curve], lines: list[Row]) -> None:
    made = rows(curves, lines)
    (output / f"{study}.md").write_text(table(made) + "\n")
    (output / f"{study}.json").write_text(json.dumps(made, indent=1) + "\n")
    print(table(made))
    if study == "methods":
        objects, patterns = rows(curves, lines, ("colour", "shape")), rows(curves, lines, ("pattern",))
        (output / "objects.md").write_text(table(objects) + "\n")
        plot({"colour and shape of the object": objects, "pattern of the background": patterns}, output / "methods.png")
        print("\nColour and shape edits alone\n\n" + table(objects))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="methods")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--edits", type=int, help="default: 200 for the methods, 60 for the ablations")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, one core each")
    parser.add_argument("--only", nargs="+", default=[""], help="curves whose names begin so")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--picture", type=Path, help="where to draw some methods side by side; nothing else is done then")
    options = parser.parse_args()
    if options.picture:
        draw_sheet(draw(0, 8, ATTRIBUTES)).save(options.picture)
        return 0
    count = 24 if options.quick else options.edits or (200 if options.study == "methods" else 60)
    curves = [curve for curve in STUDIES[options.study] if curve.name.startswith(tuple(options.only))]
    if options.quick:
        curves = [curve.thinned() for curve in curves]
    items = work_items(curves, options.study, count)
    settings = {"steps": STEPS, "iterations": ITERATIONS}
    with Records(options.output / "records.jsonl", ("setting", "first", "count"), settings) as records:
        lines = run_all(items, records, pool(options.jobs))
    write_report(options.output, options.study, curves, lines)
    return int(len(lines) < len(items))


if __name__ == "__main__":
    sys.exit(main())
