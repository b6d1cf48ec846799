"""That all servers of a run would give the same results: the same ComfyUI, the same pack, the same model files."""

import threading
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from tools.comfy_client import Client

from ..fleet import Unfit

MODEL_FILES = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}


@dataclass(frozen=True)
class Identity:
    """Versions, and the SHA-256 of each model file; None for one that is not there."""

    comfyui: str
    pack: str
    models: Mapping[str, str | None]


class Standard:
    """What the first server of a run is, and so all others have to be. Threads may share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.first: tuple[str, Identity] | None = None

    def check(self, name: str, found: Identity) -> None:
        """Raises `Unfit` for a server that lacks a model file or differs from the first."""
        if missing := [file for file, digest in found.models.items() if digest is None]:
            raise Unfit(f"it has no {', '.join(missing)}; put the file into its models folder")
        with self.lock:
            self.first = self.first or (name, found)
            first, expected = self.first
        for what in ("comfyui", "pack", "models"):
            mine, theirs = getattr(found, what), getattr(expected, what)
            if mine != theirs:
                raise Unfit(f"its {what} is {mine}, that of {first} is {theirs}; all servers of a run must be alike")


def identity_of(client: Client, models: Sequence[str]) -> Identity:
    """What a server says of itself through the pack's route. Raises `Unfit` where there is no such pack."""
    try:
        found = client.get("/zerocon/identity", models="\n".join(models))
    except urllib.error.HTTPError as error:
        raise Unfit(f"it has no ComfyUI-ZeroCon that says what it is ({error}); install or update the pack there") from None
    return Identity(found["comfyui"], found["pack"], found["models"])


def model_files(graph: dict) -> list[str]:
    """The names of model files among the inputs of a graph."""
    values = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)]
    return sorted({value for value in values if "\n" not in value and PurePath(value).suffix.lower() in MODEL_FILES})
