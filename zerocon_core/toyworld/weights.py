"""The shipped weights: safetensors files beside this module, fp16 on disk and fp32 in memory."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "weights"
CAPTIONER_FOLDER = FOLDER / "captioner"


class WeightsError(RuntimeError):
    """A file of the bundled toy world is missing or damaged."""


def read(name: str) -> dict[str, torch.Tensor]:
    """The tensors of `weights/<name>.safetensors`, floating-point ones in fp32."""
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(_restore(path, "missing"))
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(_restore(path, "damaged")) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def damaged(name: str) -> WeightsError:
    """The error for a file that can be read but lacks what its model needs."""
    return WeightsError(_restore(FOLDER / f"{name}.safetensors", "damaged"))


def unreadable_captioner(error: OSError) -> WeightsError:
    """The error for a captioner whose folder could not be read because of `error`."""
    return WeightsError(f"The toy world's captioner cannot be used ({error}): {_REMEDY}")


_REMEDY = (
    "restore it with `git checkout -- zerocon_core/toyworld/weights` in the node pack's folder, or install the pack again."
)


def _restore(path: Path, state: str) -> str:
    return f"The toy world's file {path} is {state}: {_REMEDY}"
