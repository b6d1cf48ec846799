"""What a user of the page gets, over HTTP from a server of its own process."""

import json
import re
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

from tools.comfy_client import PromptError
from tools.comfy_server import LOAD_FAILURE, PACK_NAME

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
# Left out by hosts that have no splats.
NEEDS_SPLATS = {"ZeroConSplatViews", "ZeroConViewsToSplat", "ZeroConCDSOptimize3D"}


def of_type(graph: dict, class_type: str) -> dict:
    """The inputs of the one node of this type."""
    [node] = [node for node in graph.values() if node["class_type"] == class_type]
    return node["inputs"]


def same(ours: dict[str, list[np.ndarray]], theirs: dict[str, list[np.ndarray]]) -> bool:
    return ours.keys() == theirs.keys() and all(
        np.array_equal(a, b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True)
    )


def test_pack_loads_without_a_word(client):
    start = client.log().split("Starting server")[0]
    # The only line about the pack is that of the host's table of import times.
    [line] = [line for line in start.splitlines() if PACK_NAME in line]
    assert re.search(r"\d seconds: ", line) and not LOAD_FAILURE.search(start)


def test_every_node_is_listed_with_a_tooltip_on_every_input(client):
    nodes = {name: node for name, node in client.object_info().items() if PACK_NAME in node["python_module"]}
    assert "ZeroConDDIMInvert" in nodes
    for name, node in nodes.items():
        assert name.startswith("ZeroCon") and node["category"].startswith("ZeroCon") and node["description"]
        inputs = node["input"].get("required", {}) | node["input"].get("optional", {})
        untold = [key for key, (_, *options) in inputs.items() if not (options and options[0].get("tooltip"))]
        assert untold == [], name


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_offered_as_a_template(client, workflow):
    assert workflow.stem in client.get("/workflow_templates")[PACK_NAME]
    served = client.get_bytes(f"/api/workflow_templates/{PACK_NAME}/{urllib.parse.quote(workflow.name)}")
    assert json.loads(served) == json.loads(workflow.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md")))
def test_help_page_is_served(client, name):
    nodes = client.object_info()
    assert name in nodes or (name in NEEDS_SPLATS and "RenderSplat" not in nodes)
    assert client.get_bytes(f"/extensions/{PACK_NAME}/docs/{name}.md").startswith(b"#")


def test_shipped_workflow_runs(bundled_graph, pictures):
    shown = pictures(bundled_graph)
    assert len(shown) == sum(node["class_type"] in ("SaveImage", "PreviewImage") for node in bundled_graph.values())
    assert all(picture.ndim == 3 and picture.std() > 0 for images in shown.values() for picture in images)


def test_same_seed_gives_the_same_bits_after_another_job(toy_graph, pictures):
    guidance = of_type(toy_graph, "ZeroConPatchNCEGuidance")
    guidance["patches"] = 32  # fewer than there are places, so that the seed matters
    first = pictures(toy_graph)
    guidance["seed"] += 1
    assert not same(pictures(toy_graph), first)
    guidance["seed"] -= 1
    cached = []
    again = pictures(toy_graph, lambda kind, data: cached.extend(data["nodes"]) if kind == "execution_cached" else None)
    assert same(again, first)
    assert "ZeroConPatchNCEGuidance" not in {toy_graph[node]["class_type"] for node in cached}


def test_a_value_out_of_range_is_refused(client, toy_graph):
    of_type(toy_graph, "ZeroConDDIMInvert")["steps"] = 0
    with pytest.raises(PromptError, match=r"^ZeroConDDIMInvert: Value 0 smaller than min of 1 \(steps\)$"):
        client.run(toy_graph)


def test_a_wrong_link_is_explained_in_one_sentence_and_the_queue_goes_on(client, toy_graph, pictures):
    guidance = of_type(toy_graph, "ZeroConPatchNCEGuidance")
    hooked, guidance["hooked_model"] = guidance["hooked_model"], of_type(toy_graph, "ZeroConDDIMInvert")["model"]
    with pytest.raises(PromptError, match=r"^PatchNCE Guidance: the model has no hooks[^\n]*$"):
        client.run(toy_graph)
    guidance["hooked_model"] = hooked
    assert pictures(toy_graph)


def test_cancelling_in_the_middle_leaves_the_queue_usable(client, toy_graph, pictures):
    guidance = of_type(toy_graph, "ZeroConPatchNCEGuidance")
    expected = pictures(toy_graph)
    guidance["seed"] += 1
    steps = []

    def cancel_early(kind: str, data: dict) -> None:
        if kind == "progress" and not steps:
            steps.append(data)
            client.interrupt()

    with pytest.raises(PromptError, match="interrupted"):
        client.run(toy_graph, cancel_early)
    assert steps[0]["value"] < steps[0]["max"]
    guidance["seed"] -= 1
    assert same(pictures(toy_graph), expected)
