"""Folders with each kind of network that is loaded in transformers' format, tiny and random."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bert_files import write_bert
from tiny_networks import save_blip, save_clip, save_dino
from torch import nn

from zerocon_core.language.captioning import load_captioner
from zerocon_core.language.fill_mask import load_fill_mask
from zerocon_core.metrics.networks import load_clip, load_dino


class Kind(NamedTuple):
    save: Callable[[Path], Path]
    load: Callable[[Path], object]
    tensor: str
    """One of those in model.safetensors."""


KINDS = {
    "captioner": Kind(save_blip, load_captioner, "vision_model.embeddings.class_embedding"),
    "BERT model": Kind(write_bert, load_fill_mask, "bert.embeddings.word_embeddings.weight"),
    "CLIP": Kind(save_clip, load_clip, "visual_projection.weight"),
    "ViT": Kind(save_dino, load_dino, "embeddings.position_embeddings"),
}


def configure(folder: Path, **settings) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def network(loaded) -> nn.Module:
    return loaded[0] if isinstance(loaded, tuple) else loaded
