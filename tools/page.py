"""The real page of a running ComfyUI in a headless Chromium: what only the page can tell about a workflow."""

import contextlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tools.comfy_client import Client

VIRTUAL = {"MarkdownNote", "Note"}  # nodes of the page alone
RUN = "queue-button"  # the test id of the page's button
BROWSER = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
CHROMIUMS = ("/usr/bin/chromium", "/usr/bin/google-chrome")
RUN_SECONDS = 3600

LOAD = """async (workflow) => {
    const missing = workflow.nodes.map(node => node.type).filter(type => !(type in LiteGraph.registered_node_types));
    if (missing.length) return {missing};
    await app.loadGraphData(workflow, true, false);
    return {missing, saved: app.graph.serialize(), prompt: (await app.graphToPrompt()).output};
}"""
# The page without its bars, and the graph in it from a corner on at the given scale.
FRAME = """([left, top, scale]) => {
    const style = document.createElement("style");
    style.textContent = `[class*="graph-canvas-panel"], .side-tool-bar-container, .comfyui-body-top, .comfyui-body-bottom,
        .comfyui-body-left, .comfyui-body-right, .minimap-main-container, .p-toast, .p-dialog-mask, .actionbar-container,
        .p-buttongroup, button { visibility: hidden !important }`;
    document.head.append(style);
    app.extensionManager.focusMode = true;
    app.canvas.show_info = false;
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [-left, -top];
    app.canvas.setDirty(true, true);
}"""

# The address of the picture that a node in view shows.
PICTURE = "title => app.graph.nodes.find(node => node.title === title)?.imgs?.find(image => image.naturalWidth)?.src"


class PageError(RuntimeError):
    """The page does not hold the graph of the file, or could not run it."""


def find_chromium() -> str | None:
    """$CHROMIUM, else where Debian and Google install one."""
    return next((path for path in (os.environ.get("CHROMIUM"), *CHROMIUMS) if path and Path(path).is_file()), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=BROWSER.split())
        yield browser
        browser.close()


@contextlib.contextmanager
def comfy_page(url: str) -> Iterator[Page]:
    """The page of the server at `url`, ready to take a workflow."""
    with chromium() as browser:
        yield open_page(browser, url)


def open_page(browser: Browser, url: str) -> Page:
    page = browser.new_page()
    page.set_default_timeout(120_000)
    # A first start would cover the graph with the template browser.
    page.request.post(f"{url}/api/settings/Comfy.TutorialCompleted", data="true")
    page.goto(url)
    page.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types.ZeroConDDIMInvert")
    page.wait_for_timeout(2000)
    return page


def load(page: Page, workflow: dict) -> dict:
    """Loads a workflow as the page does. Returns its API format, if the page then holds the same graph as the file."""
    answer = page.evaluate(LOAD, workflow)
    if answer["missing"]:
        raise PageError(f"the server does not know {', '.join(answer['missing'])}")
    saved = {node["id"]: node for node in answer["saved"]["nodes"]}
    for node in workflow["nodes"]:
        values, now = node.get("widgets_values") or [], saved[node["id"]].get("widgets_values") or []
        if values != now:
            raise PageError(f"{node['type']} has the widget values {values}, the page makes them {now}: save it anew")
    if links(answer["saved"]) != links(workflow):
        raise PageError(f"links were lost: {links(workflow) ^ links(answer['saved'])}")
    expected = {str(node["id"]) for node in workflow["nodes"] if node["type"] not in VIRTUAL}
    if set(answer["prompt"]) != expected:
        raise PageError(f"nodes were lost: {expected ^ set(answer['prompt'])}")
    return answer["prompt"]


def links(workflow: dict) -> set[tuple]:
    return {tuple(link[1:5]) for link in workflow["links"]}


def run(page: Page, client: Client) -> dict:
    """Does what the button Run does, and waits. Returns the entry of the server's history."""
    earlier = set(client.get("/history"))
    page.evaluate("() => app.queuePrompt(0)")
    deadline = time.monotonic() + RUN_SECONDS
    while not (new := set(client.get("/history")) - earlier):
        if time.monotonic() > deadline:
            raise PageError(f"the graph did not end within {RUN_SECONDS} s:\n{client.log_tail()}")
        time.sleep(0.5)
    [entry] = (client.get("/history")[number] for number in new)
    if entry["status"]["status_str"] != "success":
        raise PageError(str(entry["status"]["messages"]))
    return entry


def screenshot(page: Page, box: tuple[float, float, float, float], scale: float) -> Image.Image:
    """What lies in a box of the graph (left, top, right, bottom), drawn at the given scale."""
    left, top, right, bottom = box
    page.set_viewport_size({"width": int((right - left) * scale), "height": int((bottom - top) * scale)})
    page.wait_for_timeout(1000)
    page.evaluate(FRAME, [left, top, scale])
    page.wait_for_timeout(3000)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")
