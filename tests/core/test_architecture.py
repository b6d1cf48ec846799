"""Who may import whom, and how large things may be. Read from the source, so that an import inside a function counts too."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE_MAY_USE = {"torch", "einops", "numpy", "transformers", "safetensors", "PIL"} | set(sys.stdlib_module_names)
OPTIONAL = {"gsplat", "lpips", "torch_fidelity"}  # imported when they are used, with a sentence that says how to get them
NODES_MAY_USE = CORE_MAY_USE | {"comfy_api", "typing_extensions"}
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview", "server"}

WITHOUT_HOST = ("tools", "dev", "runs", "runs.servers", "runs.translate", "benchmarks", "benchmarks.piebench")

DOOR = "zerocon_pack"
"""The module through which programs beside the host import this repository as a package."""
TABLES = "benchmarks.tables"

# From which rooms each room may import, besides itself; a module belongs to the room with the longest name that fits.
ROOMS = {
    "zerocon_core": (),
    "bridge": (),
    "bridge.files": ("zerocon_core",),
    "bridge.status": (),
    "bridge.toyworld": ("zerocon_core",),
    "bridge.tabletop": ("zerocon_core",),
    "bridge.splats": ("zerocon_core",),
    "bridge.model": ("zerocon_core",),
    "bridge.networks": ("zerocon_core", "bridge.files", "bridge.status"),
    "bridge.loops": ("zerocon_core", "bridge.files", "bridge.status", "bridge.networks", "bridge.model", "bridge.splats"),
    "nodes.shared": ("zerocon_core", "bridge"),
    "nodes": ("zerocon_core", "bridge"),
    "__init__": ("nodes", "bridge.files"),
    "tools": ("zerocon_core",),
    DOOR: ("tools",),
    "training": (DOOR, "zerocon_core", "bridge"),
    "runs": (),
    "runs.servers": ("runs", "tools"),
    "runs.translate": ("runs", "tools", "zerocon_core"),
    "benchmarks": (),
    "benchmarks.toy": (DOOR, "zerocon_core", "bridge"),
    "benchmarks.quality": ("runs", TABLES, "zerocon_core", "bridge", "benchmarks.toy"),
    "benchmarks.speed": ("runs", TABLES, DOOR, "zerocon_core", "bridge", "training"),
    "benchmarks.patches": ("runs", TABLES, DOOR, "zerocon_core", "bridge", "nodes"),
    "benchmarks.piebench": ("runs", TABLES, "zerocon_core", "tools"),
    "dev": ("tools", "runs.translate", "benchmarks.piebench"),
}

LINES_OF_A_FUNCTION, LINES_OF_A_FILE = 45, 300

FOLDERS = ("zerocon_core", "bridge", "nodes", "tools", "training", "runs", "benchmarks")
FILES = sorted(
    [*(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")), *(ROOT / f"{name}.py" for name in ("dev", DOOR))]
    + [ROOT / "__init__.py"]
)


def module(path: Path) -> str:
    """`bridge.model.attention`; a package goes by its folder's name, and the whole pack by `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every imported module, 'torch.nn', or with its leading dots when relative; and the names that are taken from it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]


def absolute(path: Path) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(path) if not name.startswith(".")}


def resolved(path: Path, name: str) -> str:
    """A module's name from the root of the repository on: 'bridge.model' for '..model' and for 'zerocon_pack.bridge.model'.

    An absolute 'nodes' is the host's.
    """
    relative = name.lstrip(".")
    if relative == name:
        return "" if name == "nodes" else name.removeprefix(f"{DOOR}.")
    folder = path.parent
    for _ in range(len(name) - len(relative) - 1):
        folder = folder.parent
    return ".".join([*folder.relative_to(ROOT).parts, *filter(None, [relative])])


@cache
def own_imports(path: Path) -> frozenset[str]:
    """The repository's modules that a file imports, but for itself."""
    found = set()
    for name, taken in imports(path):
        base = resolved(path, name)
        submodules = {f"{base}.{part}".lstrip(".") for part in taken} & MODULES.keys()
        found |= submodules or {base} & MODULES.keys()
    return frozenset(found - {module(path)})


def lies_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(name: str) -> str:
    return max((room for room in ROOMS if lies_in(name, room)), key=len)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


every_file = pytest.mark.parametrize("path", FILES, ids=module)


def test_the_rules_see_the_imports():
    """What the rules below stand on, on files whose imports are known."""
    assert {"zerocon_core.methods.cds", "bridge.model.attention"} <= own_imports(MODULES["bridge.loops.cds"])
    assert {"bridge.loops.cds", "benchmarks.toy.bench"} <= own_imports(MODULES["benchmarks.toy.methods"])
    assert own_imports(MODULES["__init__"]) == {"nodes", "bridge.files.identity"}
    assert "nodes.edit_mask" in own_imports(MODULES["nodes"])
    assert room_of("bridge.loops.cds") == "bridge.loops" and room_of("nodes.shared.types") == "nodes.shared"


@every_file
def test_a_room_imports_only_from_the_rooms_below(path: Path):
    room = room_of(module(path))
    allowed = (room, *ROOMS[room])
    assert not {name for name in own_imports(path) if not any(lies_in(name, other) for other in allowed)}


def test_no_modules_import_each_other_in_a_circle():
    below: dict[str, frozenset[str]] = {name: own_imports(path) for name, path in MODULES.items()}
    while free := {name for name, needed in below.items() if not needed & below.keys()}:
        below = {name: needed for name, needed in below.items() if name not in free}
    assert not below, f"in circles, or above one: {sorted(below)}"


@every_file
def test_only_the_bridge_and_what_stands_on_the_door_know_the_host(path: Path):
    room = room_of(module(path))
    if room == "zerocon_core":
        assert absolute(path) <= CORE_MAY_USE | OPTIONAL
    elif room in ("nodes", "nodes.shared", "__init__"):  # its public API
        assert absolute(path) <= NODES_MAY_USE
    elif room in WITHOUT_HOST or module(path) == "benchmarks.quality.report":
        assert not absolute(path) & HOST


@every_file
def test_the_pack_imports_itself_relatively(path: Path):
    """It is installed under a name of the host's choosing, and the host has a module `nodes` of its own."""
    if module(path).split(".")[0] in ("zerocon_core", "bridge", "nodes", "__init__"):
        assert not absolute(path) & {*FOLDERS, DOOR}


@every_file
def test_modules_are_named_by_import_statements_alone(path: Path):
    assert not absolute(path) & {"importlib", "runpy", "pkgutil"}
    names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    assert "__import__" not in names
    of_sys = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sys"}
    assert "modules" not in of_sys
    assert "path" not in of_sys or module(path) == DOOR


@every_file
def test_no_function_and_no_file_is_too_long(path: Path):
    longer = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.name != "define_schema"}
    assert not {name: lines for name, lines in longer.items() if lines > LINES_OF_A_FUNCTION}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_OF_A_FILE
