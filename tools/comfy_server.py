"""Starts and stops a ComfyUI server with this pack in it. Standard library only."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .comfy_client import Client, ServerError

ROOT = Path(__file__).resolve().parents[1]
PACK_NAME = "ComfyUI-ZeroCon"
KEPT = ROOT / "tools" / "kept_process.py"
START_SECONDS = 300
# Out of reach of a Ctrl-C in the terminal: what becomes of a server then is for its owner to say.
ALONE = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
# The host starts without a pack that it could not load, and even its self-test then exits with 0.
LOAD_FAILURE = re.compile(r"IMPORT FAILED|Cannot import|Error while calling comfy_entrypoint|PRESTARTUP FAILED")


def find_comfyui() -> Path | None:
    """$COMFYUI_PATH, else the ComfyUI that this repository lies in as a custom node, else ~/comfy/ComfyUI."""
    if configured := os.environ.get("COMFYUI_PATH"):
        path = Path(configured).expanduser().resolve()
        if not (path / "comfyui_version.py").is_file():
            raise SystemExit(f"COMFYUI_PATH={configured} is not a ComfyUI folder.")
        return path
    for path in (ROOT.parent.parent, Path.home() / "comfy" / "ComfyUI"):
        if (path / "comfyui_version.py").is_file():
            return path
    return None


def comfyui_version(comfyui: Path) -> str:
    return re.search(r'__version__ = "(.+)"', (comfyui / "comfyui_version.py").read_text())[1]


def link_pack(base: Path) -> str:
    """Make the repository appear as a custom node under `base`: a link, as a copy would go stale. Returns its name there."""
    link = base / "custom_nodes" / PACK_NAME
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        return link.name
    link.unlink(missing_ok=True)  # dangling: the repository was moved
    if os.name == "nt":  # a junction needs no privilege, a symbolic link does
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    else:
        link.symlink_to(ROOT, target_is_directory=True)
    return link.name


@contextlib.contextmanager
def comfy_server(
    comfyui: Path, base: Path, arguments: Sequence[str] = (), pack: str = "", **environment: str
) -> Iterator[Client]:
    """Run the server with its models, input, output and user folders under `base` until the block is left.

    `pack` is the name of a copy of the pack that lies in `base` already. Without it this repository is linked there. The server
    also ends with this process, however that ends.
    """
    pack = pack or link_pack(base)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(KEPT), sys.executable, str(comfyui / "main.py"), "--base-directory", str(base)]
    command += ["--port", str(port), "--database-url", f"sqlite:///{(base / 'comfyui.db').as_posix()}"]
    command += ["--disable-auto-launch", "--disable-api-nodes", *arguments]
    if not has_cuda():
        command.append("--cpu")
    log_path = base / "server.log"
    with open(log_path, "wb") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=comfyui, env=os.environ | environment, **pipes, **ALONE)
    try:
        client = Client(f"http://127.0.0.1:{port}", log_path, process)
        wait_until_ready(client, pack)
        yield client
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        process.stdin.close()  # which ends what does not listen
        process.wait()


def has_cuda() -> bool:
    import torch  # only in the environment that dev.py makes, so not at the top

    return torch.cuda.is_available()


def wait_until_ready(client: Client, pack: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if client.process.poll() is not None:
            raise ServerError(f"ComfyUI stopped while starting:\n{client.log_tail()}")
        if time.monotonic() > deadline:
            raise ServerError(f"ComfyUI did not answer within {START_SECONDS} s:\n{client.log_tail()}")
        with contextlib.suppress(ServerError):
            client.get("/system_stats")
            break
        time.sleep(0.3)
    if any(LOAD_FAILURE.search(line) and pack in line for line in client.log().splitlines()):
        raise ServerError(f"ComfyUI could not load the pack:\n{client.log_tail()}")
