"""A real server over HTTP, one for the session, with its folders in a temporary place."""

import copy
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from queue_runs import add_witness  # noqa: E402

from tools.comfy_client import Client  # noqa: E402
from tools.comfy_server import comfy_server, find_comfyui  # noqa: E402


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    base = tmp_path_factory.mktemp("server")
    add_witness(base)
    # The classic cache forgets what the last graph did not use, so that going back to an earlier one computes it again.
    with comfy_server(find_comfyui(), base, ["--cache-classic"]) as client:
        yield client


@pytest.fixture(scope="session")
def bundled_graph() -> dict:
    return json.loads((ROOT / "workflows" / "api" / "zerocon_toy.json").read_text(encoding="utf-8"))


@pytest.fixture
def toy_graph(bundled_graph: dict) -> dict:
    """The shipped workflow with few steps, free to be changed by the test."""
    graph = copy.deepcopy(bundled_graph)
    for node in graph.values():
        if node["class_type"] == "ZeroConDDIMInvert":
            node["inputs"]["steps"] = 8
    return graph


@pytest.fixture
def pictures(client: Client) -> Callable[..., dict[str, list[np.ndarray]]]:
    """Runs a graph; returns the pictures of its output nodes, by node id."""

    def decode(image: dict) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(client.view(image))))

    def run(graph: dict, *on_event: Callable[[str, dict], None]) -> dict[str, list[np.ndarray]]:
        outputs = client.run(graph, *on_event)
        return {name: [*map(decode, output["images"])] for name, output in outputs.items() if "images" in output}

    return run
