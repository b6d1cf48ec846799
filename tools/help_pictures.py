"""Draw the pictures of the help pages: each node in the real page, after a run of a shipped toy workflow.

    python -m tools.help_pictures [NODE_ID ...]

Starts a server of its own. Writes web/docs/images/NODE_ID.webp. Needs the environment of dev.py and a Chromium.
"""

import argparse
import json
import tempfile
from pathlib import Path

from playwright.sync_api import Page

from tools.comfy_server import ROOT, comfy_server, find_comfyui
from tools.page import comfy_page, load, run, screenshot

IMAGES = ROOT / "web" / "docs" / "images"
WIDTH, MARGIN, TITLE, GAP = 330, 30, 56, 60  # of the nodes in a picture, in units of the graph
SCALE = 1.5

# Workflow -> node id -> the nodes in its picture, one above the other.
PICTURES = {
    "zerocon_toy": {
        "ZeroConToyScene": [101, 102, 103],
        "ZeroConAutoCaption": [7, 8],
        "ZeroConEditDirection": [9],
        "ZeroConSaveEditDirection": [9, 104],
        "ZeroConLoadEditDirection": [105, 106],
        "ZeroConDDIMInvert": [11, 12],
        "ZeroConAttentionHookedUNet": [14],
        "ZeroConPatchNCEGuidance": [15, 30],
        "ZeroConAttentionInjection": [113, 118],
        "ZeroConGuidancePreview": [107, 109, 111],
        "ZeroConEditMetrics": [112],
    },
    "cds_toy": {
        "ZeroConCaptionEncode": [6, 9],
        "ZeroConCDSOptimize": [14, 20],
        "ZeroConSplatViews": [101],
        "ZeroConViewsToSplat": [102],
        "ZeroConCDSOptimize3D": [103],
    },
    "augment_and_mask_toy": {"ZeroConPromptAugment": [5], "ZeroConEditMask": [10, 25]},
    "attention_maps_toy": {"ZeroConAttentionMapPreview": [11]},
    "soft_cl_train_toy": {
        "ZeroConToyWorld": [2, 5],
        "ZeroConToyTrainingSet": [3, 5],
        "ZeroConSoftContrastiveTrain": [7, 23],
    },
}
# What the workflows lack: (id, type, widgets, input -> (node, output)).
MORE = {
    "zerocon_toy": [
        (101, "ZeroConToyScene", {"seed": 4, "control_after_generate": "fixed", "colour": "red", "size": 256}, {}),
        (102, "PreviewImage", {}, {"images": (101, 0)}),
        (103, "MaskPreview", {}, {"mask": (101, 2)}),
        (104, "ZeroConSaveEditDirection", {"filename_prefix": "directions/blue"}, {"direction": (9, 2)}),
        (105, "ZeroConLoadEditDirection", {"name": "blue_00001_.safetensors [output]"}, {}),
        (106, "ZeroConEditDirection", {"caption": "a red star on a plain background"}, {"direction": (105, 0)}),
        (107, "ZeroConGuidancePreview", {}, {"guider": (15, 0), "sampled": (18, 0)}),
        # Its curves are too small to read in a help page: two of the four.
        (108, "ImageCrop", {"width": 640, "height": 320, "x": 0, "y": 0}, {"image": (107, 1)}),
        (109, "PreviewImage", {}, {"images": (108, 0)}),
        (110, "ImageCrop", {"width": 640, "height": 320, "x": 640, "y": 320}, {"image": (107, 1)}),
        (111, "PreviewImage", {}, {"images": (110, 0)}),
        (112, "ZeroConEditMetrics", {}, {"source": (3, 0), "edited": (19, 0)}),
        (
            113,
            "ZeroConAttentionInjection",
            {},
            {"model": (2, 0), "source": (9, 0), "edited": (9, 1), "negative": (9, 0), "trajectory": (12, 1)},
        ),
        (
            114,
            "SamplerCustomAdvanced",
            {},
            {"noise": (17, 0), "guider": (113, 0), "sampler": (16, 0), "sigmas": (12, 2), "latent_image": (12, 0)},
        ),
        (115, "VAEDecode", {}, {"samples": (114, 0), "vae": (2, 2)}),
        (116, "ImageStitch", {"spacing_width": 4}, {"image1": (3, 0), "image2": (115, 0)}),
        (117, "ImageScaleBy", {"upscale_method": "nearest-exact", "scale_by": 4}, {"image": (116, 0)}),
        (118, "PreviewImage", {}, {"images": (117, 0)}),
    ],
    "cds_toy": [
        (101, "ZeroConSplatViews", {}, {}),
        (102, "ZeroConViewsToSplat", {}, {"cameras": (101, 2), "edited_images": (101, 0)}),
        (103, "ZeroConCDSOptimize3D", {}, {"cameras": (101, 2)}),
    ],
}

ADD = """([id, type, widgets, links]) => {
    const node = LiteGraph.createNode(type);
    node.id = id;
    app.graph.add(node);
    for (const [name, value] of Object.entries(widgets)) node.widgets.find(widget => widget.name === name).value = value;
    for (const [name, [origin, slot]] of Object.entries(links))
        app.graph.getNodeById(origin).connect(slot, node, node.findInputSlot(name));
}"""
# Puts the nodes one above the other, what they are made from far to the left, all else far to the right, and draws no links but
# theirs. Returns the height.
STACK = """([ids, width, gap]) => {
    const before = new Set();
    const trace = node => node.inputs.forEach((_, slot) => {
        const origin = node.getInputNode(slot);
        if (origin && !before.has(origin)) { before.add(origin); trace(origin); }
    });
    const stack = ids.map(id => app.graph.getNodeById(id));
    stack.forEach(trace);
    [...app.graph.groups].forEach(group => app.graph.remove(group));
    for (const node of app.graph.nodes) node.pos = [before.has(node) ? -4000 : 4000, node.pos[1]];
    let top = 0;
    for (const node of stack) {
        if (!app.nodeOutputs[node.id]?.images) {  // a preview of the run's progress
            delete app.nodePreviewImages[node.id];
            node.imgs = undefined;
            node.widgets = node.widgets?.filter(widget => widget.name !== "$$canvas-image-preview");
        }
        node.pos = [0, top];
        node.setSize([width, node.size[1]]);
        top += node.size[1] + gap;
    }
    app.canvas.deselectAll();
    const prototype = Object.getPrototypeOf(app.canvas);
    app.canvas.renderLink = function (context, from, to, link, ...rest) {
        if (stack.some(node => node.id == link?.origin_id || node.id == link?.target_id))
            prototype.renderLink.call(this, context, from, to, link, ...rest);
    };
    return top - gap;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="*", default=[node for pictures in PICTURES.values() for node in pictures])
    wanted = parser.parse_args().nodes
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, comfy_server(find_comfyui(), Path(base)) as client:
        for workflow, pictures in PICTURES.items():
            chosen = {node: stack for node, stack in pictures.items() if node in wanted}
            if not chosen:
                continue
            with comfy_page(client.url) as page:
                load(page, json.loads((ROOT / "workflows" / f"{workflow}.json").read_text(encoding="utf-8")))
                for more in MORE.get(workflow, []):
                    page.evaluate(ADD, more)
                run(page, client)
                for node, stack in chosen.items():
                    draw(page, node, stack)


def draw(page: Page, node: str, stack: list[int]) -> None:
    height = page.evaluate(STACK, [stack, WIDTH, GAP])
    picture = screenshot(page, (-MARGIN, -TITLE, WIDTH + MARGIN, height + MARGIN / 2), SCALE)
    path = IMAGES / f"{node}.webp"
    picture.save(path, quality=75, method=6)
    print(f"{path.name}: {picture.width}x{picture.height}, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
