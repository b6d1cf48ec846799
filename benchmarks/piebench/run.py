"""PIE-Bench (Ju et al. 2024) through a real ComfyUI server: edit every picture of the data set, measure each edit, sum up.

The data set is not part of this repository; its authors hand it out at https://github.com/cure-lab/PnPInversion. Its folder
holds mapping_file.json and annotation_images/. Each edit becomes one line of rows.jsonl, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tools.comfy_server import ROOT, Client, PromptError
from zerocon_core.metrics.report import cell, mean, row, title
from zerocon_core.toyworld.scene import COLOURS, SHAPES, caption, held_out_scenes, object_mask, render

TOY = "toy"
MASK_SIDE = 512
PAPER_COLUMNS = (
    "structure", "background_psnr", "background_lpips", "background_mse", "background_ssim", "clip_score", "clip_score_edited",
)  # fmt: skip

PAPER_NETWORKS = {"structure": "facebook/dino-vitb8", "lpips": "squeeze", "clip": "openai/clip-vit-large-patch14"}

Link = tuple[str, int]


@dataclass(frozen=True)
class Item:
    """One entry of mapping_file.json. `runs` is its mask: start and length in turn over the rows of 512x512 pixels."""

    key: str
    path: str
    source: str
    target: str
    kind: str
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """What all rows of one file have in common. `structure`, `lpips` and `clip` are choices of the node Edit Metrics."""

    checkpoint: str
    side: int
    steps: int
    iterations: int
    cfg: float
    structure: str
    lpips: str
    clip: str


def read_items(folder: Path, kinds: str = "0123456789") -> list[Item]:
    """The entries whose editing type is among `kinds`, their prompts without the brackets that mark the difference."""
    entries = json.loads((folder / "mapping_file.json").read_text(encoding="utf-8"))
    return [
        Item(
            key, entry["image_path"], plain(entry["original_prompt"]), plain(entry["editing_prompt"]),
            str(entry["editing_type_id"]), tuple(entry["mask"]),
        )
        for key, entry in entries.items()
        if str(entry["editing_type_id"]) in kinds
    ]  # fmt: skip


def plain(prompt: str) -> str:
    return prompt.replace("[", "").replace("]", "")


def decode_mask(runs: Iterable[int]) -> np.ndarray:
    """(512, 512) of 0 and 1. The outermost pixels always count as edited, as in the protocol: their annotation is unreliable."""
    mask = np.zeros(MASK_SIDE**2, np.uint8)
    runs = list(runs)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start : start + length] = 1
    mask = mask.reshape(MASK_SIDE, MASK_SIDE)
    mask[[0, -1]] = mask[:, [0, -1]] = 1
    return mask


def encode_mask(mask: np.ndarray) -> list[int]:
    """The runs of ones of a mask, as the data set writes them."""
    edges = np.flatnonzero(np.diff(mask.ravel().astype(np.int8), prepend=0, append=0))
    return [int(value) for start, end in zip(edges[::2], edges[1::2], strict=True) for value in (start, end - start)]


def make_toy_set(folder: Path, count: int) -> None:
    """Pictures of the toy world in the layout of PIE-Bench: colour and shape edits, every fourth with a mask over everything."""
    pictures = folder / "annotation_images"
    entries = {}
    for i, scene in enumerate(held_out_scenes(count)):
        attribute, values, kind = (("colour", COLOURS, "6"), ("shape", SHAPES, "1"))[i % 2]
        word = getattr(scene, attribute)
        target = replace(scene, **{attribute: values[(values.index(word) + 1) % len(values)]})
        mask = np.maximum(object_mask(scene, MASK_SIDE), object_mask(target, MASK_SIDE)) > 0
        path = f"{kind}_toy/{i:012}.jpg"
        (pictures / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((render(scene, MASK_SIDE) * 255).round().astype(np.uint8)).save(pictures / path, quality=95)
        entries[f"{i:012}"] = {
            "image_path": path,
            "original_prompt": caption(scene).replace(word, f"[{word}]"),
            "editing_prompt": caption(target).replace(getattr(target, attribute), f"[{getattr(target, attribute)}]"),
            "editing_type_id": kind,
            "mask": encode_mask(np.ones_like(mask) if i % 4 == 3 else mask),
        }
    (folder / "mapping_file.json").write_text(json.dumps(entries), encoding="utf-8")


class Graph(dict):
    """A graph in API format, grown node by node; the methods below end in the edited latent."""

    def __init__(self, item: Item, picture: str, mask: str, settings: Settings) -> None:
        super().__init__()
        self.settings, self.item = settings, item
        if settings.checkpoint == TOY:
            loader = self.add("ZeroConToyWorld")
        else:
            loader = self.add("CheckpointLoaderSimple", ckpt_name=settings.checkpoint)
        self.model, self.clip, self.vae = ((loader, i) for i in range(3))
        size = {"width": settings.side, "height": settings.side, "crop": "disabled"}
        self.image = (self.add("ImageScale", image=(self.add("LoadImage", image=picture), 0), upscale_method="area", **size), 0)
        self.mask = (self.add("LoadImageMask", image=mask, channel="red"), 0)
        self.latent = (self.add("VAEEncode", pixels=self.image, vae=self.vae), 0)
        self.source, self.target, self.empty = (
            (self.add("CLIPTextEncode", clip=self.clip, text=text), 0) for text in (item.source, item.target, "")
        )

    def add(self, class_type: str, **inputs) -> str:
        name = str(len(self) + 1)
        self[name] = {"class_type": class_type, "inputs": {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()}}
        return name

    def invert(self, weight: float) -> str:
        """DDIM inversion with the source prompt; `weight` is that of both terms of pix2pix-zero's noise regularisation."""
        return self.add(
            "ZeroConDDIMInvert", model=self.model, image_latent=self.latent, conditioning=self.source, steps=self.settings.steps,
            lambda_ac=weight, lambda_kl=weight, regularization_steps=5, rolls=5, refinements=0, seed=0,
        )  # fmt: skip

    def sample(self, guider: str, inversion: str) -> Link:
        noise, sampler = self.add("DisableNoise"), self.add("KSamplerSelect", sampler_name="euler")
        return self.add(
            "SamplerCustomAdvanced", noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0), sigmas=(inversion, 2),
            latent_image=(inversion, 0),
        ), 0  # fmt: skip

    def ddim(self) -> Link:
        """DDIM inversion, then sampling with the target prompt: word swap."""
        inversion = self.invert(0.0)
        guider = self.add("CFGGuider", model=self.model, positive=self.target, negative=self.empty, cfg=self.settings.cfg)
        return self.sample(guider, inversion)

    def pix2pix_zero(self, lambda_cut: float = 0.0) -> Link:
        """With one sentence a side, as PIE-Bench's own run of it. That run captions by BLIP; here the source prompt is taken."""
        inversion = self.invert(20.0)
        layers = {"self_attention": "decoder", "cross_attention": "all", "max_side": 0}
        hooked = self.add("ZeroConAttentionHookedUNet", model=self.model, **layers)
        guider = self.add(
            "ZeroConPatchNCEGuidance", hooked_model=(hooked, 0), source=self.source, edited=self.target, negative=self.source,
            trajectory=(inversion, 1), cfg=self.settings.cfg, lambda_xa=0.1, lambda_cut=lambda_cut, weighting="relative",
            temperature=0.07, patches=256, patch_sizes="1, 2", contrast="cds", start_percent=0.0, end_percent=1.0, seed=0,
        )  # fmt: skip
        return self.sample(guider, inversion)

    def zerocon(self) -> Link:
        """pix2pix-zero with the contrastive loss at the weight that the nodes start with."""
        return self.pix2pix_zero(lambda_cut=0.5)

    def cds(self, w_cut: float = 3.0) -> Link:
        """CDS Optimize with the papers' settings."""
        return self.add(
            "ZeroConCDSOptimize", model=self.model, image_latent=self.latent, source=self.source, target=self.target,
            negative=self.empty, cfg=self.settings.cfg, steps=self.settings.iterations, step_size=0.0488, step_rule="fixed",
            w_dds=1.0, w_cut=w_cut, temperature=0.07, patches=256, patch_sizes="1, 2", contrast="cds", min_timestep=50,
            max_timestep=948, timestep_order="random", ids_steps=0, checkpointing=False, seed=0,
        ), 0  # fmt: skip

    def dds(self) -> Link:
        return self.cds(w_cut=0.0)

    def finish(self, edited: Link) -> tuple[str, str]:
        """Adds the picture and its metrics; returns the ids of the nodes that show them."""
        image = (self.add("VAEDecode", samples=edited, vae=self.vae), 0)
        metrics = self.add(
            "ZeroConEditMetrics", source=self.image, edited=image, mask=self.mask, source_text=self.item.source,
            target_text=self.item.target, structure=self.settings.structure, lpips=self.settings.lpips, clip=self.settings.clip,
            pixels="0 to 255",
        )  # fmt: skip
        return self.add("PreviewImage", images=image), self.add("PreviewAny", source=(metrics, 1))


METHODS: dict[str, Callable[[Graph], Link]] = {
    "ddim": Graph.ddim,
    "pix2pix-zero": Graph.pix2pix_zero,
    "zerocon": Graph.zerocon,
    "dds": Graph.dds,
    "cds": Graph.cds,
}


def run_item(client: Client, folder: Path, item: Item, method: str, settings: Settings) -> tuple[dict, bytes]:
    """The record of one edit, and its picture as PNG."""
    with tempfile.TemporaryDirectory() as temporary:
        mask_file = Path(temporary) / f"{item.key}_mask.png"
        mask = decode_mask(item.runs)
        Image.fromarray(mask * 255).convert("RGB").save(mask_file)  # some hosts load the white of grey pictures as 254
        names = client.upload(folder / "annotation_images" / item.path), client.upload(mask_file)
    graph = Graph(item, *names, settings)
    picture, metrics = graph.finish(METHODS[method](graph))
    began = time.monotonic()
    outputs = client.run(graph)
    seconds = time.monotonic() - began
    measured = json.loads(outputs[metrics]["text"][0])
    record = {"key": item.key, "method": method, "kind": item.kind, "covered": bool(mask.all()), "seconds": round(seconds, 2)}
    record |= {"metrics": measured["images"][0], "networks": measured["networks"], "settings": asdict(settings)}
    return record, client.view(outputs[picture]["images"][0])


def read_rows(file: Path) -> list[dict]:
    """Finished rows; a last line cut off in the middle is removed from the file."""
    if not file.exists():
        return []
    whole, _, rest = file.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def summary(rows: list[dict]) -> str:
    """PIE-Bench's table of the methods in `rows`, and what its figures stand on."""
    keys = [key for key in PAPER_COLUMNS if any(key in record["metrics"] for record in rows)]
    lines, notes = [row("method", *map(title, keys)), row(*["---"] * (len(keys) + 1))], [""]
    for method in METHODS:
        if done := [record for record in rows if record["method"] == method]:
            means = {key: mean([record["metrics"].get(key) for record in done]) for key in keys}
            lines.append(row(method, *(cell(key, value) for key, value in means.items())))
            covered, seconds = sum(r["covered"] for r in done), statistics.median(r["seconds"] for r in done)
            notes.append(
                f"{method}: {len(done)} images, {covered} of them with a mask over everything and so without background "
                f"figures; {seconds:.1f} s an image (median)"
            )
    networks = {f"{metric}: {name}" for record in rows for metric, name in record["networks"].items()}
    return "\n".join([*lines, *notes, *sorted(networks)])


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
    options.output.mkdir(parents=True, exist_ok=True)
    if options.images is None:
        options.images = options.output / "toy_set"
        make_toy_set(options.images, options.limit or 8)
    settings = Settings(
        Path(options.checkpoint).name, options.side, options.steps, options.iterations, options.cfg, options.structure,
        options.lpips, options.clip,
    )  # fmt: skip
    file = options.output / "rows.jsonl"
    rows = read_rows(file)
    if others := [r["settings"] for r in rows if r["settings"] != asdict(settings)]:
        print(f"error: {file} holds rows of other settings ({others[0]}); choose another --output", file=sys.stderr)
        return 2
    items = read_items(options.images, options.types)[: options.limit]
    done = {(r["key"], r["method"]) for r in rows}
    todo = [(item, method) for item in items for method in options.methods if (item.key, method) not in done]
    failed, began = 0, time.monotonic()
    for number, (item, method) in enumerate(todo, 1):
        try:
            record, picture = run_item(client, options.images, item, method, settings)
        except PromptError as error:
            failed += 1
            print(f"   {item.key} {method} FAILED: {error}", file=sys.stderr, flush=True)
            continue
        path = (options.output / method / item.path).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        rows.append(record)
        left = (time.monotonic() - began) / number * (len(todo) - number)
        print(f"   {number}/{len(todo)} {item.key} {method} {record['seconds']:.1f} s, {left / 60:.0f} min left", flush=True)
    wanted = {item.key for item in items}
    table = summary([r for r in rows if r["key"] in wanted])
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}")
    if failed:
        print(f"\n{failed} edits failed and are missing from the table; the same command tries them again", file=sys.stderr)
    return int(failed > 0)
