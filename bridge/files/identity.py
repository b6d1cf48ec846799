"""What this server is, for those who spread one job over several: GET /zerocon/identity."""

import asyncio
import hashlib
from pathlib import Path

import folder_paths
from aiohttp import web
from comfyui_version import __version__ as comfyui
from server import PromptServer

PACK = Path(__file__).parents[2]
CODE = ("__init__.py", "nodes", "bridge", "zerocon_core")


def add_route() -> None:
    """Answer with ComfyUI's version, a digest of the pack, and the SHA-256 of the model files in `models`, a line each."""

    @PromptServer.instance.routes.get("/zerocon/identity")
    async def identity(request: web.Request) -> web.Response:
        names = request.query.get("models", "").splitlines()
        pack, *digests = await asyncio.to_thread(lambda: [code_digest(), *map(model_digest, names)])
        return web.json_response({"comfyui": comfyui, "pack": pack, "models": dict(zip(names, digests, strict=True))})


def code_digest() -> str:
    """Of the pack's Python files and bundled weights."""
    digest = hashlib.sha256()
    for path in sorted(path for part in CODE for path in [PACK / part, *(PACK / part).rglob("*")]):
        if path.suffix in (".py", ".safetensors"):
            digest.update(path.relative_to(PACK).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def model_digest(name: str) -> str | None:
    """Of the file that the host finds under this name in one of its models folders, and no other; None if there is none."""
    for kind in list(folder_paths.folder_names_and_paths):
        if kind != "custom_nodes" and name in folder_paths.get_filename_list(kind):
            digest = hashlib.sha256()
            with open(folder_paths.get_full_path_or_raise(kind, name), "rb") as file:
                while part := file.read(1 << 24):
                    digest.update(part)
            return digest.hexdigest()
    return None
