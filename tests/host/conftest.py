"""The host in this process: see in_process.py.

Tests write `from zerocon_pack.bridge... import ...`, and run graphs in API format with the `run_graph` fixture.
"""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from in_process import BROUGHT_ALONG, PACK_SECONDS, GraphRunner  # noqa: E402


@pytest.fixture
def run_graph() -> GraphRunner:
    """`run_graph(graph, values)` executes a graph in API format; calls in one test share the host's output cache."""
    return GraphRunner()


@pytest.fixture
def import_cost() -> tuple[float, set[str]]:
    """Seconds of computing that importing the pack took, the host being there, and the packages that it brought along."""
    return PACK_SECONDS, BROUGHT_ALONG
