"""The shipped weights: safetensors files beside this module, fp16 on disk and fp32 in memory."""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "weights"

Model = TypeVar("Model", bound=torch.nn.Module)


class WeightsError(RuntimeError):
    """A file of the tabletop is missing or damaged."""


def read(name: str) -> dict[str, torch.Tensor]:
    """The tensors of `weights/<name>.safetensors`, floating-point ones in fp32."""
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise _unusable(path, "missing")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unusable(path, "damaged") from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load(model: Model, name: str) -> Model:
    """`model` with the weights of `weights/<name>.safetensors`, ready to be used."""
    state = read(name)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise damaged(name) from error
    return model.eval()


def damaged(name: str) -> WeightsError:
    """The error for a file that can be read but lacks what its model needs."""
    return _unusable(FOLDER / f"{name}.safetensors", "damaged")


def _unusable(path: Path, state: str) -> WeightsError:
    return WeightsError(
        f"The tabletop's file {path} is {state}: restore it with `git checkout -- zerocon_core/tabletop/weights` "
        "in the node pack's folder, or install the pack again."
    )
