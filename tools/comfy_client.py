"""A client for the HTTP and the websocket of a ComfyUI server, on this machine or another. Standard library only."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import mimetypes
import re
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

SILENT_SECONDS = 600  # longest wait for the next message of a running graph
BEAT_SECONDS = 5.0  # between two questions whether the server still lives, while it says nothing
HUNG_SECONDS = 60.0  # without any answer, after which it does not

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # these servers are never behind a proxy


class ServerError(RuntimeError):
    """The server did not start, stopped, hangs, or is not what it should be."""


class PromptError(RuntimeError):
    """The server refused a graph, or the graph failed. `details` is the server's own answer."""

    def __init__(self, message: str, details: dict):
        super().__init__(message)
        self.details = details


class Client:
    """Talks to one server. `run` is all that most callers need. `process` and `log_path` are those of a server of ours."""

    def __init__(self, url: str, log_path: Path | None = None, process: subprocess.Popen | None = None):
        self.url = url.rstrip("/")
        self.log_path = log_path
        self.process = process
        self.hung_seconds = HUNG_SECONDS

    def log(self) -> str:
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)  # no colours

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
        try:
            with DIRECT.open(request, timeout=self.hung_seconds) as response:
                return response.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url} does not answer ({error})") from error

    def object_info(self) -> dict[str, dict]:
        return self.get("/object_info")

    def upload(self, path: Path) -> str:
        """Put an image file into the server's input folder; the returned name is what LoadImage takes."""
        return self.upload_bytes(path.name, path.read_bytes())

    def upload_bytes(self, name: str, content: bytes) -> str:
        """The same for the bytes of an image file."""
        boundary = secrets.token_hex(16)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n',
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n',
            f"Content-Type: {kind}\r\n\r\n",
        ]
        body = "".join(parts).encode() + content + f"\r\n--{boundary}--\r\n".encode()
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
        return self.history(graph, on_event)["outputs"]

    def history(self, graph: dict, on_event: Callable[[str, dict], None] = lambda kind, data: None) -> dict:
        """The same, with all that the server notes about the run: `outputs`, and when it began and ended in `status`."""
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
        return entry

    def events(self, client_id: str) -> Iterator[tuple[str, dict]]:
        """The server's JSON messages as (type, data); the first is its greeting. Binary previews are skipped.

        Raises ServerError when the server goes, when it answers no ping for `hung_seconds`, or has no message for SILENT_SECONDS.
        """
        address = urllib.parse.urlsplit(self.url)
        try:
            with socket.create_connection((address.hostname, address.port or 80), timeout=self.hung_seconds) as connection:
                received = greet(connection, address.netloc, f"{address.path}/ws?clientId={client_id}")
                for opcode, payload in frames(connection, received, self.hung_seconds):
                    if opcode == 1:  # text
                        message = json.loads(payload)
                        yield message["type"], message["data"]
        except OSError as error:
            raise ServerError(f"{self.url} closed the connection ({error})\n{self.log_tail()}".strip()) from error
        raise ServerError(f"{self.url} closed the connection\n{self.log_tail()}".strip())


def greet(connection: socket.socket, host: str, path: str) -> bytearray:
    """Ask for a websocket and read the server's consent; returns what came after it."""
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        if not (part := connection.recv(1 << 12)):
            raise ServerError(f"{host} closed the connection")
        answer += part
    consent, rest = answer.split(b"\r\n\r\n", 1)
    if b" 101 " not in consent.split(b"\r\n")[0]:
        raise ServerError(f"{host} refused the websocket; is it a ComfyUI?")
    return bytearray(rest)


def frames(connection: socket.socket, received: bytearray, hung_seconds: float) -> Iterator[tuple[int, bytes]]:
    """(opcode, payload) of a server's websocket frames, until it closes. While it is silent it is pinged."""
    connection.settimeout(min(BEAT_SECONDS, hung_seconds / 4))
    heard = told = time.monotonic()
    while True:
        while frame := next_frame(received):
            if frame[0] < 8:  # no pong and no farewell
                told = time.monotonic()
            yield frame
        try:
            if not (part := connection.recv(1 << 16)):
                return
            received += part
            heard = time.monotonic()
        except TimeoutError:
            if time.monotonic() - heard > hung_seconds:
                raise ServerError(f"no sign of life for {hung_seconds:.0f} s") from None
            if time.monotonic() - told > SILENT_SECONDS:
                raise ServerError(f"it answers, but the graph has not moved for {SILENT_SECONDS} s") from None
            connection.sendall(b"\x89\x80" + secrets.token_bytes(4))  # an empty ping, masked as a client's must be


def next_frame(received: bytearray) -> tuple[int, bytes] | None:
    """Takes a whole frame off the front of what was received, if there is one."""
    if len(received) < 2:
        return None
    opcode, length, start = received[0] & 0x0F, received[1] & 0x7F, 2
    if length >= 126:
        start += 2 if length == 126 else 8
        length = int.from_bytes(received[2:start], "big")
    if len(received) < start + length:
        return None
    payload = bytes(received[start : start + length])
    del received[: start + length]
    return opcode, payload


def refusal_text(details: dict) -> str:
    """One line from the body of a refused /prompt."""
    reasons = [
        f"{node['class_type']}: {reason['message']} ({reason['details']})"
        for node in details["node_errors"].values()
        for reason in node["errors"]
    ]
    return "; ".join(reasons) or details["error"]["message"]
