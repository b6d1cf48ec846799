"""Captioners from the host's folders and from the hub."""

from pathlib import Path

import folder_paths
import pytest
import torch
from zerocon_pack.bridge.files import downloads
from zerocon_pack.bridge.files import networks as files
from zerocon_pack.nodes.auto_caption import AutoCaption
from zerocon_pack.zerocon_core.toyworld.scene import caption, held_out_scenes, render
from zerocon_pack.zerocon_core.toyworld.weights import CAPTIONER_FOLDER


def graph(captioner: str, prefix: str = "") -> dict:
    return {
        "image": {"class_type": "TestValue", "inputs": {"key": "image"}},
        "caption": {
            "class_type": "ZeroConAutoCaption",
            "inputs": {"image": ["image", 0], "captioner": captioner, "prefix": prefix},
        },
    }


@pytest.fixture(scope="module")
def scenes():
    return held_out_scenes(3)


@pytest.fixture
def values(scenes):
    return {"image": torch.stack([torch.from_numpy(render(scene)) for scene in scenes])}


@pytest.fixture
def captioners() -> Path:
    folder = Path(folder_paths.get_folder_paths(files.CAPTIONERS)[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_batch_gives_one_caption_an_image(run_graph, values, scenes):
    run = run_graph(graph(files.TOY_CAPTIONER), values)
    assert run.success, run.error
    assert run.outputs["caption"]["text"] == [caption(scene) for scene in scenes]


def test_a_local_folder_is_a_choice(run_graph, values, captioners, scenes):
    link = captioners / "mine"
    if not link.exists():
        link.symlink_to(CAPTIONER_FOLDER, target_is_directory=True)
    assert "mine" in files.captioner_names()
    run = run_graph(graph("mine"), values)
    assert run.success, run.error
    assert run.outputs["caption"]["text"] == [caption(scene) for scene in scenes]


def test_a_damaged_folder_is_named(run_graph, values, captioners):
    damaged = captioners / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / "config.json").write_text("{")
    run = run_graph(graph("damaged"), values)
    assert not run.success
    assert run.error.startswith("Auto Caption: ") and str(damaged) in run.error and "\n" not in run.error.strip()


def test_a_missing_folder_says_where_it_belongs(captioners):
    with pytest.raises(FileNotFoundError, match="gone") as refusal:
        files.captioner_folder("gone", CAPTIONER_FOLDER)
    assert str(captioners) in str(refusal.value)


def test_no_folder_outside_the_hosts_is_read(captioners):
    with pytest.raises(FileNotFoundError):
        files.captioner_folder("../../../..", CAPTIONER_FOLDER)


def test_a_failed_download_says_what_else_to_do(run_graph, values, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(downloads, "snapshot_download", offline)
    run = run_graph(graph(files.HUB_CAPTIONERS[0]), values)
    assert not run.success
    assert run.error.startswith("Auto Caption: ") and "choose another" in run.error
    assert "no network" in run.error and files.HUB_CAPTIONERS[0] in run.error


def test_nothing_is_downloaded_before_it_is_run(monkeypatch):
    monkeypatch.setattr(downloads, "snapshot_download", lambda *a, **k: pytest.fail("downloaded"))
    AutoCaption.define_schema()
    assert set(files.HUB_CAPTIONERS) <= set(files.captioner_names())
