"""A graph that runs for each node of the pack, with few steps at small sizes, and the values that its links carry."""

import copy
from typing import Any

import nodes
import torch
from in_process import GraphRunner
from tiny import conditioning, randn, tiny_unet
from tiny_dit import tiny_dit

Values = dict[str, Any]

TRAINING = {
    "steps": 1, "target_count": 2, "rank": 1, "captions": "a red circle", "words": "red, green, blue",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "ZeroConAttentionMapPreview": {"prompt": "a red circle"},
    "ZeroConCDSOptimize": {"steps": 2, "patches": 16},
    "ZeroConDDIMInvert": {"steps": 2, "regularization_steps": 1, "rolls": 1},
    "ZeroConEditDirection": {"caption": "a red circle", "edit_from": "red", "edit_to": "blue", "bank": "a {}"},
    "ZeroConEditMask": {"draws": 1},
    "ZeroConGuidancePreview": {"sampled": "sampled"},
    "ZeroConPatchNCEGuidance": {"patches": 16},
    "ZeroConPromptAugment": {"caption": "a red circle", "toy_words": True, "count": 2},
    "ZeroConSoftContrastiveTrain": TRAINING,
    "ZeroConToyTrainingSet": {"count": 2},
}
"""Where a node's defaults take long or are empty."""
LINKS = {
    "MODEL": "model", "CLIP": "clip", "LATENT": "latent", "CONDITIONING": "source", "IMAGE": "image", "MASK": "mask",
    "SIGMAS": "sigmas", "GUIDER": "guider", "LORA_MODEL": "lora", "ZEROCON_TRAJECTORY": "trajectory",
    "ZEROCON_DIRECTION": "direction", "STRING": "prompts",
}  # fmt: skip
"""What a link of this type carries."""
OTHER_LINKS = {"hooked_model": "hooked", "target": "edited", "edited": "edited", "negative": "negative"}
"""By the name of the input, where the type does not tell."""
CONNECTED = {("ZeroConPromptAugment", "clip"), ("ZeroConAttentionMapPreview", "clip"), ("ZeroConEditMask", "source")}
"""Optional inputs that a sound graph has."""


def pack_nodes() -> dict[str, type]:
    """The nodes of the pack but for those in 3D, whose bad inputs are in test_splats.py."""
    ours = {name: kind for name, kind in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("ZeroCon")}
    in_3d = {"SPLAT", "ZEROCON_CAMERAS"}
    return {name: kind for name, kind in ours.items() if not in_3d & {value.get_io_type() for value in kind.GET_SCHEMA().inputs}}


def link_of(name: str, value: Any, io_type: str) -> str:
    """The key of the value that a link to this input carries."""
    if name == "edited" and io_type == "IMAGE":
        return "edited_image"
    if name == "prompts":
        return "edited"
    return OTHER_LINKS.get(name, LINKS[io_type]) if value is None else value


def is_link(declared: Any) -> bool:
    return getattr(declared, "force_input", False) or not hasattr(declared, "default")


def sound_graph(node_id: str) -> dict[str, dict]:
    """The node, called "node", with everything that it needs; what it puts out is captured."""
    schema, settings = pack_nodes()[node_id].GET_SCHEMA(), SETTINGS.get(node_id, {})
    graph: dict[str, dict] = {}
    inputs: dict[str, Any] = {}
    for declared in schema.inputs:
        name, io_type = declared.id, declared.get_io_type()
        if is_link(declared):
            if declared.optional and (node_id, name) not in CONNECTED:
                continue
            key = link_of(name, settings.get(name), io_type)
            graph[key] = {"class_type": "TestValue", "inputs": {"key": key}}
            inputs[name] = [key, 0]
        else:
            options = getattr(declared, "options", None)
            inputs[name] = settings.get(name, declared.default if declared.default is not None else options and options[0])
    graph["node"] = {"class_type": node_id, "inputs": inputs}
    for number in range(len(schema.outputs)):
        graph[f"output {number}"] = {"class_type": "TestCapture", "inputs": {"value": ["node", number]}}
    return graph | behind(node_id)


def behind(node_id: str) -> dict[str, dict]:
    """What has to run behind a node before it is known whether its output is good."""
    if node_id != "ZeroConPatchNCEGuidance":
        return {}
    chain = {
        "noise": ("DisableNoise", {}),
        "euler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "noised": ("TestValue", {"key": "noised"}),
        "levels": ("TestValue", {"key": "sigmas"}),
        "sample": ("SamplerCustomAdvanced", {
            "noise": ["noise", 0], "guider": ["node", 0], "sampler": ["euler", 0], "sigmas": ["levels", 0],
            "latent_image": ["noised", 0],
        }),
        "sampled": ("TestCapture", {"value": ["sample", 0]}),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in chain.items()}


def toy_values(runner: GraphRunner) -> Values:
    """What the links carry: made by the nodes themselves, from the toy world."""
    graph = {
        "world": ("ZeroConToyWorld", {}),
        "scene": ("ZeroConToyScene", {"seed": 4, "colour": "red", "shape": "circle", "pattern": "plain", "size": 64}),
        "other": ("ZeroConToyScene", {"seed": 4, "colour": "blue", "shape": "circle", "pattern": "plain", "size": 64}),
        "encoded": ("VAEEncode", {"pixels": ["scene", 0], "vae": ["world", 2]}),
        "empty": ("CLIPTextEncode", {"text": "", "clip": ["world", 1]}),
        "directed": ("ZeroConEditDirection", {
            "clip": ["world", 1], "caption": ["scene", 1], "edit_from": "red", "edit_to": "blue", "bank": "a {}", "strength": 1.0,
        }),
        "hooks": ("ZeroConAttentionHookedUNet", {
            "model": ["world", 0], "self_attention": "decoder", "cross_attention": "all", "max_side": 0,
        }),
        "invert": ("ZeroConDDIMInvert", {
            "model": ["world", 0], "image_latent": ["encoded", 0], "conditioning": ["directed", 0], "steps": 2, "lambda_ac": 0.0,
            "lambda_kl": 0.0, "regularization_steps": 1, "rolls": 1, "refinements": 0, "seed": 0,
        }),
    }  # fmt: skip
    wanted = {
        "model": ["world", 0], "clip": ["world", 1], "vae": ["world", 2], "image": ["scene", 0], "edited_image": ["other", 0],
        "mask": ["scene", 2], "latent": ["encoded", 0], "negative": ["empty", 0], "source": ["directed", 0],
        "edited": ["directed", 1], "direction": ["directed", 2], "hooked": ["hooks", 0], "noised": ["invert", 0],
        "trajectory": ["invert", 1], "sigmas": ["invert", 2],
    }  # fmt: skip
    values = {"prompts": "a blue circle"} | captured(runner, graph, wanted)
    values |= run_sound(runner, "ZeroConSoftContrastiveTrain", values, {"output 1": "lora"})
    return values | run_sound(runner, "ZeroConPatchNCEGuidance", values, {"output 0": "guider", "sampled": "sampled"})


def captured(runner: GraphRunner, graph: dict[str, tuple[str, dict]], wanted: dict[str, list]) -> Values:
    prompt = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}
    prompt |= {f"get {name}": {"class_type": "TestCapture", "inputs": {"value": link}} for name, link in wanted.items()}
    run = runner(prompt)
    assert run.success, run.error
    return {name: run.captured[f"get {name}"] for name in wanted}


def run_sound(runner: GraphRunner, node_id: str, values: Values, wanted: dict[str, str]) -> Values:
    run = runner(sound_graph(node_id), values)
    assert run.success, run.error
    return {name: run.captured[node] for node, name in wanted.items()}


def other_families(values: Values) -> dict[str, Values]:
    """The same values with another model, and the latents and prompts that fit it."""
    small = {
        "latent": {"samples": randn(1, 4, 8, 8)}, "source": conditioning(1), "edited": conditioning(2),
        "negative": conditioning(3),
    }  # fmt: skip
    wide = small | {"latent": {"samples": randn(1, 16, 8, 8)}}
    families = {name: small | {"model": tiny_unet(family=name)} for name in ("SD1.x", "SD2.x", "SDXL")}
    families |= {name: wide | {"model": tiny_dit(name)} for name in ("FLUX.1", "Lumina2")}
    families["half precision"] = small | {"model": tiny_unet(torch.float16)}
    return {name: copy.copy(values) | own | {"hooked": own["model"]} for name, own in families.items()}
