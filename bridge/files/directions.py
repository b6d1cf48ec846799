"""Edit directions: read from models/edit_directions and output/directions, written to the output folder."""

import os
from pathlib import Path

import folder_paths
import safetensors.torch

from ...zerocon_core.language.directions import EditDirection
from .folders import register

DIRECTIONS = register("edit_directions")
SAVED = "directions"


def saved_directions() -> Path:
    return Path(folder_paths.get_output_directory()) / SAVED


def direction_names() -> list[str]:
    """Files in models/edit_directions, and those in output/directions marked so."""
    own = [name for name in folder_paths.get_filename_list(DIRECTIONS) if name.endswith(".safetensors")]
    return own + [f"{path.name} [output]" for path in sorted(saved_directions().glob("*.safetensors"))]


def direction_path(name: str) -> str:
    """Path of a name from `direction_names`; never outside the two folders."""
    if name.endswith(" [output]"):
        path = saved_directions() / os.path.basename(name.removesuffix(" [output]"))
        if path.is_file():
            return str(path)
        raise FileNotFoundError(f"{path} does not exist; save a direction with Save Edit Direction or choose another")
    return folder_paths.get_full_path_or_raise(DIRECTIONS, name)


def save_direction(direction: EditDirection, prefix: str) -> str:
    """Writes a numbered safetensors file under the output folder and returns its path within it.

    Raises ValueError for a direction of each image of a batch, which means nothing for others, or a prefix that is no
    place there.
    """
    if len(direction.tokens) > 1:
        raise ValueError(
            f"this is a direction for each of {len(direction.tokens)} captions; take one caption, or write both phrases in Edit "
            "Direction, which give one direction for all"
        )
    tensors = {"tokens": direction.tokens} | ({} if direction.pooled is None else {"pooled": direction.pooled})
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
        file = f"{name}_{counter:05}_.safetensors"
        safetensors.torch.save_file({key: t.contiguous().cpu() for key, t in tensors.items()}, os.path.join(folder, file))
    except Exception as error:  # the host's has no kind of its own for a place outside of its folder
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"nothing can be saved there ({reason}); choose a shorter filename_prefix, under the output folder"
        ) from error
    return os.path.join(subfolder, file)


def load_direction(name: str) -> EditDirection:
    """Raises ValueError for a file that is damaged or holds something else."""
    path = direction_path(name)
    try:
        tensors = safetensors.torch.load_file(path)
        direction = EditDirection(tensors["tokens"], tensors.get("pooled"))
    except (KeyError, OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is damaged or is no edit direction ({error}); save it again with Save Edit Direction") from None
    for name, tensor, dims in (("tokens", direction.tokens, 3), ("pooled", direction.pooled, 2)):
        if tensor is not None and (tensor.ndim != dims or tensor.shape[0] != 1 or not tensor.isfinite().all()):
            raise ValueError(
                f"{path} is no edit direction: its {name} are {tuple(tensor.shape)}, or not finite; save it again with Save Edit "
                "Direction"
            )
    return direction
