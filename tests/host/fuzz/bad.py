"""Values that are wrong, odd or at a limit, by the type of the input that gets them."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import comfy.samplers
import torch
from tiny import randn, tiny_unet

from .sound import Values, is_link


class Bad(NamedTuple):
    """A value for one input. It is written into the graph, or comes over a link if it is `linked`."""

    name: str
    value: Any
    linked: bool = True
    forged: bool = False
    """Whether neither the page nor a program that drives the server can send it, nor a node make it."""


NAN, INF, HUGE = math.nan, math.inf, 1e30
WIDTH = 96
"""Of text embeddings that no model here takes."""
LITERALS = {"nothing": None, "a text": "circle", "a number": 5, "an empty dict": {}, "an empty list": {"__value__": []}}
"""What a program can write where the page has links only."""
WORDS_400 = " ".join(f"word{number}" for number in range(400))
TEXTS = {
    "empty": "",
    "blank": " \n\t ",
    "400 words": WORDS_400,
    "commas": ",,;,、，",
    "braces": "{} {0} {x}",
    "arrow": "a => b => c",
    "accents": "u\u0308 e\u0301 \u202ered\u202c \u200b",
    "emoji": "👩‍👩‍👧 🟥 circle",
    "Chinese": "红色的圆，蓝色的圆",
    "NUL": "a\x00b",
    "half a pair": "\ud83d",
    "superscript": "²",
    "2,000 sizes": ", ".join(map(str, range(1, 2001))),
    "negative": "-1, 2",
    "far token": "9999",
    "long number": "9" * 5000,
    "embedding": "embedding:nothing (a:1e9) ((red:nan))",
    "path": "../../../etc/passwd",
    "percent": "%date:yyyy% %%s",
    "weights": "(red:-1e30) (circle:inf)",
    "a number": 5,
    "nothing": None,
    "lines": "a\n" * 300,
}


def numbers(declared: Any) -> dict[str, Any]:
    low, high = declared.min or 0, declared.max if declared.max is not None else 1
    whole = declared.get_io_type() == "INT"
    return {
        "nan": NAN, "inf": INF, "-inf": -INF, "low": low, "below": low - 1, "above": high + 1, "zero": 0, "minus": -1,
        "a text": "seven", "a number's text": "1", "nothing": None, "2**63": 2**63, "tiny": 1e-300, "fraction": 0.5, "true": True,
        "a list": {"__value__": [1, 2]},
    } | ({} if whole else {"high": high, "-0.0": -0.0})  # fmt: skip


def choices(declared: Any) -> dict[str, Any]:
    options = list(declared.options or [])
    return {f"option {option}": option for option in options if "/" not in str(option)} | {
        "unknown": "no such option",
        "empty": "",
        "nothing": None,
        "a number": 7,
        "path": "../../etc/passwd",
    }


def filled(tensor: torch.Tensor, value: float, part: bool = False) -> torch.Tensor:
    """`tensor` with `value` everywhere, or in one place."""
    tensor = tensor.clone()
    if part:
        tensor.view(-1)[tensor.numel() // 2] = value
    else:
        tensor.fill_(value)
    return tensor


def tensors(tensor: torch.Tensor) -> dict[str, Any]:
    """The same for images, masks and latents: contents, dtypes and batches."""
    return {
        "one NaN": filled(tensor, NAN, part=True),
        "one inf": filled(tensor, INF, part=True),
        "all NaN": filled(tensor, NAN),
        "huge": filled(tensor, HUGE),
        "all -1": filled(tensor, -1),
        "zeros": filled(tensor, 0),
        "twos": filled(tensor, 2),
        "half": tensor.half(),
        "double": tensor.double(),
        "bfloat16": tensor.bfloat16(),
        "whole numbers": (tensor * 9).int(),
        "no batch": tensor[:0],
        "batch of 2": tensor.repeat(2, *[1] * (tensor.ndim - 1)),
        "batch of 3": tensor.repeat(3, *[1] * (tensor.ndim - 1)),
        "no dimensions": torch.tensor(0.5),
        "one less": tensor[0],
        "one more": tensor[None],
        "not contiguous": tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
    }


def images(image: torch.Tensor) -> dict[str, Any]:
    sizes = {(1, 1), (10, 10), (11, 11), (63, 64), (64, 65), (0, 64), (64, 0), (3, 200), (8, 8), (7, 9)}
    return (
        tensors(image)
        | {f"{h}x{w}": torch.rand(1, h, w, 3) for h, w in sizes}
        | {f"{channels} channels": torch.rand(1, 64, 64, channels) for channels in (0, 1, 2, 4, 16)}
    )


def masks(mask: torch.Tensor) -> dict[str, Any]:
    sizes = {(1, 1), (5, 7), (0, 64), (64, 0), (200, 3), (16, 16)}
    return (
        tensors(mask)
        | {f"{h}x{w}": torch.ones(1, h, w) for h, w in sizes}
        | {
            "ones": torch.ones_like(mask),
            "bool": mask.bool(),
            "thin": filled(torch.zeros_like(mask), 1, part=True),
            "barely": filled(mask, 1e-30),
        }
    )


def latents(latent: dict) -> dict[str, Any]:
    samples = latent["samples"]
    found = {name: latent | {"samples": tensor} for name, tensor in tensors(samples).items()}
    sizes = {(1, 1), (1, 16), (2, 2), (3, 3), (15, 17), (0, 16), (4, 64)}
    found |= {f"{h}x{w}": {"samples": randn(1, 4, h, w)} for h, w in sizes}
    found |= {f"{channels} channels": {"samples": randn(1, channels, 16, 16)} for channels in (0, 1, 3, 9, 16)}
    found["a video"] = {"samples": randn(1, 16, 2, 16, 16)}
    for name, mask in masks(torch.ones(1, 1, 64, 64)[0]).items():
        found[f"noise mask: {name}"] = latent | {"noise_mask": mask}
    return found | {"batch index": latent | {"batch_index": [7]}}


def conditionings(source: list) -> dict[str, Any]:
    (tokens, options), *_ = source

    def entry(**changes: Any) -> list:
        return [[tokens, options | changes]]

    contents = {f"tokens: {name}": [[tensor, options]] for name, tensor in tensors(tokens).items()}
    widths = {
        "another width": randn(1, 77, WIDTH),
        "no tokens": tokens[:, :0],
        "one token": tokens[:, :1],
        "no width": tokens[..., :0],
    }
    return (
        contents
        | {name: [[tensor, options]] for name, tensor in widths.items()}
        | {
            "none": [],
            "two prompts": source + conditioning_like(tokens),
            "no pooled": [[tokens, {}]],
            "pooled None": entry(pooled_output=None),
            "area": entry(area=(8, 8, 0, 0)),
            "area outside": entry(area=(8, 8, 40, 40)),
            "area too large": entry(area=(80, 80, 0, 0)),
            "area of nothing": entry(area=(0, 0, 0, 0)),
            "area in percent": entry(area=("percentage", 0.5, 0.5, 0.9, 0.9)),
            "area -": entry(area=("percentage", -1.0, 0.5, 0.0, 0.0)),
            "strength 0": entry(strength=0.0),
            "strength nan": entry(strength=NAN),
            "strength inf": entry(strength=INF),
            "strength -1": entry(strength=-1.0),
            "never": entry(start_percent=1.0, end_percent=0.0),
            "late": entry(start_percent=0.9, end_percent=1.0),
            "early": entry(start_percent=0.0, end_percent=0.1),
            "mask 0": entry(mask=torch.zeros(1, 64, 64), mask_strength=1.0),
            "mask nan": entry(mask=torch.full((1, 64, 64), NAN)),
            "mask of 3": entry(mask=torch.ones(3, 64, 64)),
            "mask of area": entry(mask=torch.ones(1, 64, 64), set_area_to_bounds=True),
            "no mask": entry(mask=torch.ones(0, 64, 64)),
            "concat": entry(concat_latent_image=randn(1, 4, 16, 16)),
            "long": [[tokens.repeat(1, 6, 1), options]],
            "reference": entry(reference_latents=[randn(1, 4, 16, 16)]),
        }
    )


def conditioning_like(tokens: torch.Tensor) -> list:
    return [[randn(*tokens.shape, seed=5), {}]]


def levels(sigmas: torch.Tensor) -> dict[str, Any]:
    texts = {
        "none": [],
        "one": [1.0],
        "NaN": [14.0, NAN, 0.0],
        "inf": [INF, 1.0, 0.0],
        "up": [0.0, 1.0, 14.0],
        "all 0": [0.0, 0.0],
        "below 0": [1.0, 0.0, -1.0],
        "again": [14.0, 14.0, 0.0],
        "huge": [1e30, 1.0, 0.0],
        "tiny": [1e-20, 1e-30, 0.0],
        "flow": [1.0, 0.5, 0.0],
        "not to 0": [14.0, 7.0],
        "close": [14.0, 13.999999, 0.0],
    }
    found = {name: torch.tensor(values) for name, values in texts.items()}
    return found | {"half": sigmas.half(), "double": sigmas.double(), "whole": torch.tensor([14, 7, 0]), "rows": sigmas[None]}


def trajectories(good: Any) -> dict[str, Any]:
    return {
        "empty": good._replace(sigmas=good.sigmas[:0], latents=[]),
        "batch of 3": good._replace(latents=[x.repeat(3, 1, 1, 1) for x in good.latents]),
        "NaN": good._replace(latents=[filled(x, NAN) for x in good.latents]),
        "16 channels": good._replace(latents=[x.repeat(1, 4, 1, 1) for x in good.latents]),
        "cut": good._replace(latents=good.latents[:1]),
        "other levels": good._replace(sigmas=good.sigmas * 0.5),
    }


def directions(good: Any) -> dict[str, Any]:
    tokens = good.tokens
    return {
        "NaN": good._replace(tokens=filled(tokens, NAN)),
        "1-D": good._replace(tokens=tokens[0, 0]),
        "width": good._replace(tokens=randn(1, 77, WIDTH)),
        "no tokens": good._replace(tokens=tokens[:, :0]),
        "huge": good._replace(tokens=filled(tokens, HUGE)),
        "zero": good._replace(tokens=filled(tokens, 0)),
        "batch of 3": good._replace(tokens=tokens.repeat(3, 1, 1)),
        "pooled": good._replace(pooled=randn(1, WIDTH)),
        "half": good._replace(tokens=tokens.half()),
    }


def loras(good: dict) -> dict[str, Any]:
    first = next(iter(good))
    return {
        "empty": {},
        "NaN": {name: filled(tensor, NAN) for name, tensor in good.items()},
        "one missing": {n: t for n, t in good.items() if n != first},
        "another size": {name: tensor[..., :3] if tensor.ndim else tensor for name, tensor in good.items()},
        "one more": good | {"x.alpha": torch.ones(())},
        "a row": {name: tensor.flatten() for name, tensor in good.items()},
        "half": {name: tensor.half() for name, tensor in good.items()},
    }


def models(values: Values) -> dict[str, Any]:
    return {"SD1.x": tiny_unet(), "SDXL": tiny_unet(family="SDXL"), "NaN weights": nan_model(), "no hooks": values["model"]}


def nan_model() -> Any:
    model = tiny_unet()
    with torch.no_grad():
        next(model.model.diffusion_model.parameters()).fill_(NAN)
    return model


def guiders(values: Values) -> dict[str, Any]:
    plain = comfy.samplers.CFGGuider(values["model"])
    plain.set_conds(values["source"], values["negative"])
    return {"the host's": plain}


def link_values(io_type: str, values: Values) -> dict[str, Any]:
    makers = {
        "IMAGE": lambda: images(values["image"]),
        "MASK": lambda: masks(values["mask"]),
        "LATENT": lambda: latents(values["latent"]),
        "CONDITIONING": lambda: conditionings(values["source"]),
        "SIGMAS": lambda: levels(values["sigmas"]),
        "ZEROCON_TRAJECTORY": lambda: trajectories(values["trajectory"]),
        "ZEROCON_DIRECTION": lambda: directions(values["direction"]),
        "LORA_MODEL": lambda: loras(values["lora"]),
        "MODEL": lambda: models(values),
        "GUIDER": lambda: guiders(values),
        "CLIP": lambda: {},
        "STRING": lambda: {},
    }
    return makers[io_type]()


OF_THE_PACK = {"ZEROCON_TRAJECTORY", "ZEROCON_DIRECTION"}
"""Types that only the pack's own nodes make, which make nothing like what is tried here."""
FORGED = {
    "LATENT": {"no samples": {}, "samples of text": {"samples": "x"}},
    "CONDITIONING": {"a bare tensor": [torch.ones(1, 77, 64)]},
}


def written_values(io_type: str, declared: Any) -> dict[str, Any]:
    if io_type == "STRING":
        return TEXTS
    if io_type == "COMBO":
        return choices(declared)
    return {"a text": "no", "nothing": None, "2": 2} if io_type == "BOOLEAN" else numbers(declared)


def bad_values(declared: Any, values: Values, takes_lists: bool) -> Iterator[Bad]:
    """Everything to try at one input."""
    io_type = declared.get_io_type()
    if is_link(declared):
        for name, value in link_values(io_type, values).items():
            yield Bad(name, value, forged=io_type in OF_THE_PACK)
        for name, value in FORGED.get(io_type, {}).items():
            yield Bad(name, value, forged=True)
        for name, value in (TEXTS if io_type == "STRING" else LITERALS).items():
            yield Bad(f"written: {name}", value, linked=False)
        yield Bad("another kind of link", object(), forged=True)
    else:
        for name, value in written_values(io_type, declared).items():
            yield Bad(name, value, linked=False)
    if takes_lists and is_link(declared):
        yield Bad("a list of none", [], linked=True)
