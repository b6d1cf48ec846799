"""The host in this process: ComfyUI on sys.path, this repository imported as the package `zerocon_pack`, and its executor.

Importing this module starts both. Nothing of pytest is in here: programs beside the tests use it too.
"""

import asyncio
import importlib.util
import inspect
import os
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy" / "ComfyUI"))
# models, input, output, temp and user folders, empty, for this run
BASE = tempfile.TemporaryDirectory(prefix="zerocon-host-tests-")


def import_host() -> None:
    """Import ComfyUI the way its main.py does, but for the server's start."""
    # The repository, where benchmarks find `runs`, comes last: its own `nodes` must not hide the host's module of that name.
    sys.path[:] = [str(COMFYUI), *(path for path in sys.path if Path(path or ".").resolve() != ROOT), str(ROOT)]
    import torch

    sys.argv = ["main.py", "--base-directory", BASE.name, *([] if torch.cuda.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    importlib.import_module("utils.extra_config")  # before `nodes`, after which comfy/utils.py hides it
    import nodes
    import server

    loop = asyncio.new_event_loop()
    server.PromptServer(loop)  # node files look for its instance when they are imported
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))


def import_pack() -> None:
    """Import this repository as `zerocon_pack` and register its nodes as the host's loader does."""
    import nodes

    spec = importlib.util.spec_from_file_location("zerocon_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    pack = sys.modules["zerocon_pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)

    async def node_list():
        return await (await pack.comfy_entrypoint()).get_node_list()

    for node in asyncio.run(node_list()):
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node


def measured_import() -> tuple[float, set[str]]:
    """Seconds of computing that importing the pack took, the host being there, and the packages that it brought along."""
    before, began = set(sys.modules), time.process_time()
    import_pack()
    return time.process_time() - began, {name.split(".")[0] for name in set(sys.modules) - before}


class AnyType(str):
    """A socket that links to every other one, on both hosts: a type that never differs."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class TestValue:
    """Hands an object made by the test, `values[key]` of a `GraphRunner`'s call, to the graph."""

    values: dict[str, Any] = {}
    INPUT_TYPES = classmethod(lambda cls: {"required": {"key": ("STRING", {})}})
    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "get"
    CATEGORY = "tests"
    IS_CHANGED = classmethod(lambda cls, key: float("nan"))

    def get(self, key: str) -> tuple[Any]:
        return (self.values[key],)


class TestList(TestValue):
    """Hands the items of a list to the graph, as nodes with a list output do."""

    OUTPUT_IS_LIST = (True,)


class TestCapture:
    """Keeps what arrives at `value`; a GraphRun has it under the node's id."""

    captured: dict[str, Any] = {}
    INPUT_TYPES = classmethod(lambda cls: {"required": {"value": (AnyType("*"), {})}, "hidden": {"node_id": "UNIQUE_ID"}})
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "put"
    CATEGORY = "tests"
    IS_CHANGED = classmethod(lambda cls, value=None, **_: float("nan"))

    def put(self, value: Any, node_id: str) -> dict:
        self.captured[node_id] = value
        return {}


@dataclass
class RecordingServer:
    """What a PromptExecutor needs of the server, keeping its messages."""

    client_id: str | None = None
    last_node_id: str | None = None
    last_prompt_id: str | None = None
    sockets_metadata: dict = field(default_factory=dict)
    messages: list[tuple[Any, Any]] = field(default_factory=list)

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        self.messages.append((event, data))


@dataclass
class GraphRun:
    success: bool
    outputs: dict[str, dict]  # what output nodes show in the page, by node id
    captured: dict[str, Any]  # values that arrived at TestCapture nodes, by node id
    error: str | None  # the message of the node that failed, or why the graph was refused
    messages: list[tuple[Any, Any]]  # everything sent to the page, progress and previews among them
    statuses: dict[str, dict] = field(default_factory=dict)  # of the execution; empty for a graph that the host refused


class GraphRunner:
    """`runner(graph, values)` executes a graph in API format; calls of one runner share the host's output cache."""

    def __init__(self) -> None:
        import execution

        self.server = RecordingServer()
        cache_size = (
            {"cache_args": {"lru": 0, "ram": 2.0, "ram_inactive": 8.0}}
            if "cache_args" in inspect.signature(execution.PromptExecutor).parameters
            else {"cache_size": 0}
        )
        self.validate = execution.validate_prompt
        self.executor = execution.PromptExecutor(self.server, cache_type=execution.CacheType.CLASSIC, **cache_size)

    def __call__(self, graph: dict[str, dict], values: dict[str, Any] | None = None) -> GraphRun:
        prompt_id = str(uuid.uuid4())
        self.server.messages, TestValue.values, TestCapture.captured = [], values or {}, {}
        valid, refusal, output_ids, node_errors = asyncio.run(self.validate(prompt_id, graph, None))
        if not valid:
            return GraphRun(False, {}, {}, f"{refusal['message']}: {refusal['details']} {node_errors}", [])
        self.executor.execute(graph, prompt_id, {"client_id": "tests"}, output_ids)
        statuses = dict(self.executor.status_messages)
        error = statuses.get("execution_error", {}).get("exception_message")
        outputs = self.executor.history_result["outputs"]
        return GraphRun(self.executor.success, outputs, TestCapture.captured, error, self.server.messages, statuses)


def report_progress(value: int, total: int, preview: Any, node_id: str | None = None, **_: Any) -> None:
    """The progress hook that the host's main.py installs: it also is where a cancelled run stops."""
    import comfy.model_management
    from comfy_execution.progress import get_progress_state
    from comfy_execution.utils import get_executing_context

    comfy.model_management.throw_exception_if_processing_interrupted()
    if (context := get_executing_context()) is not None:
        get_progress_state().update_progress(node_id or context.node_id, value, total, preview)


def register_test_nodes() -> None:
    import comfy.utils
    import nodes

    nodes.NODE_CLASS_MAPPINGS.update(TestValue=TestValue, TestList=TestList, TestCapture=TestCapture)
    comfy.utils.set_progress_bar_global_hook(report_progress)


import_host()
PACK_SECONDS, BROUGHT_ALONG = measured_import()
sys.path += [str(HERE), str(HERE.parent / "shared")]  # for the tests' own modules, after everything of the host
register_test_nodes()
