"""Check the shipped workflows in the real page of a running ComfyUI, and write what is made from them.

    python dev.py serve                                   prints the address of a server with the pack in it
    python tools/export_workflows.py http://127.0.0.1:PORT [NAME ...]

For every workflows/NAME.json: loads it as the page does, stops if a node type, a widget or a link did not survive, writes what
the page would send to the server to workflows/api/NAME.json, and draws the graph: workflows/NAME.jpg (thumbnail of the template
browser), and for the README docs/images/zerocon_toy_graph.png. Needs `pip install playwright` and a Chromium ($CHROMIUM, default
/usr/bin/chromium). The page frames what the server lacks in red: put files of the names used into its models and input folders.
"""

import argparse
import io
import json
import os
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "workflows"
README_GRAPHS = {"zerocon_toy": ROOT / "docs" / "images" / "zerocon_toy_graph.png"}
THUMBNAIL_WIDTH = 400
MARGIN = 20
VIRTUAL = {"MarkdownNote", "Note"}  # nodes of the page alone
BROWSER = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"

LOAD = """async (workflow) => {
    const missing = workflow.nodes.map(node => node.type).filter(type => !(type in LiteGraph.registered_node_types));
    if (missing.length) return {missing};
    await app.loadGraphData(workflow, true, false);
    return {missing, saved: app.graph.serialize(), prompt: (await app.graphToPrompt()).output};
}"""

# The page without its bars, and the whole graph in it at the given scale.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in WORKFLOWS.glob("*.json")))
    parser.add_argument("--no-pictures", action="store_true", help="write the API twins only")
    options = parser.parse_args()
    (WORKFLOWS / "api").mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER.split())
        page = open_page(browser.new_page(), options.url)
        for name in options.names:
            workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
            prompt = load(page, name, workflow)
            text = json.dumps(prompt, indent=2, ensure_ascii=False) + "\n"
            (WORKFLOWS / "api" / f"{name}.json").write_text(text, encoding="utf-8")
            if not options.no_pictures:
                draw(page, name, workflow)
            print(f"{name}: {len(prompt)} nodes")
        browser.close()


def open_page(page: Page, url: str) -> Page:
    page.set_default_timeout(300_000)
    # A first start would cover the graph with the template browser.
    page.request.post(f"{url}/api/settings/Comfy.TutorialCompleted", data="true")
    page.goto(url)
    page.wait_for_function("() => window.app?.graph && window.LiteGraph?.registered_node_types.ZeroConDDIMInvert")
    page.wait_for_timeout(2000)
    return page


def load(page: Page, name: str, workflow: dict) -> dict:
    """The graph in API format; exits with the reason if the page does not hold the same graph as the file."""
    answer = page.evaluate(LOAD, workflow)
    if answer["missing"]:
        sys.exit(f"{name}: the server does not know {', '.join(answer['missing'])}")
    saved = {node["id"]: node for node in answer["saved"]["nodes"]}
    for node in workflow["nodes"]:
        values, now = node.get("widgets_values") or [], saved[node["id"]].get("widgets_values") or []
        if values != now:
            sys.exit(f"{name}: {node['type']} has the widget values {values}, the page makes them {now}: save it anew")
    if links(answer["saved"]) != links(workflow):
        sys.exit(f"{name}: links were lost: {links(workflow) ^ links(answer['saved'])}")
    expected = {str(node["id"]) for node in workflow["nodes"] if node["type"] not in VIRTUAL}
    if set(answer["prompt"]) != expected:
        sys.exit(f"{name}: nodes were lost: {expected ^ set(answer['prompt'])}")
    return answer["prompt"]


def links(workflow: dict) -> set[tuple]:
    return {tuple(link[1:5]) for link in workflow["links"]}


def draw(page: Page, name: str, workflow: dict, scale: float = 0.75) -> None:
    """Pictures of the whole graph."""
    boxes = [group["bounding"] for group in workflow["groups"]]
    left, top = (min(box[axis] for box in boxes) - MARGIN for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box in boxes) + MARGIN for axis in (0, 1))
    page.set_viewport_size({"width": int((right - left) * scale), "height": int((bottom - top) * scale)})
    page.wait_for_timeout(1000)
    page.evaluate(FRAME, [left, top, scale])
    page.wait_for_timeout(3000)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    if name in README_GRAPHS:
        picture.quantize(128, dither=Image.Dither.NONE).save(README_GRAPHS[name], optimize=True)
    picture.resize((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH * picture.height // picture.width), Image.Resampling.LANCZOS).save(
        WORKFLOWS / f"{name}.jpg", quality=85
    )


if __name__ == "__main__":
    main()
