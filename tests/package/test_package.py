"""What a user gets from the registry, as opposed to what lies in the repository."""

import ast
import json
import re
import subprocess
import sys
import urllib.parse
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tools.comfy_client import PromptError

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
SHIPPED = ("nodes", "bridge", "zerocon_core", "web", "locales", "subgraphs", "workflows")


@pytest.fixture(scope="session")
def names(archive: Path) -> set[str]:
    return set(zipfile.ZipFile(archive).namelist())


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_registrys_checks_pass(comfy):
    said = comfy("node", "validate")
    assert "All validation checks passed" in said and "S102" not in said and "S307" not in said


def test_the_archive_holds_all_of_the_pack(names):
    pack = set().union(*(files(ROOT / folder) for folder in SHIPPED))
    assert pack - names == set()
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"} <= names
    weights = {name.rsplit("/", 1)[1] for name in names if name.endswith(".safetensors")}
    assert {"unet.safetensors", "vae.safetensors", "text_encoder.safetensors", "classifier.safetensors"} < weights


def test_the_archive_holds_nothing_for_maintainers(names):
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {*SHIPPED}
    assert "dev.py" not in names


def test_the_archive_is_small(archive):
    assert archive.stat().st_size < 20e6


def test_icon_and_banner_are_what_the_registry_wants():
    icon, banner = (Image.open(ROOT / "assets" / name) for name in ("icon.png", "banner.png"))
    assert icon.width == icon.height <= 400
    assert banner.width * 9 == banner.height * 21
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for key, name in (("Icon", "icon.png"), ("Banner", "banner.png")):
        assert re.search(rf'^{key} = "https://\S+/assets/{name}"$', project, re.MULTILINE)


def test_installing_the_requirements_changes_nothing_of_the_hosts():
    """Every requirement is met by what the host installs for itself."""
    command = ["-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check", "--report", "-"]
    done = subprocess.run([sys.executable, *command, "-r", ROOT / "requirements.txt"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["install"] == []


def test_it_loads_under_another_folder_name(client, installed):
    start = client.log().split("Starting server")[0]
    [line] = [line for line in start.splitlines() if f"custom_nodes/{installed.name}" in line.replace("\\", "/")]
    assert re.search(r"\d seconds: ", line)
    ours = {name for name, node in client.object_info().items() if node["python_module"] == f"custom_nodes.{installed.name}"}
    assert ours == node_ids()


def node_ids() -> set[str]:
    """Every `node_id` of the source."""
    keywords = (
        node
        for path in (ROOT / "nodes").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "node_id"
    )
    return {ast.literal_eval(keyword.value) for keyword in keywords}


def test_templates_and_help_pages_are_served(client, installed):
    assert set(client.get("/workflow_templates")[installed.name]) == {path.stem for path in WORKFLOWS}
    for workflow in WORKFLOWS:
        address = f"/api/workflow_templates/{installed.name}/{urllib.parse.quote(workflow.stem)}"
        assert json.loads(client.get_bytes(f"{address}.json")) == json.loads(workflow.read_text(encoding="utf-8"))
        assert client.get_bytes(f"{address}.jpg").startswith(b"\xff\xd8")
    for node in node_ids():
        assert client.get_bytes(f"/extensions/{installed.name}/docs/{node}.md").startswith(b"#")


@pytest.mark.parametrize("path", [*WORKFLOWS, *BLUEPRINTS], ids=lambda path: path.stem)
def test_a_host_without_the_pack_can_tell_whose_the_nodes_are(path):
    """The page and the Manager read it off the nodes."""
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = [node for subgraph in content.get("definitions", {}).get("subgraphs", []) for node in subgraph["nodes"]]
    ours = [node["properties"] for node in content["nodes"] + inner if node["type"].startswith("ZeroCon")]
    [registry_id] = re.findall(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {properties["cnr_id"] for properties in ours} == {registry_id}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", properties["ver"]) for properties in ours)


@pytest.fixture
def toy_graph(installed) -> dict:
    """The toy workflow of the archive with few steps."""
    graph = json.loads((installed / "workflows" / "api" / "zerocon_toy.json").read_text(encoding="utf-8"))
    for node in graph.values():
        if node["class_type"] == "ZeroConDDIMInvert":
            node["inputs"]["steps"] = 8
    return graph


@pytest.mark.parametrize("file", ["unet.safetensors", "captioner/config.json", "captioner/model.safetensors"])
def test_a_missing_toy_file_is_named_with_its_remedy(client, installed, toy_graph, file):
    path = installed / "zerocon_core" / "toyworld" / "weights" / file
    aside = path.rename(path.with_suffix(".aside"))
    said = rf"{path.name}[^\n]*: restore it with `git checkout [^\n]* or install the pack again"
    try:
        with pytest.raises(PromptError, match=said):
            client.run(toy_graph)
    finally:
        aside.rename(path)


def test_the_toy_workflow_runs(client, toy_graph):
    outputs = client.run(toy_graph)
    saved = [node for node, content in toy_graph.items() if content["class_type"] == "SaveImage"]
    assert saved and all(client.view(outputs[node]["images"][0]).startswith(b"\x89PNG") for node in saved)
