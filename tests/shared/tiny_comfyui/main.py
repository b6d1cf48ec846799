"""The doors of ComfyUI's server that runs go through, with next to nothing behind them: what dies and hangs here does so in
milliseconds. Started as ComfyUI is. A graph takes TINY_SECONDS, and a saved image has the colour that its picture and the words
of the graph come to. TINY_PACK and TINY_MODELS are what the server says of itself. The word "crash" ends it, "refuse" fails.
"""

import argparse
import asyncio
import hashlib
import io
import os
import time
import uuid
from pathlib import Path

from aiohttp import WSMsgType, web
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("--base-directory", type=Path, default=Path())
parser.add_argument("--port", type=int, required=True)
options, _ = parser.parse_known_args()
routes, sockets, histories = web.RouteTableDef(), {}, {}
running = asyncio.Lock()


@routes.get("/system_stats")
async def stats(request: web.Request) -> web.Response:
    return web.json_response({"system": {"comfyui_version": "0.0.0"}})


@routes.get("/zerocon/identity")
async def identity(request: web.Request) -> web.Response:
    has = os.environ.get("TINY_MODELS", "").split()
    models = {name: "digest" if name in has else None for name in request.query["models"].splitlines()}
    return web.json_response({"comfyui": "0.0.0", "pack": os.environ.get("TINY_PACK", "1"), "models": models})


@routes.get("/ws")
async def ws(request: web.Request) -> web.WebSocketResponse:
    socket = sockets[request.query["clientId"]] = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_json({"type": "status", "data": {}})
    async for message in socket:
        assert message.type == WSMsgType.TEXT
    return socket


@routes.post("/upload/image")
async def upload(request: web.Request) -> web.Response:
    picture = (await request.post())["image"]
    folder = options.base_directory / "input"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / picture.filename).write_bytes(picture.file.read())
    return web.json_response({"name": picture.filename})


@routes.post("/prompt")
async def prompt(request: web.Request) -> web.Response:
    asked = await request.json()
    prompt_id = uuid.uuid4().hex
    asyncio.get_running_loop().create_task(execute(prompt_id, asked["prompt"], sockets[asked["client_id"]]))
    return web.json_response({"prompt_id": prompt_id, "node_errors": {}})


async def execute(prompt_id: str, graph: dict, socket: web.WebSocketResponse) -> None:
    async with running:
        began = time.time()
        await asyncio.sleep(float(os.environ.get("TINY_SECONDS", "0.05")))
        words = " ".join(node["inputs"]["text"] for node in graph.values() if node["class_type"] == "CLIPTextEncode")
        if "crash" in words:
            os._exit(9)
        messages = [["execution_start", {"timestamp": began * 1000}], ["execution_success", {"timestamp": time.time() * 1000}]]
        if "refuse" in words:
            messages.append(["execution_error", {"exception_message": "Tiny: it was told to refuse"}])
        histories[prompt_id] = {"outputs": outputs(graph, words), "status": {"messages": messages}}
    await socket.send_json({"type": "executing", "data": {"node": None, "prompt_id": prompt_id}})


def outputs(graph: dict, words: str) -> dict:
    loaders = [node["inputs"]["image"] for node in graph.values() if node["class_type"] == "LoadImage"]
    found = {}
    for name, node in graph.items():
        if node["class_type"] == "SaveImage":
            found[name] = {"images": [save(f"{uuid.uuid4().hex}.png", loader, words) for loader in loaders]}
    return found


def save(filename: str, loader: str, words: str) -> dict:
    digest = hashlib.sha256((options.base_directory / "input" / loader).read_bytes() + words.encode()).digest()
    folder = options.base_directory / "output"
    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(digest[:3])).save(file, "png")
    (folder / filename).write_bytes(file.getvalue())
    return {"filename": filename, "subfolder": "", "type": "output"}


@routes.get("/history/{prompt_id}")
async def history(request: web.Request) -> web.Response:
    prompt_id = request.match_info["prompt_id"]
    return web.json_response({prompt_id: histories[prompt_id]})


@routes.get("/view")
async def view(request: web.Request) -> web.Response:
    return web.Response(body=(options.base_directory / "output" / request.query["filename"]).read_bytes())


app = web.Application(client_max_size=1 << 28)
app.add_routes(routes)
web.run_app(app, host="127.0.0.1", port=options.port, print=None)
