"""What a method is given: the toy world's model with prompts and a picture, and the host's nodes to change it with."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import nodes
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor
from zerocon_pack.bridge.model.conditioning import encode_caption
from zerocon_pack.bridge.toyworld import load_toy_world
from zerocon_pack.zerocon_core.toyworld.scene import caption, render, scene_from_seed

SIDE = 32
"""Of the picture: a part of a scene, since all that is asked here is asked of every position."""


@dataclass(frozen=True)
class Subject:
    """MODEL, CLIP, VAE, the LATENT of a picture, and CONDITIONINGs of what it shows, what it shall show, and of nothing."""

    model: ModelPatcher
    clip: Any
    vae: Any
    caption: str
    picture: Tensor
    latent: dict
    source: list
    edited: list
    negative: list


def toy_subject() -> Subject:
    model, clip, vae = load_toy_world()
    scene = scene_from_seed(2)
    picture = torch.from_numpy(render(scene))[16 : 16 + SIDE, 16 : 16 + SIDE].unsqueeze(0)
    edited = caption(scene).replace(scene.colour, "white")
    source, edited, negative = (encode_caption(clip, text) for text in (caption(scene), edited, ""))
    return Subject(model, clip, vae, caption(scene), picture, {"samples": vae.encode(picture)}, source, edited, negative)


def stock(name: str, **inputs) -> tuple:
    """The outputs of a node of the host. Raises KeyError where this host does not have it."""
    kind = nodes.NODE_CLASS_MAPPINGS[name]
    if issubclass(kind, io.ComfyNode):
        declared = {value.id for value in kind.define_schema().inputs}  # older hosts' nodes have fewer
        output = kind.execute(**{name: value for name, value in inputs.items() if name in declared})
        return output.args if isinstance(output, io.NodeOutput) else output
    return getattr(kind(), kind.FUNCTION)(**inputs)


def execute(node: type, **inputs) -> tuple:
    """What a node of the pack gives, run on a page that does not look."""
    return type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id="0")}).execute(**inputs).args
