"""The shipped workflows in the page that an artist sees."""

import json
import time
from pathlib import Path

import pytest

from tools.page import VIRTUAL, load

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
TOYS = [path for path in WORKFLOWS if path.stem.endswith("_toy")]
SECONDS = 300  # for a toy workflow with few steps

SHORTEN = """steps => {
    for (const node of app.graph.nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name === "steps") widget.value = Math.min(widget.value, steps);
}"""
SHOWS_A_PICTURE = "() => Object.values(app.nodeOutputs).some(output => output.images?.length)"
name = lambda path: path.stem


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_workflow_loads_and_sends_what_its_api_twin_says(opened, path):
    opened.errors.clear()
    workflow = read(path)
    prompt = load(opened.page, workflow)  # no node type, widget value or link lost
    assert len(prompt) == sum(node["type"] not in VIRTUAL for node in workflow["nodes"])
    assert prompt == read(ROOT / "workflows" / "api" / path.name)
    assert opened.errors == []


@pytest.mark.parametrize("path", TOYS, ids=name)
def test_toy_workflow_runs_from_the_page(client, opened, path):
    opened.errors.clear()
    load(opened.page, read(path))
    opened.page.evaluate(SHORTEN, 4)
    earlier = set(client.get("/history"))
    opened.page.evaluate("() => app.queuePrompt(0)")  # what the button Run does
    status = finished(client, earlier)["status"]
    assert status["status_str"] == "success", status["messages"]
    opened.page.wait_for_function(SHOWS_A_PICTURE)
    assert opened.errors == []


def finished(client, earlier: set[str]) -> dict:
    """The history of the one run that is not among the `earlier` ones."""
    deadline = time.monotonic() + SECONDS
    while not (new := set(client.get("/history")) - earlier):
        assert time.monotonic() < deadline, client.log_tail()
        time.sleep(0.5)
    [run] = new
    return client.get("/history")[run]
