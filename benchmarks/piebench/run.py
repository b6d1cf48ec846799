"""PIE-Bench (Ju et al. 2024) through a real ComfyUI server: edit every picture of the data set, measure each edit, sum up.

The data set is not part of this repository; its authors hand it out at https://github.com/cure-lab/PnPInversion. Its folder
holds mapping_file.json and annotation_images/. Each edit becomes one line of rows.jsonl, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.tables import markdown
from runs.engine import Item, run_all
from runs.fleet import fleet
from runs.records import Records, Row, write_whole
from runs.servers.choice import add_engine_options, check_engine_options, model_folders_of, servers_of
from runs.servers.job import Job, Server
from runs.servers.own import Setup
from tools.comfy_client import PromptError
from tools.comfy_server import ROOT
from zerocon_core.metrics.report import cell, mean, title

from .dataset import Entry, decode_mask, make_toy_set, read_entries
from .graphs import METHODS, TOY, Graph, Settings

PAPER_COLUMNS = (
    "structure", "background_psnr", "background_lpips", "background_mse", "background_ssim", "clip_score", "clip_score_edited",
)  # fmt: skip

PAPER_NETWORKS = {"structure": "facebook/dino-vitb8", "lpips": "squeeze", "clip": "openai/clip-vit-large-patch14"}


def run_entry(images: Path, output: Path, entry: Entry, method: str, settings: Settings, server: Server) -> Row:
    """Edits and measures one picture of the data set in `images`. The edited one is written into `output`."""
    mask = decode_mask(entry.runs)
    picture, mask_name = Path(entry.path).name, f"{entry.key}_mask.png"
    graph = Graph(entry, picture, mask_name, settings)
    shown, metrics = graph.finish(METHODS[method](graph))
    content = (images / "annotation_images" / entry.path).read_bytes()
    answer = server.perform(Job(graph, {picture: content, mask_name: encoded(mask)}))
    write_whole((output / method / entry.path).with_suffix(".png"), answer.images[shown][0])
    measured = json.loads(answer.outputs[metrics]["text"][0])
    return {
        "kind": entry.kind, "covered": bool(mask.all()), "seconds": round(answer.seconds, 2), "metrics": measured["images"][0],
        "networks": measured["networks"],
    }  # fmt: skip


def encoded(mask: np.ndarray) -> bytes:
    """As PNG, in colours: some hosts load the white of grey pictures as 254."""
    file = io.BytesIO()
    Image.fromarray(mask * 255).convert("RGB").save(file, "png")
    return file.getvalue()


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
    add_engine_options(parser)
    options = parser.parse_args(arguments)
    check_engine_options(parser, options)
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


def servers_for(comfyui: Path, options: argparse.Namespace) -> Sequence[Server]:
    """Servers that find the models of this ComfyUI, and a checkpoint that was given as a path."""
    folders = model_folders_of(options, comfyui)
    models = [] if options.checkpoint == TOY else [Path(options.checkpoint).name]
    if Path(options.checkpoint).is_file():
        folders["checkpoints"] = [*folders.get("checkpoints", []), Path(options.checkpoint).resolve().parent]
    return servers_of(options, Setup(comfyui, folders, hung_seconds=options.hung, models=models))


def run(servers: Sequence[Server], options: argparse.Namespace) -> int:
    """Edits and measures what is not there yet, then prints the table. Returns the exit code: 1 if an image failed."""
    if options.images is None:
        options.images = options.output / "toy_set"
        make_toy_set(options.images, options.limit or 8)
    settings = Settings(
        Path(options.checkpoint).name, options.side, options.steps, options.iterations, options.cfg, options.structure,
        options.lpips, options.clip,
    )  # fmt: skip
    items = [
        Item((entry.key, method), partial(run_entry, options.images, options.output, entry, method, settings))
        for entry in read_entries(options.images, options.types)[: options.limit]
        for method in options.methods
    ]
    with Records(options.output / "rows.jsonl", ("key", "method"), asdict(settings)) as records:
        rows = run_all(items, records, fleet(servers, PromptError))
    table = summary(rows)
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}")
    return int(len(rows) < len(items))
