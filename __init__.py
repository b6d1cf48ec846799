"""ComfyUI-ZeroCon: training-free image translation by text, as nodes on your own model."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .bridge.files.identity import add_route
from .nodes import NODES

WEB_DIRECTORY = "./web"


class ZeroConExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ZeroConExtension:
    add_route()  # not in `on_load`, which ComfyUI 0.3.64 never calls
    return ZeroConExtension()
