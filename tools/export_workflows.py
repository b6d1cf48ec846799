"""Check the shipped workflows in the real page of a running ComfyUI, and write what is made from them.

    python dev.py serve                                   prints the address of a server with the pack in it
    python -m tools.export_workflows http://127.0.0.1:PORT [NAME ...]

For every workflows/NAME.json: loads it as the page does, stops if a node type, a widget or a link did not survive, writes what
the page would send to the server to workflows/api/NAME.json, and draws the graph: workflows/NAME.jpg (thumbnail of the template
browser; of the toy workflows it shows the result instead), and for the README docs/images/zerocon_toy_graph.png. Needs a Chromium
($CHROMIUM, Debian's or Chrome). The page frames what the server lacks in red: put files of the names used into its models and
input folders.
"""

import argparse
import io
import json
import sys

from PIL import Image
from playwright.sync_api import Page

from tools.comfy_server import ROOT
from tools.page import PICTURE, PageError, comfy_page, load, screenshot

WORKFLOWS = ROOT / "workflows"
README_GRAPHS = {"zerocon_toy": ROOT / "docs" / "images" / "zerocon_toy_graph.png"}
RESULTS = {  # titles of the nodes that show what comes out
    "attention_maps_toy": "All words",
    "augment_and_mask_toy": "Save comparison",
    "cds_toy": "Source | result",
    "soft_cl_train_toy": "Source | before | after",
    "zerocon_toy": "Source | translation",
}
RUN_SECONDS = 1800
THUMBNAIL_WIDTH = 400
MARGIN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in WORKFLOWS.glob("*.json")))
    parser.add_argument("--no-pictures", action="store_true", help="write the API twins only")
    options = parser.parse_args()
    (WORKFLOWS / "api").mkdir(exist_ok=True)
    with comfy_page(options.url) as page:
        for name in options.names:
            workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
            try:
                prompt = load(page, workflow)
            except PageError as error:
                sys.exit(f"{name}: {error}")
            text = json.dumps(prompt, indent=2, ensure_ascii=False) + "\n"
            (WORKFLOWS / "api" / f"{name}.json").write_text(text, encoding="utf-8")
            if not options.no_pictures:
                draw(page, name, workflow)
            print(f"{name}: {len(prompt)} nodes")


def draw(page: Page, name: str, workflow: dict, scale: float = 0.75) -> None:
    """Pictures of the whole graph."""
    boxes = [group["bounding"] for group in workflow["groups"]]
    left, top = (min(box[axis] for box in boxes) - MARGIN for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box in boxes) + MARGIN for axis in (0, 1))
    picture = screenshot(page, (left, top, right, bottom), scale)
    if name in README_GRAPHS:
        picture.quantize(256, dither=Image.Dither.NONE).save(README_GRAPHS[name], optimize=True)
    if name in RESULTS:
        picture = result(page, RESULTS[name])
    picture.resize((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH * picture.height // picture.width), Image.Resampling.LANCZOS).save(
        WORKFLOWS / f"{name}.jpg", quality=85
    )


def result(page: Page, title: str) -> Image.Image:
    """The picture that the node of this title shows once the graph has run."""
    page.evaluate("() => app.queuePrompt(0)")
    address = page.wait_for_function(PICTURE, arg=title, timeout=RUN_SECONDS * 1000).json_value()
    return Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB")


if __name__ == "__main__":
    main()
