"""`dev.py translate` on real servers: the bundled workflow over a few drawn pictures."""

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.piebench.dataset import make_toy_set
from runs.translate.command import main
from tools.comfy_server import comfyui_version, find_comfyui

PICTURES = 4
BATCH_TOLERANCE = 2
"""Largest difference of a pixel, of 255, between a row in a batch and the row alone."""


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Pictures of the bundled world with what they show, and what they shall show."""
    folder = tmp_path_factory.mktemp("pictures")
    make_toy_set(folder, PICTURES)
    entries = json.loads((folder / "mapping_file.json").read_text())
    lines = ["name,picture,said,edit_from,edit_to"]
    for key, entry in entries.items():
        was, wanted = (re.search(r"\[(.+?)]", entry[part])[1] for part in ("original_prompt", "editing_prompt"))
        Image.open(folder / "annotation_images" / entry["image_path"]).resize((64, 64)).save(folder / f"{key}.png")
        lines.append(f"{key},{key}.png,{entry['original_prompt'].replace('[', '').replace(']', '')},{was},{wanted}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


@pytest.fixture
def translate(client, table, tmp_path) -> Callable[..., int]:
    def run(name: str, *more: str) -> int:
        common = [str(table), "--output", str(tmp_path / name), "--fix", "12.steps=2", "--keep", "translation"]
        return main(find_comfyui(), ["zerocon_toy", *common, *more])

    return run


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in folder.glob("translation/*.png")}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_every_row_is_translated_captioned_and_measured(client, translate, tmp_path):
    assert translate("out", "--servers", client.url, "--metrics") == 0
    found = rows(tmp_path / "out")
    assert len(found) == PICTURES and len({picture.tobytes() for picture in pixels(tmp_path / "out").values()}) == PICTURES
    for row in found:
        assert row["metrics"]["psnr"] > 5 and row["seconds"] > 0
        assert [*row["texts"]] == ["Caption"] and row["texts"]["Caption"]
    assert (tmp_path / "out" / "report.html").exists()


def test_a_batch_gives_what_its_rows_give_alone(client, table, translate, tmp_path):
    """All with one edit and one caption, which fit the pictures badly; what matters is that batch mates do not."""
    lines = table.read_text().splitlines()
    same = lines[1].split(",")[2:]
    table.write_text("\n".join([lines[0], *(",".join([*line.split(",")[:2], *same]) for line in lines[1:])]) + "\n")
    captioned = ("--servers", client.url, "--set", "9.caption=said")
    assert translate("alone", *captioned) == 0 and translate("batched", *captioned, "--batch", str(PICTURES)) == 0
    table.write_text("\n".join(lines) + "\n")
    assert {row["together"] for row in rows(tmp_path / "batched")} == {PICTURES}
    alone, batched = pixels(tmp_path / "alone"), pixels(tmp_path / "batched")
    assert len(alone) == PICTURES and max(abs(alone[name] - batched[name]).max() for name in alone) <= BATCH_TOLERANCE


def test_a_server_that_is_killed_is_started_again_and_gives_the_same_bits(client, translate, tmp_path):
    assert translate("undisturbed", "--servers", client.url) == 0
    base = str(tmp_path / "killed" / "servers" / "1")

    def kill_the_server_once() -> None:
        while not (tmp_path / "killed" / "rows.jsonl").exists():
            time.sleep(0.1)
        commands = {child: child.cmdline() for child in psutil.Process().children(recursive=True)}
        [server] = [child for child, command in commands.items() if base in command and command[1].endswith("main.py")]
        server.kill()

    killer = threading.Thread(target=kill_the_server_once)
    killer.start()
    assert translate("killed") == 0
    killer.join()
    assert len(rows(tmp_path / "killed")) == PICTURES
    ours, theirs = pixels(tmp_path / "killed"), pixels(tmp_path / "undisturbed")
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_server_says_what_it_is(client):
    found = client.get("/zerocon/identity", models="nothing.safetensors\n../../etc/passwd")
    assert found["comfyui"] == comfyui_version(find_comfyui()) and re.fullmatch("[0-9a-f]{16}", found["pack"])
    assert found["models"] == {"nothing.safetensors": None, "../../etc/passwd": None}
