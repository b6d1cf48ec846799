"""The shipped workflows in the page that an artist sees."""

import io
import json
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Route

from tools.comfy_server import comfyui_version, find_comfyui
from tools.page import RUN, VIRTUAL, load, open_page
from zerocon_core.toyworld.classifier import classify

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
BLUEPRINT = ROOT / "subgraphs" / "Translate image (ZeroCon).json"
TOYS = [path for path in WORKFLOWS if path.stem.endswith("_toy")]
SECONDS = 300  # for a toy workflow with few steps

SHORTEN = """steps => {
    for (const node of app.graph.nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name === "steps") widget.value = Math.min(widget.value, steps);
}"""
SEND = "async workflow => { await app.loadGraphData(workflow, true, false); return (await app.graphToPrompt()).output; }"
# Title, description, input and output names of our nodes in the graph, as they are shown.
NAMES = """() => Object.fromEntries(app.graph.nodes.filter(node => node.type.startsWith("ZeroCon")).map(node => [node.type, [
    node.constructor.title, node.constructor.nodeData.description,
    Object.fromEntries(node.inputs.map(input => [input.name, input.localized_name])),
    node.outputs.map(output => output.localized_name),
]]))"""
FIT_VIEW = "() => app.extensionManager.command.execute('Comfy.Canvas.FitView')"  # what is out of view loads no picture
SHOWS_A_PICTURE = "() => app.graph.nodes.some(node => node.imgs?.some(image => image.naturalWidth))"
SELECT = """type => {
    const node = app.graph.nodes.find(node => node.type === type);
    app.canvas.selectNode(node);
    app.canvas.centerOnNode(node);
}"""
HELP_PICTURES = "() => [...document.querySelectorAll('.node-help-content img')].filter(image => image.naturalWidth).length"
name = lambda path: path.stem


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_workflow_loads_and_sends_what_its_api_twin_says(opened, path):
    opened.errors.clear()
    workflow = read(path)
    prompt = load(opened.page, workflow)  # no node type, widget value or link lost
    assert len(prompt) == sum(node["type"] not in VIRTUAL for node in workflow["nodes"])
    twin = read(ROOT / "workflows" / "api" / path.name)
    if comfyui_version(find_comfyui()) == "0.3.64":  # stock nodes have other titles there, and widgets that say nothing
        prompt, twin = as_in(twin, prompt), as_in(twin, twin)
    assert prompt == twin
    assert opened.errors == []


def as_in(twin: dict, prompt: dict) -> dict:
    """The nodes of `prompt` with the inputs that they have in `twin`."""
    return {
        number: (node["class_type"], {key: node["inputs"][key] for key in twin[number]["inputs"]})
        for number, node in prompt.items()
    }


@pytest.mark.parametrize("path", TOYS, ids=name)
def test_toy_workflow_runs_from_the_page(client, opened, path):
    opened.errors.clear()
    load(opened.page, read(path))
    opened.page.evaluate(SHORTEN, 4)
    opened.page.evaluate(FIT_VIEW)
    earlier = set(client.get("/history"))
    opened.page.get_by_test_id(RUN).click()
    status = finished(client, earlier)["status"]
    assert status["status_str"] == "success", status["messages"]
    opened.page.wait_for_function(SHOWS_A_PICTURE)
    assert opened.errors == []


def test_blueprint_is_offered_and_translates(client, opened):
    """Its one node between the toy world and Save Image."""
    try:
        offered = client.get("/global_subgraphs").values()
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI has no subgraph blueprints")
    assert BLUEPRINT.stem in {entry["name"] for entry in offered}
    opened.errors.clear()
    prompt = opened.page.evaluate(SEND, in_the_toy_world(read(BLUEPRINT)))
    [direction] = [node["inputs"] for node in prompt.values() if node["class_type"] == "ZeroConEditDirection"]
    assert (direction["edit_from"], direction["edit_to"], direction["strength"]) == ("red", "blue", 1)
    earlier = set(client.get("/history"))
    opened.page.get_by_test_id(RUN).click()
    run = finished(client, earlier)
    assert run["status"]["status_str"] == "success", run["status"]["messages"]
    [output] = [output for output in run["outputs"].values() if "images" in output]
    picture = np.asarray(Image.open(io.BytesIO(client.view(output["images"][0]))).convert("RGB"))
    read_off = classify(torch.from_numpy(picture / 255.0)[None])
    assert (read_off.colour, read_off.shape) == (["blue"], ["circle"])
    assert opened.errors == []


def test_help_of_a_node_shows_its_picture(client, opened):
    page = open_page(opened.page.context.browser, client.url)
    try:
        load(page, read(ROOT / "workflows" / "zerocon_toy.json"))
        page.evaluate(SELECT, "ZeroConDDIMInvert")
        page.get_by_test_id("info-button").click()
        page.wait_for_function(HELP_PICTURES)
        text = page.locator(".node-help-content").inner_text()
    finally:
        page.close()
    assert "Runs the sampler backwards" in text and "regularization_steps" in text


@pytest.mark.parametrize("language", ["ja", "ko", "zh"])
def test_the_page_speaks(client, opened, language):
    entries = read(ROOT / "locales" / language / "nodeDefs.json")
    client.post("/settings/Comfy.Locale", language)
    page = open_page(opened.page.context.browser, client.url)
    try:
        load(page, read(ROOT / "workflows" / "zerocon_toy.json"))
        shown = page.evaluate(NAMES)
    finally:
        page.close()
        client.post("/settings/Comfy.Locale", "en")
    for node, (title, description, inputs, outputs) in shown.items():
        entry = entries[node]
        assert (title, description) == (entry["display_name"], entry["description"])
        assert inputs == {name: texts["name"] for name, texts in entry.get("inputs", {}).items()}
        assert outputs == [texts["name"] for texts in entry.get("outputs", {}).values()]
    assert {"ZeroConToyWorld", "ZeroConEditDirection", "ZeroConPatchNCEGuidance"} < shown.keys()


def test_a_host_without_the_pack_says_which_pack_is_missing(client, opened):
    page = opened.page.context.browser.new_page()
    try:
        page.route("**/object_info", answer_without_the_pack)
        page.goto(client.url)
        page.wait_for_function("() => window.app?.graph && LiteGraph.registered_node_types.KSampler")
        page.evaluate("workflow => app.loadGraphData(workflow)", read(ROOT / "workflows" / "zerocon_toy.json"))
        if comfyui_version(find_comfyui()) == "0.3.64":  # names the nodes alone, and their names hold the pack's
            page.get_by_text("Some Nodes Are Missing").wait_for()
            page.get_by_text("ZeroConToyWorld", exact=True).wait_for()
        else:
            page.get_by_text("View details").click()
            page.get_by_text("Missing Node Packs").wait_for()
            page.get_by_text("zerocon", exact=True).wait_for()
    finally:
        page.close()


@pytest.mark.skipif(comfyui_version(find_comfyui()) == "0.3.64", reason="this ComfyUI has no node replacement")
def test_a_renamed_node_goes_through_the_hosts_node_replacement(client, opened):
    """In the page and in a prompt; `renamed.py` registers the former name."""
    former = lambda path: json.loads(path.read_text(encoding="utf-8").replace("ZeroConAttentionHookedUNet", "ZeroConFormerName"))
    twin = ROOT / "workflows" / "api" / "zerocon_toy.json"
    page = open_page(opened.page.context.browser, client.url)
    try:
        page.evaluate("workflow => app.loadGraphData(workflow)", former(ROOT / "workflows" / "zerocon_toy.json"))
        page.get_by_text("View details").click()
        page.get_by_role("button", name="Replace All").click()
        assert page.evaluate("async () => (await app.graphToPrompt()).output") == read(twin)
    finally:
        page.close()

    prompt = former(twin)
    [inversion] = [node["inputs"] for node in prompt.values() if node["class_type"] == "ZeroConDDIMInvert"]
    inversion["steps"] = 4
    assert client.run(prompt)


def answer_without_the_pack(route: Route) -> None:
    answer = route.fetch()
    route.fulfill(json={name: node for name, node in answer.json().items() if not name.startswith("ZeroCon")})


def in_the_toy_world(blueprint: dict) -> dict:
    """A workflow of the blueprint's node, with the toy world's settings, and what it needs around it."""
    [node], [subgraph] = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    node["widgets_values"] = ["red", "blue", 1, "toy world"]
    for inner in subgraph["nodes"]:
        values = inner.get("widgets_values")
        if inner["type"] == "ZeroConEditDirection":
            values[3] = "a {} circle on a plain background\na {} square on a striped background"
        elif inner["type"] == "ZeroConDDIMInvert":
            values[0] = 20
    around = [
        {"id": 2, "type": "ZeroConToyWorld", "outputs": ["MODEL", "CLIP", "VAE"]},
        {"id": 3, "type": "ZeroConToyScene", "outputs": ["IMAGE"], "widgets_values": [4, "fixed", "red", "random", "random", 64]},
        {"id": 4, "type": "SaveImage", "outputs": [], "widgets_values": ["blueprint"]},
    ]
    for other in around:
        blueprint["nodes"].append(other | {"outputs": [{"name": kind, "type": kind} for kind in other["outputs"]], "mode": 0})
    blueprint["nodes"][-1]["inputs"] = [{"name": "images", "type": "IMAGE"}]
    ends = [(2, 0, 1, 0), (2, 1, 1, 1), (2, 2, 1, 2), (3, 0, 1, 3), (1, 0, 4, 0)]
    for number, (origin, origin_slot, target, target_slot) in enumerate(ends, 1):
        nodes = {node["id"]: node for node in blueprint["nodes"]}
        output, end = nodes[origin]["outputs"][origin_slot], nodes[target]["inputs"][target_slot]
        end["link"], output["links"] = number, [*(output.get("links") or []), number]
        blueprint["links"].append([number, origin, origin_slot, target, target_slot, end["type"]])
    return blueprint | {"last_node_id": 30, "last_link_id": len(ends)}


def finished(client, earlier: set[str]) -> dict:
    """The history of the one run that is not among the `earlier` ones."""
    deadline = time.monotonic() + SECONDS
    while not (new := set(client.get("/history")) - earlier):
        assert time.monotonic() < deadline, client.log_tail()
        time.sleep(0.5)
    [run] = new
    return client.get("/history")[run]
