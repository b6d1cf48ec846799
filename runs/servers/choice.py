"""Which servers do the work: `--engine` and `--servers`."""

import argparse
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from .identity import Standard
from .job import Server
from .own import OwnServer, Setup
from .running import RunningServer

ENGINES = ("local", "processes", "ray")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who does the work")
    group.add_argument(
        "--engine", nargs="+", default=["local"], metavar=("NAME", "N"),
        help="local: one server of its own (default). processes N: N servers, one a GPU; default as many as there are GPUs. "
        "ray N: N actors of Ray with a server and a GPU each; default all GPUs of the cluster",
    )  # fmt: skip
    group.add_argument("--address", help="of a running Ray cluster; without it Ray is started on this machine")
    group.add_argument("--servers", nargs="+", metavar="URL", help="ComfyUI servers that run already; instead of --engine")
    group.add_argument("--models", type=Path, help="models folder of the servers; default the ComfyUI's own")
    group.add_argument("--hung", type=float, default=60.0, metavar="SECONDS", help="without a sign of life; default 60")


def check_engine_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where they make no sense; afterwards `engine` is a name and `workers` a number or None."""
    name, *count = options.engine
    if name not in ENGINES:
        parser.error(f"--engine {name} is unknown; choose one of {', '.join(ENGINES)}")
    if len(count) > 1 or (count and not (count[0].isdecimal() and int(count[0]))):
        parser.error(f"--engine {' '.join(options.engine)}: after the name stands one number, of servers")
    if name == "local" and count and count != ["1"]:
        parser.error(f"--engine local is one server; for {count[0]} use --engine processes {count[0]}")
    if options.address and name != "ray":
        parser.error("--address is that of a Ray cluster; it needs --engine ray")
    if options.servers and options.engine != ["local"]:
        parser.error("--servers and --engine exclude each other: servers that run already, or servers of its own")
    if options.models and not options.models.is_dir():
        parser.error(f"--models {options.models} is no folder")
    options.engine, options.workers = name, int(count[0]) if count else None


def model_folders_of(options: argparse.Namespace, comfyui: Path) -> dict[str, list[Path]]:
    """By kind, the folders in the models folder."""
    return {folder.name: [folder] for folder in (options.models or comfyui / "models").glob("*/")}


def servers_of(options: argparse.Namespace, setup: Setup) -> list[Server]:
    """Of parsed and checked options."""
    standard = Standard()
    if options.servers:
        return [RunningServer(url, standard, setup.models, setup.hung_seconds) for url in options.servers]
    if options.engine == "ray":
        try:
            from .on_ray import ray_servers
        except ImportError:
            install = subprocess.list2cmdline([sys.executable, "-m", "pip", "install", "ray"])
            raise SystemExit(f"error: --engine ray needs the package ray, which is not here: {install}") from None
        run = hashlib.sha256(str(options.output.resolve()).encode()).hexdigest()[:8]
        return ray_servers(options.workers, options.address, run, setup, standard)
    gpus = torch.cuda.device_count()
    count = 1 if options.engine == "local" else options.workers or max(gpus, 1)
    return [own_server(number, count, gpus, options.output / "servers", setup, standard) for number in range(count)]


def own_server(number: int, count: int, gpus: int, folder: Path, setup: Setup, standard: Standard) -> OwnServer:
    """One of `count` on this machine, with a GPU of its own or with its share of the cores."""
    arguments, environment = list(setup.arguments), dict(setup.environment)
    if gpus:
        arguments += ["--cuda-device", str(number % gpus)]
    elif "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    mine = replace(setup, arguments=arguments, environment=environment)
    return OwnServer(f"server {number + 1}", folder / str(number + 1), mine, standard)
