"""Servers in actors of Ray: Ray finds them a machine and a GPU, and makes them anew when their process or machine dies."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, RayError

from tools.comfy_client import BEAT_SECONDS, PromptError
from tools.comfy_server import ROOT, START_SECONDS

from ..fleet import Lost
from .identity import Standard
from .job import Answer, Job
from .own import OwnServer, Setup


class Host:
    """What runs in an actor: one server. What the caller should catch it returns, since Ray would wrap it."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.server = OwnServer(name, Path(gettempdir()) / "zerocon" / name, setup, Standard())

    def start(self) -> Any:
        return caught(self.server.start) or self.server.standard.first

    def perform(self, job: Job) -> Any:
        return caught(partial(self.server.perform, job))

    def beat(self) -> None:
        """Answers while the actor lives, also beside a job."""


class Raised(NamedTuple):
    """An error on its way to whom it concerns."""

    kind: type[Exception]
    message: str


def caught(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Lost, PromptError) as error:
        return Raised(type(error), str(error))


class RayServer:
    """The driver's side of one actor. `resources` is what Ray keeps free for it, such as num_gpus=1."""

    def __init__(self, name: str, setup: Setup, standard: Standard, resources: dict[str, float]) -> None:
        self.name, self.setup, self.standard, self.resources = name, setup, standard, resources
        self.actor: Any = None

    def start(self) -> None:
        if self.actor is None:
            host = ray.remote(Host).options(max_restarts=-1, max_concurrency=2, **self.resources)
            self.actor = host.remote(self.name, self.setup)
        _, found = self.once_it_is_back(lambda: self.ask(self.actor.start, START_SECONDS))
        self.standard.check(self.name, found)

    def once_it_is_back(self, ask: Callable[[], Any]) -> Any:
        """What `ask` returns, asked again while Ray makes the actor anew."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return ask()
            except Lost as lost:
                if not isinstance(lost.__cause__, ActorUnavailableError) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def perform(self, job: Job) -> Answer:
        return self.ask(self.actor.perform, self.setup.hung_seconds, job)

    def ask(self, method: Any, patience: float, *arguments: object) -> Any:
        """What an actor's method returns. Raises `Lost` when the actor dies or answers no beat for so many seconds."""
        try:
            answer, heard, beat = method.remote(*arguments), time.monotonic(), self.actor.beat.remote()
            while not ray.wait([answer], timeout=min(BEAT_SECONDS, patience / 4))[0]:
                if ray.wait([beat], timeout=0)[0]:
                    ray.get(beat)
                    heard, beat = time.monotonic(), self.actor.beat.remote()
                if time.monotonic() - heard > patience:
                    self.stop()
                    raise Lost(f"no sign of life from its actor for {patience:.0f} s")
            result = ray.get(answer)
        except RayError as error:
            raise Lost(f"Ray lost its actor ({str(error).splitlines()[0]})") from error
        if isinstance(result, Raised):
            raise PromptError(result.message, {}) if result.kind is PromptError else result.kind(result.message)
        return result

    def stop(self) -> None:
        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = None


def ray_servers(count: int | None, address: str | None, run: str, setup: Setup, standard: Standard) -> list[RayServer]:
    """A server a GPU of the cluster, or a CPU where it has none. Without an `address` Ray is started on this machine."""
    # Every node reads the code from the same place, as it does ComfyUI.
    ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, include_dashboard=False if address is None else None)
    has = ray.cluster_resources()
    gpus = int(has.get("GPU", 0))
    resources = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_gpus": 0, "num_cpus": 1}
    possible = gpus or int(has.get("CPU", 0))
    if count is not None and count > possible:
        raise SystemExit(f"error: Ray has {possible} {'GPUs' if gpus else 'CPUs'}, {count} servers are asked for; ask for fewer")
    return [RayServer(f"{run}-{i + 1}", setup, standard, resources) for i in range(count or possible)]
