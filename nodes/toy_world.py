from dataclasses import replace

import numpy as np
import torch
from comfy_api.latest import io

from ..bridge.toyworld import load_toy_world
from ..zerocon_core.toyworld.scene import (
    COLOURS,
    HELD_OUT_SEED,
    PATTERNS,
    SHAPES,
    caption,
    object_mask,
    render,
    scene_from_seed,
)
from .shared.refusals import refusing
from .shared.schema import search_aliases

CATEGORY = "ZeroCon/toy world"
RANDOM = "random"


class ToyWorld(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConToyWorld",
            display_name="Toy World",
            category=CATEGORY,
            **search_aliases("demo model", "test checkpoint"),
            description="A latent diffusion model of a few megabytes that ships with the pack and runs on any machine. It knows "
            "pictures of 64x64 pixels such as \"a red circle on a striped background\", and nothing else.",
            inputs=[],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The U-Net."),
                io.Clip.Output("clip", tooltip="The text encoder."),
                io.Vae.Output("vae", tooltip="The autoencoder between pictures and latents."),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls):
        return io.NodeOutput(*load_toy_world())


class ToyScene(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConToyScene",
            display_name="Toy Scene",
            category=CATEGORY,
            **search_aliases("demo image", "test image"),
            description="Draws a picture of the toy world, one that its models never saw. The same seed with another colour, "
            "shape or pattern is the true edit of that picture.",
            inputs=[
                io.Int.Input("seed", default=0, min=0, max=999_999_999, tooltip="The scene's number."),
                _choice("colour", COLOURS, "Colour of the object."),
                _choice("shape", SHAPES, "Shape of the object."),
                _choice("pattern", PATTERNS, "Pattern of the background."),
                io.Int.Input("size", default=64, min=64, max=1024, step=64, tooltip="Side in pixels. The models know 64."),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The picture."),
                io.String.Output("caption", display_name="caption", tooltip="The scene in words."),
                io.Mask.Output("object_mask", display_name="object_mask", tooltip="Where the object is."),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls, seed, colour, shape, pattern, size):
        chosen = {"colour": colour, "shape": shape, "pattern": pattern}
        scene = replace(scene_from_seed(HELD_OUT_SEED + seed), **{k: v for k, v in chosen.items() if v != RANDOM})
        return io.NodeOutput(_batch(render(scene, size)), caption(scene), _batch(object_mask(scene, size)))


class ToyTrainingSet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConToyTrainingSet",
            display_name="Toy Training Set",
            category=CATEGORY,
            **search_aliases("demo data set"),
            description="Draws pictures of the toy world to train on, with their captions. None of them is one of Toy Scene.",
            inputs=[
                io.Int.Input("first", default=0, min=0, max=999_999, tooltip="The number of the first scene."),
                io.Int.Input("count", default=32, min=1, max=10_000, tooltip="How many scenes."),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="All pictures as one batch."),
                io.String.Output(
                    "captions", display_name="captions", is_output_list=True, tooltip="The scenes in words, in the same order."
                ),
            ],
        )

    @classmethod
    @refusing
    def execute(cls, first, count):
        scenes = [scene_from_seed(first + number) for number in range(count)]
        return io.NodeOutput(torch.cat([_batch(render(scene)) for scene in scenes]), [caption(scene) for scene in scenes])


def _choice(name: str, options: tuple[str, ...], tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=[RANDOM, *options], default=RANDOM, tooltip=tooltip)


def _batch(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values)[None]
