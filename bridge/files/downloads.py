"""Files from the network, each picked by name, into the caches of the libraries that they are published for."""

import os
from collections.abc import Callable
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from tqdm.auto import tqdm

from .folders import home

Tell = Callable[[str], None]
"""Told of a download before it starts."""


class HostProgress(tqdm):
    """Shows the files of a download as the host's progress bar."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.host_bar = comfy.utils.ProgressBar(self.total or 1)

    def update(self, n=1):
        shown = super().update(n)
        self.host_bar.update_absolute(self.n, self.total or 1)
        return shown


def hub_folder(repo: str, kind: str) -> Path:
    """Local folder of a network from the hub, in its cache; `kind` is the host's folder where a copy could lie instead.

    Raises OSError if it cannot be had.
    """
    patterns = ["*.json", "*.txt", "model*.safetensors"]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, tqdm_class=HostProgress))
    except Exception as error:
        raise OSError(
            f"{repo} could not be downloaded ({error}); put it into a folder of {home(kind)} or choose another"
        ) from error


def in_hub_cache(repo: str) -> bool:
    return isinstance(try_to_load_from_cache(repo, "model.safetensors"), str)


def published_file(url: str, megabytes: float, kind: str, setting: str, tell: Tell) -> Path:
    """The file of this address, in the host's folders `kind` or in PyTorch's cache, where it is downloaded to.

    The end of its name is the start of its SHA-256, which a download must have. Raises OSError if it cannot be had.
    """
    file = os.path.basename(url)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (*map(Path, folder_paths.get_folder_paths(kind)), cache):
        if (folder / file).is_file():
            return folder / file
    tell(f"downloading {url} ({megabytes:.0f} MB) into {cache}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cache / file), hash_prefix=Path(file).stem.rpartition("-")[2])
    except Exception as error:
        raise OSError(
            f"{url} could not be downloaded ({error}); put the file into {home(kind)} or switch {setting} off"
        ) from error
    return cache / file
