"""Who may import what. Read from the source, so that an import inside a function counts too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE_MAY_USE = {"torch", "einops", "numpy", "transformers", "safetensors", "PIL"} | set(sys.stdlib_module_names)
OPTIONAL = {"lpips", "torch_fidelity"}  # imported when they are used, with a sentence that says how to get them
NODES_MAY_USE = CORE_MAY_USE | {"comfy_api", "typing_extensions"}

CORE = sorted((ROOT / "zerocon_core").rglob("*.py"))
BRIDGE = sorted((ROOT / "bridge").rglob("*.py"))
NODES = sorted([*(ROOT / "nodes").rglob("*.py"), ROOT / "__init__.py"])


def imports(path: Path) -> Iterator[str]:
    """Every imported module: 'torch.nn', or with its leading dots when relative."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def absolute(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path) if not name.startswith(".")}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CORE, ids=name)
def test_core_does_not_know_the_host(path: Path):
    assert absolute(path) <= CORE_MAY_USE | OPTIONAL
    # The pack is installed under a name of the host's choosing, so the core never reaches above itself.
    depth = len(path.relative_to(ROOT / "zerocon_core").parts)
    assert all(len(name) - len(name.lstrip(".")) <= depth for name in imports(path))


@pytest.mark.parametrize("path", NODES, ids=name)
def test_nodes_reach_the_host_only_through_its_public_api_or_the_bridge(path: Path):
    assert absolute(path) <= NODES_MAY_USE


@pytest.mark.parametrize("path", BRIDGE, ids=name)
def test_bridge_does_not_import_the_pack_absolutely(path: Path):
    assert not absolute(path) & {"nodes", "zerocon_core"}
