"""The node: what it shows and hands on, which networks it finds, and what it says about wrong input."""

import json
import logging
import shutil
from pathlib import Path

import folder_paths
import pytest
import torch
from server import PromptServer
from tiny_networks import save_clip, save_dino, save_lpips_trunk
from zerocon_pack.nodes.bridge import files
from zerocon_pack.nodes.bridge import metrics as bridge
from zerocon_pack.nodes.edit_metrics import EditMetrics
from zerocon_pack.zerocon_core.metrics.clip import clip_score
from zerocon_pack.zerocon_core.metrics.networks import load_clip, load_dino, load_lpips
from zerocon_pack.zerocon_core.metrics.pixels import psnr
from zerocon_pack.zerocon_core.metrics.structure import structure_distance

TRUNK = "squeezenet1_1-b8a52dc0.pth"


def graph(mask: bool = False, **inputs) -> dict:
    settings = {"source_text": "", "target_text": "", "structure": "off", "lpips": "off", "clip": "off", "pixels": "0 to 1"}
    links = ("source", "edited", "mask") if mask else ("source", "edited")
    return {name: {"class_type": "TestValue", "inputs": {"key": name}} for name in links} | {
        "metrics": {"class_type": "ZeroConEditMetrics", "inputs": settings | {name: [name, 0] for name in links} | inputs},
        "json": {"class_type": "TestCapture", "inputs": {"value": ["metrics", 1]}},
        "table": {"class_type": "TestCapture", "inputs": {"value": ["metrics", 0]}},
    }


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    return {"source": rand(2, 40, 48, 3), "edited": rand(2, 40, 48, 3, seed=1), "mask": rand(2, 40, 48, seed=2).round()}


@pytest.fixture(scope="module")
def networks() -> Path:
    """models/metrics with one network of each kind."""
    folder = Path(folder_paths.get_folder_paths(files.METRICS)[0])
    save_dino(folder / "tiny dino")
    save_clip(folder / "tiny clip")
    save_lpips_trunk(folder / TRUNK, "squeezenet1_1")
    yield folder
    shutil.rmtree(folder)


def test_table_and_json_are_handed_on(run_graph, values):
    run = run_graph(graph(), values)
    assert run.success, run.error
    record = json.loads(run.captured["json"])
    for image, expected in zip(record["images"], psnr(values["source"], values["edited"]).tolist(), strict=True):
        assert image.keys() == {"psnr", "ssim", "mse"} and image["psnr"] == pytest.approx(expected)
    assert record["mean"]["psnr"] == pytest.approx(sum(image["psnr"] for image in record["images"]) / 2)
    assert list(run.outputs["metrics"]["text"]) == [run.captured["table"]]
    psnrs = [record["mean"]["psnr"], *(image["psnr"] for image in record["images"])]
    assert "| PSNR, dB ↑ | " + " | ".join(f"{value:.2f}" for value in psnrs) + " |" in run.captured["table"]


def test_the_means_appear_in_the_node(run_graph, values, monkeypatch):
    """As a text message for the page, the way stock nodes show text in themselves."""
    sent = []
    monkeypatch.setattr(PromptServer.instance, "send_progress_text", lambda text, node_id: sent.append((text, node_id)))
    run = run_graph(graph(), values)
    mean = json.loads(run.captured["json"])["mean"]
    [(text, node)] = sent
    assert node == "metrics" and text.splitlines()[0] == f"PSNR, dB ↑  {mean['psnr']:.2f}"


def test_all_networks_from_models_metrics(run_graph, values, networks, caplog):
    chosen = {"structure": "tiny dino", "lpips": "squeeze", "clip": "tiny clip", "pixels": "0 to 255"}
    run = run_graph(graph(True, source_text="a cat", target_text="a dog\na fox", **chosen), values)
    assert run.success, run.error
    record = json.loads(run.captured["json"])
    dino, clip = load_dino(networks / "tiny dino"), load_clip(networks / "tiny clip")
    lpips = load_lpips("squeeze", networks / TRUNK)
    source, edited, mask = values["source"], values["edited"], values["mask"]
    background = [images * (1 - mask)[..., None] for images in (source, edited)]
    expected = {
        "structure": structure_distance(dino(source, 255.0), dino(edited, 255.0)),
        "lpips": lpips(source, edited),
        "background_lpips": lpips(*background),
        "background_psnr": psnr(*background),
        "clip_score": clip_score(clip.images(edited), clip.texts(["a dog", "a fox"])),
        "clip_score_edited": clip_score(clip.images(edited * mask[..., None]), clip.texts(["a dog", "a fox"])),
    }
    for name, column in expected.items():
        assert [image[name] for image in record["images"]] == pytest.approx(column.tolist(), rel=1e-4, abs=1e-6), name
    assert {"clip_accuracy", "clip_direction", "clip_r_precision"} <= record["mean"].keys()
    assert record["networks"] == {"structure": "tiny dino", "lpips": "lpips package 0.1, squeeze", "clip": "tiny clip"}
    states = [data["nodes"] for kind, data in run.messages if kind == "progress_state"]
    last = [nodes["metrics"] for nodes in states if "metrics" in nodes][-1]
    assert last["value"] == last["max"]
    assert "leak" not in caplog.text.lower()  # what the host says of networks that outlive their patcher


def test_local_folders_are_offered_for_what_they_are(networks):
    (networks / "something else").mkdir(exist_ok=True)
    assert "tiny dino" in files.network_names("vit") and "tiny dino" not in files.network_names("clip")
    assert "tiny clip" in files.network_names("clip") and "tiny clip" not in files.network_names("vit")
    assert "something else" not in files.network_names("vit") + files.network_names("clip")


def test_a_mask_of_another_size_is_resized_as_the_host_does(run_graph, values):
    import comfy.utils

    small = rand(1, 10, 12, seed=2)
    resized = comfy.utils.common_upscale(small[:, None], 48, 40, "bilinear", "disabled")[:, 0]
    runs = [run_graph(graph(True), values | {"mask": mask}) for mask in (small, resized.expand(2, -1, -1))]
    assert runs[0].success, runs[0].error
    assert runs[0].captured["table"] == runs[1].captured["table"]


def test_a_mask_over_everything_leaves_the_background_out_with_its_reason(run_graph, values):
    values["mask"][1] = 1.0
    run = run_graph(graph(True), values)
    record = json.loads(run.captured["json"])
    assert record["images"][1]["background_psnr"] is None
    assert record["mean"]["background_psnr"] == record["images"][0]["background_psnr"]
    assert record["left_out"] == ["background of image 2: its mask covers everything"]
    assert "left out: background of image 2" in run.outputs["metrics"]["text"][0]


def test_without_a_source_text_what_needs_it_is_named(run_graph, values, networks):
    record = json.loads(run_graph(graph(clip="tiny clip", target_text="a dog"), values).captured["json"])
    assert record["mean"].keys() == {"psnr", "ssim", "mse", "clip_score"}
    assert record["left_out"] == ["CLIP accuracy and direction: source_text is empty"]


WRONG = {
    "sizes": (
        {"edited": rand(2, 40, 40, 3)}, {},
        r"source is 2 x 48x40 and edited is 2 x 40x40; they must have the same number and size, use Upscale Image",
    ),
    "batches": ({"edited": rand(1, 40, 48, 3)}, {}, "source is 2 x 48x40 and edited is 1 x 48x40"),
    "masks": ({"mask": torch.zeros(3, 40, 48)}, {}, "3 masks for 2 images; connect one for all or one an image"),
    "values": ({"edited": torch.full((2, 40, 48, 3), torch.nan)}, {}, "edited holds NaN or infinite values"),
    "no target": ({}, {"clip": "openai/clip-vit-base-patch32"}, "target_text, which is empty; write what the edited image shall"),
    "lines": ({}, {"target_text": "a\nb\nc"}, "target_text has 3 lines for 2 images"),
    "small": ({"source": rand(2, 8, 8, 3), "edited": rand(2, 8, 8, 3), "mask": None}, {}, "at least 11x11 pixels, got 8x8"),
}  # fmt: skip


@pytest.mark.parametrize("change, settings, sentence", WRONG.values(), ids=WRONG)
def test_wrong_input_gets_a_sentence(run_graph, values, change, settings, sentence):
    run = run_graph(graph(change.get("mask", True) is not None, **settings), values | change)
    assert not run.success
    assert run.error.startswith("EditMetrics: ") and sentence in run.error


def test_a_missing_package_is_named(run_graph, values, networks, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    run = run_graph(graph(lpips="squeeze"), values)
    assert not run.success
    assert run.error.startswith("EditMetrics: ") and "pip install lpips" in run.error


def test_a_damaged_network_is_named(run_graph, values, networks):
    damaged = networks / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / "config.json").write_text('{"model_type": "vit"}')
    run = run_graph(graph(structure="damaged"), values)
    assert not run.success
    assert run.error.startswith("EditMetrics: ") and str(damaged) in run.error


def test_no_folder_outside_the_hosts_is_read(networks):
    with pytest.raises(FileNotFoundError, match="models"):
        files.network_folder("../../..", "vit")


def test_downloads_are_announced_with_their_size_and_may_fail(run_graph, values, monkeypatch, caplog):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(files, "snapshot_download", offline)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    caplog.set_level(logging.INFO)
    for setting, name, size in (("structure", "facebook/dino-vitb8", "340 MB"), ("lpips", "alex", "233 MB")):
        run = run_graph(graph(**{setting: name}), values)
        assert run.error.startswith("EditMetrics: ") and "no network" in run.error and files.METRICS in run.error
        assert size in caplog.text


def test_nothing_is_downloaded_before_it_is_run(run_graph, values, monkeypatch):
    monkeypatch.setattr(files, "snapshot_download", lambda *a, **k: pytest.fail("downloaded"))
    EditMetrics.define_schema()
    assert run_graph(graph(), values).success


def test_a_cancelled_run_stops_between_images(run_graph, values, monkeypatch):
    import comfy.model_management

    calls = []

    def cancel_second() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(bridge.comfy.model_management, "throw_exception_if_processing_interrupted", cancel_second)
    run = run_graph(graph(), values)
    assert not run.success and len(calls) == 2
    monkeypatch.undo()
    assert run_graph(graph(), values).success
