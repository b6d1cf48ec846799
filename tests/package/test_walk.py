"""The first minutes of somebody who has put the archive into an empty ComfyUI, by the page's own controls."""

import io

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Page, TimeoutError

from tools.page import PICTURE, RUN
from zerocon_core.toyworld.classifier import classify

# Where a widget is on the screen.
PLACE = """([type, name]) => {
    const node = app.graph.nodes.find(node => node.type === type);
    const widget = node.widgets.find(widget => widget.name === name);
    const corner = app.canvas.canvas.getBoundingClientRect();
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10]);
    return [corner.x + x, corner.y + y];
}"""


def test_a_first_start_ends_in_a_translation_to_the_users_word(client, installed, browser):
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.set_default_timeout(300_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto(client.url)
    templates = page.get_by_role("dialog")  # what a first start shows
    templates.get_by_text(installed.name, exact=True).click()
    templates.get_by_text("zerocon_toy", exact=True).click()
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'ZeroConEditDirection')")
    page.wait_for_timeout(2000)  # the page moves the whole graph into view
    write(page, "ZeroConEditDirection", "edit_to", "green")
    write(page, "ZeroConDDIMInvert", "steps", "16")  # somebody in a hurry
    page.get_by_test_id(RUN).click()
    source, translation = (look_at(page, title) for title in ("Save source", "Save translation"))

    assert (source.colour, translation.colour) == (["red"], ["green"])
    assert (source.shape, source.pattern) == (translation.shape, translation.pattern)
    assert errors == []


def write(page: Page, node_type: str, widget: str, text: str) -> None:
    box = page.locator(".graphdialog input")
    for _ in range(5):  # on a slow machine the graph may still be moving
        page.mouse.click(*page.evaluate(PLACE, [node_type, widget]))
        try:
            box.wait_for(timeout=5000)
            break
        except TimeoutError:
            continue
    box.fill(text)
    box.press("Enter")
    box.wait_for(state="detached")


def look_at(page: Page, title: str):
    address = page.wait_for_function(PICTURE, arg=title).json_value()
    picture = np.asarray(Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB"))
    return classify(torch.from_numpy(picture / 255.0)[None])
