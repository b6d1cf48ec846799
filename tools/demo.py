"""The demo: one translation by the shipped workflow over HTTP, drawn for a person and measured against the renderer's truth."""

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from tools.comfy_client import Client
from tools.comfy_server import ROOT
from zerocon_core.toyworld.classifier import classify
from zerocon_core.toyworld.scene import COLOURS, HELD_OUT_SEED, PATTERNS, SHAPES, object_mask, scene_from_seed

WORKFLOW = ROOT / "workflows" / "api" / "zerocon_toy.json"
SCENE = replace(scene_from_seed(HELD_OUT_SEED + 4), colour="red")  # what Toy Scene draws in it
PANELS = ("source", "reconstruction", "translation")  # what the names of the workflow's saved images end in
WORDS = {"colour": COLOURS, "shape": SHAPES, "pattern": PATTERNS}


def run_demo(client: Client, folder: Path) -> int:
    """Run it, save the picture and print the figures. Returns the exit code: 1 if the edit did not happen."""
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    [edit] = inputs(graph, "ZeroConEditDirection")

    began = time.monotonic()
    outputs = client.run(graph, progress_printer(graph))
    seconds = time.monotonic() - began
    panels = {
        panel: np.asarray(Image.open(io.BytesIO(client.view(outputs[node]["images"][0]))).convert("RGB"))
        for node, content in graph.items()
        for panel in PANELS
        if content["class_type"] == "SaveImage" and content["inputs"]["filename_prefix"].endswith(panel)
    }

    folder.mkdir(exist_ok=True)
    path = folder / "zerocon_demo.png"
    captions = ("source", "reconstruction", f"{edit['edit_from']} to {edit['edit_to']}")
    side_by_side([panels[panel] for panel in PANELS], captions).save(path)
    print(f"\npicture         {path}")
    print(f"time            {seconds:.1f} s for the workflow")
    return report(panels, edit["edit_to"])


def inputs(graph: dict, class_type: str) -> list[dict]:
    return [node["inputs"] for node in graph.values() if node["class_type"] == class_type]


def progress_printer(graph: dict) -> Callable[[str, dict], None]:
    """Names the node at work, and its steps where someone is watching."""

    def show(kind: str, data: dict) -> None:
        if kind == "executing" and data["node"]:
            node = graph[data["node"]]
            print(f"   {node.get('_meta', {}).get('title', node['class_type'])}", flush=True)
        elif kind == "progress" and sys.stdout.isatty():
            print(f"   {data['value']}/{data['max']}", end="\r", flush=True)

    return show


def side_by_side(pictures: Sequence[np.ndarray], captions: Sequence[str], side: int = 256, margin: int = 16) -> Image.Image:
    """The pictures in a row with a caption under each, every pixel of theirs still to be seen."""
    font = ImageFont.load_default(size=18)
    sheet = Image.new("RGB", (len(pictures) * (side + margin) + margin, side + 3 * margin + 18), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = margin + i * (side + margin)
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, margin))
        draw.text((x + side // 2, 2 * margin + side), caption, "black", font, anchor="ma")
    return sheet


def report(panels: dict[str, np.ndarray], target: str) -> int:
    [attribute] = [name for name, words in WORDS.items() if target in words]
    before, after = (classify(torch.from_numpy(panels[name] / 255.0)[None]) for name in ("source", "translation"))
    outside = np.maximum(object_mask(SCENE), object_mask(replace(SCENE, **{attribute: target}))) == 0
    for name in ("reconstruction", "translation"):
        print(f"background      {psnr(panels['source'], panels[name], outside):.1f} dB PSNR, {name} against source")
    for name in WORDS:
        [was], [now] = getattr(before, name), getattr(after, name)
        print(f"{name:15} {was} -> {now}" if was != now else f"{name:15} {now}, unchanged")
    [found] = getattr(after, attribute)
    if found == target:
        return 0
    print(f"The edit did not happen: the {attribute} reads as {found}, {target} was asked for.", file=sys.stderr)
    return 1


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit pictures over the pixels of a mask."""
    error = np.square(a[where].astype(float) - b[where]).mean()
    return 10.0 * np.log10(255.0**2 / error)
