"""A real ComfyUI server with this pack in it, and a client for its HTTP and websocket. Standard library only."""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACK_NAME = "ComfyUI-ZeroCon"
START_SECONDS = 300
SILENT_SECONDS = 600  # longest wait for the next message of a running graph
# The host starts without a pack that it could not load, and even its self-test then exits with 0.
LOAD_FAILURE = re.compile(r"IMPORT FAILED|Cannot import|Error while calling comfy_entrypoint|PRESTARTUP FAILED")

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine, never behind a proxy


class ServerError(RuntimeError):
    """The server did not start, or stopped."""


class PromptError(RuntimeError):
    """The server refused a graph, or the graph failed. `details` is the server's own answer."""

    def __init__(self, message: str, details: dict):
        super().__init__(message)
        self.details = details


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
def comfy_server(comfyui: Path, base: Path, arguments: Sequence[str] = (), pack: str = "") -> Iterator[Client]:
    """Run the server with its models, input, output and user folders under `base` until the block is left.

    `pack` is the name of a copy of the pack that lies in `base` already. Without it this repository is linked there.
    """
    pack = pack or link_pack(base)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(comfyui / "main.py"), "--base-directory", str(base), "--port", str(port)]
    command += ["--database-url", f"sqlite:///{(base / 'comfyui.db').as_posix()}"]
    command += ["--disable-auto-launch", "--disable-api-nodes", *arguments]
    if not has_cuda():
        command.append("--cpu")
    log_path = base / "server.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        client = Client(port, log_path, process)
        wait_until_ready(client, pack)
        yield client
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
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
        with contextlib.suppress(OSError):
            client.get("/system_stats")
            break
        time.sleep(0.3)
    if any(LOAD_FAILURE.search(line) and pack in line for line in client.log().splitlines()):
        raise ServerError(f"ComfyUI could not load the pack:\n{client.log_tail()}")


class Client:
    """Talks to one server. `run` is all that most callers need."""

    def __init__(self, port: int, log_path: Path, process: subprocess.Popen):
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = log_path
        self.process = process
        self._address = ("127.0.0.1", port)

    def log(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_path.read_text(encoding="utf-8", errors="replace"))  # no colours

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def get_bytes(self, path: str, **query: str) -> bytes:
        return self._request(path + ("?" + urllib.parse.urlencode(query) if query else ""))

    def get(self, path: str, **query: str):
        return json.loads(self.get_bytes(path, **query))

    def post(self, path: str, content: dict | str) -> dict | None:
        answer = self._request(path, json.dumps(content).encode(), "application/json")
        return json.loads(answer) if answer else None

    def _request(self, path: str, data: bytes | None = None, content_type: str = "") -> bytes:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type} if data else {})
        with DIRECT.open(request, timeout=60) as response:
            return response.read()

    def object_info(self) -> dict[str, dict]:
        return self.get("/object_info")

    def upload(self, path: Path) -> str:
        """Put an image into the server's input folder; the returned name is what LoadImage takes."""
        boundary = secrets.token_hex(16)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n',
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n',
            f"Content-Type: {kind}\r\n\r\n",
        ]
        body = "".join(parts).encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        return json.loads(self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]

    def view(self, image: dict) -> bytes:
        """The bytes of one entry of an output's `images`."""
        return self.get_bytes("/view", **{key: image[key] for key in ("filename", "subfolder", "type")})

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def submit(self, graph: dict, client_id: str = "") -> str:
        """Queue a graph in API format; returns its prompt id. The host runs the sound part of a graph; here that is an error."""
        try:
            answer = self.post("/prompt", {"prompt": graph, "client_id": client_id})
        except urllib.error.HTTPError as refusal:
            answer = json.load(refusal)
        if answer["node_errors"] or "error" in answer:
            raise PromptError(refusal_text(answer), answer)
        return answer["prompt_id"]

    def run(self, graph: dict, on_event: Callable[[str, dict], None] = lambda kind, data: None) -> dict[str, dict]:
        """Run a graph to its end and return its outputs by node id. `on_event` gets the server's messages meanwhile."""
        client_id = uuid.uuid4().hex  # a new one each time: the host forgets an id when its last connection closes
        with contextlib.closing(self.events(client_id)) as events:
            next(events)  # connected: nothing sent from here on can be missed
            prompt_id = self.submit(graph, client_id)
            for kind, data in events:
                if data.get("prompt_id") == prompt_id:
                    on_event(kind, data)
                    if kind == "executing" and data["node"] is None:  # sent once the history is written
                        break
        entry = self.get(f"/history/{prompt_id}")[prompt_id]
        messages = dict(entry["status"]["messages"])
        if error := messages.get("execution_error"):
            raise PromptError(error["exception_message"].strip(), error)
        if interrupted := messages.get("execution_interrupted"):
            raise PromptError("interrupted", interrupted)
        return entry["outputs"]

    def events(self, client_id: str) -> Iterator[tuple[str, dict]]:
        """The server's JSON messages as (type, data); the first is its greeting. Binary previews are skipped."""
        connect = socket.create_connection(self._address, timeout=SILENT_SECONDS)
        with connect as connection, connection.makefile("rb") as stream:
            key = base64.b64encode(secrets.token_bytes(16)).decode()
            connection.sendall(
                f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            if b" 101 " not in stream.readline():
                raise ServerError("ComfyUI refused the websocket.")
            while stream.readline().strip():
                pass
            while header := stream.read(2):
                opcode, length = header[0] & 0x0F, header[1] & 0x7F
                if length >= 126:
                    length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
                payload = stream.read(length)
                if opcode == 1:  # text
                    message = json.loads(payload)
                    yield message["type"], message["data"]
            raise ServerError(f"ComfyUI closed the connection:\n{self.log_tail()}")


def refusal_text(details: dict) -> str:
    """One line from the body of a refused /prompt."""
    reasons = [
        f"{node['class_type']}: {reason['message']} ({reason['details']})"
        for node in details["node_errors"].values()
        for reason in node["errors"]
    ]
    return "; ".join(reasons) or details["error"]["message"]
