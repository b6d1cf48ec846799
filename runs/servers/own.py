"""A ComfyUI server of ours, with a private base directory."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.comfy_client import Client, ServerError
from tools.comfy_server import comfy_server

from ..fleet import Lost
from .identity import Standard, identity_of
from .job import Answer, Job, perform


@dataclass(frozen=True)
class Setup:
    """How servers of a run are started, on whatever machine: where ComfyUI and models lie, its arguments, and its environment."""

    comfyui: Path
    folders: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """By kind, such as "checkpoints", where models lie."""
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    hung_seconds: float = 60.0
    models: Sequence[str] = ()
    """Files of models that the graphs name, which all servers must have alike."""


class OwnServer:
    """Started again where it was lost. What a job leaves in its folders is removed, so that they do not grow with the run."""

    def __init__(self, name: str, base: Path, setup: Setup, standard: Standard) -> None:
        self.name, self.base, self.setup, self.standard = name, base, setup, standard
        self.running = contextlib.ExitStack()
        self.client: Client | None = None

    def start(self) -> None:
        self.stop()
        self.base.mkdir(parents=True, exist_ok=True)
        places = self.base / "model_folders.yaml"
        places.write_text(model_folders(self.setup.folders), encoding="utf-8")
        arguments = ["--extra-model-paths-config", str(places), *self.setup.arguments]
        server = comfy_server(self.setup.comfyui, self.base, arguments, **self.setup.environment)
        try:
            self.client = self.running.enter_context(server)
            self.client.hung_seconds = self.setup.hung_seconds
            found = identity_of(self.client, self.setup.models)
        except ServerError as error:
            raise Lost(str(error)) from error
        self.standard.check(self.name, found)

    def perform(self, job: Job) -> Answer:
        try:
            return perform(self.client, job)
        except Lost:
            self.client.process.stdin.close()  # which ends it at once; asked politely, one that hangs would take its time
            raise
        finally:
            self.clean()

    def clean(self) -> None:
        for folder in ("input", "output", "temp"):
            for path in (self.base / folder).rglob("*"):
                if path.is_file():
                    path.unlink(missing_ok=True)

    def stop(self) -> None:
        self.running.close()


def model_folders(folders: Mapping[str, Sequence[Path]]) -> str:
    """The file in which a server with a private base directory finds models that lie elsewhere. JSON is YAML."""
    return json.dumps({"run": {kind: "\n".join(str(path.resolve()) for path in paths) for kind, paths in folders.items()}})
