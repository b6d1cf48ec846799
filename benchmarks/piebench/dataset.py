"""The data set: its entries, its masks, and pictures of the toy world in the same layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from zerocon_core.toyworld.scene import COLOURS, SHAPES, caption, held_out_scenes, object_mask, render

MASK_SIDE = 512


@dataclass(frozen=True)
class Entry:
    """One entry of mapping_file.json. `runs` is its mask: start and length in turn over the rows of 512x512 pixels."""

    key: str
    path: str
    source: str
    target: str
    kind: str
    runs: tuple[int, ...]


def read_entries(folder: Path, kinds: str = "0123456789") -> list[Entry]:
    """The entries whose editing type is among `kinds`, their prompts without the brackets that mark the difference."""
    entries = json.loads((folder / "mapping_file.json").read_text(encoding="utf-8"))
    return [
        Entry(
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
