"""PIE-Bench (Ju et al. 2024) through a real ComfyUI server: edit every picture of the data set, measure each edit, sum up.

The data set is not part of this repository; its authors hand it out at https://github.com/cure-lab/PnPInversion. Its folder
holds mapping_file.json and annotation_images/. Each edit becomes one line of rows.jsonl, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.engine import Item, run_all, servers
from benchmarks.records import Records, Row
from benchmarks.tables import markdown
from tools.comfy_server import ROOT, Client, PromptError
from zerocon_core.metrics.report import cell, mean, title

from .dataset import Entry, decode_mask, make_toy_set, read_entries
from .graphs import METHODS, TOY, Graph, Settings

PAPER_COLUMNS = (
    "structure", "background_psnr", "background_lpips", "background_mse", "background_ssim", "clip_score", "clip_score_edited",
)  # fmt: skip

PAPER_NETWORKS = {"structure": "facebook/dino-vitb8", "lpips": "squeeze", "clip": "openai/clip-vit-large-patch14"}


def run_entry(images: Path, output: Path, entry: Entry, method: str, settings: Settings, client: Client) -> Row:
    """Edits and measures one picture of the data set in `images`. The edited one is written into `output`."""
    with tempfile.TemporaryDirectory() as temporary:
        mask_file = Path(temporary) / f"{entry.key}_mask.png"
        mask = decode_mask(entry.runs)
        Image.fromarray(mask * 255).convert("RGB").save(mask_file)  # some hosts load the white of grey pictures as 254
        names = client.upload(images / "annotation_images" / entry.path), client.upload(mask_file)
    graph = Graph(entry, *names, settings)
    picture, metrics = graph.finish(METHODS[method](graph))
    began = time.monotonic()
    outputs = client.run(graph)
    seconds = time.monotonic() - began
    path = (output / method / entry.path).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(client.view(outputs[picture]["images"][0]))
    measured = json.loads(outputs[metrics]["text"][0])
    return {
        "kind": entry.kind, "covered": bool(mask.all()), "seconds": round(seconds, 2), "metrics": measured["images"][0],
        "networks": measured["networks"],
    }  # fmt: skip


def summary(rows: list[Row]) -> str:
    """PIE-Bench's table of the methods in `rows`, and what its figures stand on."""
    keys = [key for key in PAPER_COLUMNS if any(key in row["metrics"] for row in rows)]
    lines, notes = [], [""]
    for method in METHODS:
        if done := [row for row in rows if row["method"] == method]:
            lines.append([method, *(cell(key, mean([row["metrics"].get(key) for row in done])) for key in keys)])
            covered, seconds = sum(row["covered"] for row in done), statistics.median(row["seconds"] for row in done)
            notes.append(
                f"{method}: {len(done)} images, {covered} of them with a mask over everything and so without background "
                f"figures; {seconds:.1f} s an image (median)"
            )
    networks = {f"{metric}: {name}" for row in rows for metric, name in row["networks"].items()}
    return "\n".join([markdown(["method", *map(title, keys)], lines), *notes, *sorted(networks)])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py piebench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=Path, help="the data set's folder; may be left out with --checkpoint toy")
    parser.add_argument("--checkpoint", required=True, help=f"file in models/checkpoints, a path, or {TOY}: the toy world")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, help="folder for rows, pictures and table; default output/piebench/<checkpoint>")
    parser.add_argument("--types", default="0123456789", help="editing types to take, such as 16")
    parser.add_argument("--limit", type=int, help="the first so many images only")
    parser.add_argument("--side", type=int, help="pixels that pictures are edited and measured at; default 512, toy 64")
    parser.add_argument("--steps", type=int, default=50, help="of inversion and sampling; default 50, PIE-Bench's")
    parser.add_argument("--iterations", type=int, default=200, help="of dds and cds; default 200, as in their papers")
    parser.add_argument("--cfg", type=float, default=7.5, help="of every method; default 7.5, as in PIE-Bench's runs")
    for metric, network in PAPER_NETWORKS.items():
        parser.add_argument(f"--{metric}", help=f'network as in the node Edit Metrics, or "off"; default {network}, toy off')
    options = parser.parse_args(arguments)
    toy = options.checkpoint == TOY
    if options.images is None and not toy:
        parser.error("--images is needed: the folder that holds mapping_file.json")
    if options.images is not None and not (options.images / "mapping_file.json").is_file():
        parser.error(f"{options.images} holds no mapping_file.json")
    for metric, network in PAPER_NETWORKS.items():
        if getattr(options, metric) is None:
            setattr(options, metric, "off" if toy else network)
    options.side = options.side or (64 if toy else 512)
    options.output = options.output or ROOT / "output" / "piebench" / Path(options.checkpoint).stem
    return options


def model_paths(comfyui: Path, options: argparse.Namespace, base: Path) -> list[str]:
    """Server arguments that make it find the models of this ComfyUI, and a checkpoint that was given as a path."""
    checkpoints = [comfyui / "models" / "checkpoints"]
    if Path(options.checkpoint).is_file():
        checkpoints.append(Path(options.checkpoint).resolve().parent)
    lines = ["piebench:", "  checkpoints: |", *(f"    {folder}" for folder in checkpoints)]
    lines.append(f"  metrics: {comfyui / 'models' / 'metrics'}")
    file = base / "piebench_models.yaml"
    base.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--extra-model-paths-config", str(file)]


def run(client: Client, options: argparse.Namespace) -> int:
    """Edits and measures what is not there yet, then prints the table. Returns the exit code: 1 if an image failed."""
    if options.images is None:
        options.images = options.output / "toy_set"
        make_toy_set(options.images, options.limit or 8)
    settings = Settings(
        Path(options.checkpoint).name, options.side, options.steps, options.iterations, options.cfg, options.structure,
        options.lpips, options.clip,
    )  # fmt: skip
    records = Records(options.output / "rows.jsonl", ("key", "method"), asdict(settings))
    items = [
        Item((entry.key, method), partial(run_entry, options.images, options.output, entry, method, settings))
        for entry in read_entries(options.images, options.types)[: options.limit]
        for method in options.methods
    ]
    rows = run_all(items, records, servers([client], PromptError))
    table = summary(rows)
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}")
    return int(len(rows) < len(items))
