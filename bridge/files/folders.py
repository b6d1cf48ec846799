"""Folders below the host's models folder, and what lies in them by the names that users pick."""

import os
from pathlib import Path

import folder_paths

OFF = "off"
"""Where a user may pick nothing."""


def register(kind: str) -> str:
    """A folder `kind` in the host's models folder, and in every other place that the host's settings give it."""
    folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
    return kind


def home(kind: str) -> str:
    """Where a user puts files of this kind."""
    return folder_paths.get_folder_paths(kind)[0]


def local_folders(kind: str) -> dict[str, Path]:
    """Every folder in the host's folder `kind`, such as models/captioners, by its name."""
    roots = [root for root in folder_paths.get_folder_paths(kind) if os.path.isdir(root)]
    return {entry.name: Path(entry.path) for root in reversed(roots) for entry in os.scandir(root) if entry.is_dir()}


def local_folder(kind: str, name: str, content: str) -> Path:
    """The one of this name. Raises FileNotFoundError that asks for `content`."""
    try:
        return local_folders(kind)[name]
    except KeyError:
        raise FileNotFoundError(f'there is no folder "{name}"; put {content} into {home(kind)} or choose another') from None
