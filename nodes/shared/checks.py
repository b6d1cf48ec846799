"""What several nodes refuse, and how inputs that are lists become one value."""

import math
import re
from collections.abc import Callable
from functools import wraps

import torch
from comfy_api.latest import io

from ...bridge.model.facts import text_width

SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of characters in UTF-16, which are no text by themselves: no tokenizer, file or page takes them."""


def check_written(inputs: dict) -> None:
    """Numbers and texts that the page cannot send, but a program that drives the server can."""
    for name, value in inputs.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{name} is {item}; it needs a finite number")
            if isinstance(item, str) and (half := SURROGATE.search(item)):
                raise ValueError(f"{name} holds one half of a character, U+{ord(half[0]):04X}; write whole characters")


def check_latent(samples: torch.Tensor, model) -> None:
    if samples.ndim != 4:
        raise ValueError(f"the latent is {tuple(samples.shape)}; it needs image latents (B, C, H, W)")
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise ValueError(
            f"the latent has {samples.shape[1]} channels and the model {channels}; encode the image with the model's own VAE"
        )
    if min(samples.shape) == 0 or min(samples.shape[-2:]) < 2:
        raise ValueError(f"the latent is {tuple(samples.shape)}; it needs an image of at least 2x2 latent positions")
    if not torch.isfinite(samples).all():
        raise ValueError("the latent holds NaN or infinite values; check the image and the VAE that encoded it")


def check_conditionings(model, samples: torch.Tensor | None, **conditionings: list) -> None:
    """`samples` (B, C, H, W) where the latent is known that they will be used with."""
    width = text_width(model)
    for name, conditioning in conditionings.items():
        if not conditioning:
            raise ValueError(f"the {name} conditioning is empty; connect a prompt through CLIP Text Encode or Edit Direction")
        for tokens, options in conditioning:
            check_entry(name, tokens, options, samples)
        for tokens in (tokens for tokens, _ in conditioning if tokens is not None):
            if width is not None and tokens.shape[-1] != width:
                raise ValueError(
                    f"the {name} conditioning has embeddings of width {tokens.shape[-1]} and the model takes {width}; encode the "
                    "prompt with the CLIP of this model"
                )
            if samples is not None and tokens.shape[0] not in (1, samples.shape[0]):
                raise ValueError(
                    f"the {name} conditioning is a batch of {tokens.shape[0]}, the latent of {samples.shape[0]}; give one prompt "
                    "for all images or one for each, a line each in Edit Direction or Caption Encode"
                )


def check_encoded(conditioning: list) -> None:
    """For what a node has just made of texts."""
    if not all(tokens.isfinite().all() for tokens, _ in conditioning):
        raise ValueError("the embeddings are NaN or infinite; check the weights in the texts, such as (cat:1.2), and the CLIP")


def check_entry(name: str, tokens: torch.Tensor | None, options: dict, samples: torch.Tensor | None) -> None:
    """One prompt of a CONDITIONING: what no model takes, and areas that lie outside of the latent."""
    if tokens is not None and (tokens.ndim != 3 or min(tokens.shape) == 0):
        raise ValueError(
            f"the {name} conditioning has embeddings of {tuple(tokens.shape)}; it needs (B, tokens, width), as CLIP Text Encode "
            "gives them"
        )
    mask = options.get("mask")
    numbers = [tensor for tensor in (tokens, options.get("pooled_output"), mask) if isinstance(tensor, torch.Tensor)]
    if not all(torch.isfinite(tensor).all() for tensor in numbers) or not math.isfinite(options.get("strength", 1.0)):
        raise ValueError(
            f"the {name} conditioning holds NaN or infinite values; check the weights in its prompt, such as (cat:1.2), its "
            "strength and mask, and the text encoder"
        )
    if mask is not None and min(mask.shape) == 0:
        raise ValueError(f"the {name} conditioning has a mask of {tuple(mask.shape)}; check the node that made it")
    area = options.get("area")
    if samples is not None and area is not None and not lies_inside(area, *samples.shape[-2:]):
        raise ValueError(
            f"the {name} conditioning has an area that lies outside of the image; check width, height, x and y of its area node"
        )


def lies_inside(area: tuple, height: int, width: int) -> bool:
    """Whether a CONDITIONING's area, (height, width, y, x) in latent positions or shares, meets a latent of this size."""
    if area[0] == "percentage":
        rows, columns, top, left = (share * side for share, side in zip(area[1:], (height, width) * 2, strict=True))
        return 0 <= round(top) < height and 0 <= round(left) < width and rows > 0 and columns > 0
    rows, columns, top, left = area
    return 0 <= top < height and 0 <= left < width and rows > 0 and columns > 0


def check_images(name: str, images: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or min(images.shape) == 0:
        raise ValueError(f"{name} is {tuple(images.shape)}; it needs images of three colours (B, H, W, 3)")
    if not torch.isfinite(images).all():
        raise ValueError(f"{name} holds NaN or infinite values; check the node that made it")


def check_mask(mask: torch.Tensor, images: int | None = None) -> None:
    """`images` where it is known how many the mask will be used with."""
    if min(mask.shape, default=0) == 0 or not torch.isfinite(mask).all():
        raise ValueError(f"the mask {tuple(mask.shape)} is empty or holds NaN or infinite values; check the node that made it")
    if mask.min() < 0 or mask.max() > 1:
        raise ValueError(f"the mask has values from {float(mask.min()):.4g} to {float(mask.max()):.4g}; it needs 0 to 1")
    count = 1 if mask.ndim == 2 else mask.shape[0]
    if images is not None and count not in (1, images):
        raise ValueError(f"there are {count} masks for a batch of {images}; connect one for all images or one for each")


def same_text(conditioning: list, other: list) -> bool:
    """Whether two CONDITIONINGs hold the same text embeddings."""
    return len(conditioning) == len(other) and all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for (a, _), (b, _) in zip(conditioning, other, strict=True)
    )


def single_but(*lists: str) -> Callable[[Callable[..., io.NodeOutput]], Callable[..., io.NodeOutput]]:
    """For the `execute` of a node that takes lists: the inputs named here stay lists, of every other one its single value.

    The host hands lists to all inputs of a node that takes one.
    """

    def decorate(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
        @wraps(execute)
        def unpacked(cls: type[io.ComfyNode], **inputs: list) -> io.NodeOutput:
            for name in inputs.keys() - set(lists):
                if len(inputs[name]) != 1:
                    raise ValueError(f"{name} came as a list of {len(inputs[name])}; it needs one value")
            return execute(cls, **{name: values if name in lists else values[0] for name, values in inputs.items()})

        return unpacked

    return decorate


def item_by_item(whole: str) -> Callable[[Callable[..., io.NodeOutput]], Callable[..., io.NodeOutput]]:
    """For the `execute` of a node that takes lists and gives them: it runs item by item, as the host runs other nodes.

    Only where the input `whole` alone has several items, one run takes all of them.
    """

    def decorate(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
        @wraps(execute)
        def runs(cls: type[io.ComfyNode], **inputs: list) -> io.NodeOutput:
            others = {name: values for name, values in inputs.items() if name != whole}
            if max(map(len, others.values())) == 1:
                return execute(cls, **{whole: inputs[whole]}, **{name: value for name, (value,) in others.items()})

            def run(number: int) -> io.NodeOutput:
                items = {name: values[min(number, len(values) - 1)] for name, values in inputs.items()}
                return execute(cls, **items | {whole: [items[whole]]})

            outputs = [run(number).args for number in range(max(map(len, inputs.values())))]
            return io.NodeOutput(*(sum(lists, []) for lists in zip(*outputs, strict=True)))

        return runs

    return decorate
