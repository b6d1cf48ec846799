"""What may arrive at a node: a program that drives the server can write anything in its place, and nodes hand on nothing."""

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...zerocon_core.language.directions import EditDirection
from ...zerocon_core.methods.inversion import Trajectory


def is_conditioning(value: Any) -> bool:
    """[[tokens (B, n, d) or None, options], ...], maybe empty."""
    return isinstance(value, list) and all(
        isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], Tensor | None) and isinstance(entry[1], dict)
        for entry in value
    )


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


KINDS: dict[str, Callable[[Any], bool]] = {
    "MODEL": lambda value: hasattr(value, "get_model_object"),
    "CLIP": lambda value: hasattr(value, "encode_from_tokens"),
    "LATENT": lambda value: isinstance(value, dict) and is_tensor(value.get("samples")),
    "CONDITIONING": is_conditioning,
    "IMAGE": is_tensor,
    "MASK": is_tensor,
    "SIGMAS": is_tensor,
    "GUIDER": lambda value: hasattr(value, "sample"),
    "LORA_MODEL": lambda value: isinstance(value, dict) and all(map(is_tensor, value.values())),
    "STRING": lambda value: isinstance(value, str),
    "ZEROCON_TRAJECTORY": lambda value: isinstance(value, Trajectory) and len(value.latents) == len(value.sigmas) > 0,
    "ZEROCON_DIRECTION": lambda value: isinstance(value, EditDirection),
}
"""By the type of the link: whether a value is of it."""


def check_links(schema: io.Schema, inputs: dict[str, Any]) -> None:
    """Raises ValueError for what is not of its link's type, and for no choice of a list.

    Optional inputs that are not connected may be None.
    """
    for declared in schema.inputs:
        kind, name = declared.get_io_type(), declared.id
        if schema.is_input_list and inputs.get(name) == []:
            raise ValueError(f"{name} came as an empty list; the node before it gave nothing")
        if name not in inputs:
            continue
        for value in inputs[name] if schema.is_input_list else [inputs[name]]:
            if value is None and declared.optional:
                continue
            if kind in KINDS and not KINDS[kind](value):
                raise ValueError(wrong_kind(name, kind, value))
            # Older hosts do not look whether a choice is one of those that a node of this API offers.
            if kind == io.Combo.io_type and value not in declared.options:
                raise ValueError(f"{name} is {value!r}, which is no choice; take one of {', '.join(map(str, declared.options))}")


def wrong_kind(name: str, kind: str, value: Any) -> str:
    if kind == "CLIP" and value is None:
        return f"{name} is empty: the checkpoint that it comes from holds no text encoder; load one with Load CLIP"
    if value is None:
        return f"{name} is empty: the node before it gave nothing; connect a {kind}"
    return f"{name} is of the type {type(value).__name__}; connect a {kind}"
