"""What crosses to a server and back. Plain data: servers read and write no file of the run, so they may be on other machines."""

import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tools.comfy_client import Client, ServerError

from ..fleet import Lost, Worker


@dataclass(frozen=True)
class Job:
    """A graph in API format, and by the names in its LoadImage nodes the bytes of the pictures that it loads."""

    graph: dict
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """By node id what a graph's nodes show, and the bytes of their images. `seconds` is what the server says it took."""

    outputs: dict[str, dict]
    images: dict[str, list[bytes]]
    seconds: float


class Server(Worker, Protocol):
    """A worker that performs jobs."""

    def perform(self, job: Job) -> Answer:
        """Raises PromptError where the graph fails, `Lost` where the server does."""


def perform(client: Client, job: Job) -> Answer:
    """Raises PromptError where the graph fails, `Lost` where the server does."""
    try:
        for name, content in job.pictures.items():
            client.upload_bytes(name, content)
        entry = client.history(job.graph)
        outputs = entry["outputs"]
        images = {node: [client.view(image) for image in shown["images"]] for node, shown in outputs.items() if "images" in shown}
    except (ServerError, urllib.error.HTTPError) as error:
        log = f" (log: {client.log_path})" if client.log_path else ""
        raise Lost(f"{str(error).splitlines()[0]}{log}") from error
    times = {kind: message["timestamp"] for kind, message in entry["status"]["messages"]}
    return Answer(outputs, images, (times["execution_success"] - times["execution_start"]) / 1000)
