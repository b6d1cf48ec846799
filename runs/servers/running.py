"""A ComfyUI server that somebody else runs."""

from collections.abc import Sequence

from tools.comfy_client import Client, ServerError

from ..fleet import Lost
from .identity import Standard, identity_of
from .job import Answer, Job, perform


class RunningServer:
    """It is named by its URL. It is neither started nor stopped, and keeps in its folders what jobs leave there."""

    def __init__(self, url: str, standard: Standard, models: Sequence[str] = (), hung_seconds: float = 60.0) -> None:
        self.name, self.standard, self.models = url, standard, models
        self.client = Client(url)
        self.client.hung_seconds = hung_seconds

    def start(self) -> None:
        try:
            found = identity_of(self.client, self.models)
        except ServerError as error:
            raise Lost(str(error)) from error
        self.standard.check(self.name, found)

    def perform(self, job: Job) -> Answer:
        return perform(self.client, job)

    def stop(self) -> None:
        """It goes on running."""
