"""The node: what it shows and hands on, which networks it finds, and what it says about wrong input."""

import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path

import folder_paths
import pytest
import torch
from server import PromptServer
from tiny_networks import save_clip, save_dino, save_inception, save_lpips_trunk
from zerocon_pack.bridge.files import downloads
from zerocon_pack.bridge.files import networks as files
from zerocon_pack.bridge.networks import metrics as bridge
from zerocon_pack.nodes.edit_metrics import EditMetrics
from zerocon_pack.zerocon_core.metrics.clip import clip_score
from zerocon_pack.zerocon_core.metrics.frechet import frechet_distance
from zerocon_pack.zerocon_core.metrics.networks import load_clip, load_dino, load_inception, load_lpips
from zerocon_pack.zerocon_core.metrics.pixels import psnr
from zerocon_pack.zerocon_core.metrics.structure import structure_distance

TRUNK, INCEPTION = "squeezenet1_1-b8a52dc0.pth", "weights-inception-2015-12-05-6726825d.pth"


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
    save_inception(folder / INCEPTION)
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


def test_without_fid_nothing_of_it_is_shown(run_graph, values):
    """Graphs from before the node had this input run as they did."""
    before, off = run_graph(graph(), values), run_graph(graph(fid="off"), values)
    assert before.success and before.captured == off.captured
    assert json.loads(off.captured["json"]).keys() == {"images", "mean", "networks", "left_out"}


def test_the_means_appear_in_the_node(run_graph, values, monkeypatch):
    """As a text message for the page, the way stock nodes show text in themselves."""
    sent = []
    monkeypatch.setattr(PromptServer.instance, "send_progress_text", lambda text, node_id: sent.append((text, node_id)))
    run = run_graph(graph(), values)
    mean = json.loads(run.captured["json"])["mean"]
    [(text, node)] = sent
    assert node == "metrics" and text.splitlines()[0] == f"PSNR, dB ↑  {mean['psnr']:.2f}"


def test_all_networks_from_models_metrics(run_graph, values, networks, caplog):
    chosen = {"structure": "tiny dino", "lpips": "squeeze", "clip": "tiny clip", "pixels": "0 to 255", "fid": "inception"}
    run = run_graph(graph(True, source_text="a cat", target_text="a dog\na fox", **chosen), values)
    assert run.success, run.error
    record = json.loads(run.captured["json"])
    dino, clip = load_dino(networks / "tiny dino"), load_clip(networks / "tiny clip")
    lpips, inception = load_lpips("squeeze", networks / TRUNK), load_inception(networks / INCEPTION)
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
    expected = frechet_distance(inception(source), inception(edited))
    assert record["batch"] == {"images": 2, "fid": pytest.approx(expected, rel=1e-3)} and expected > 0
    assert f"| FID ↓ (n = 2) | {record['batch']['fid']:.2f} |  |  |" in run.captured["table"].splitlines()
    assert record["networks"] == {
        "structure": "tiny dino", "lpips": "lpips package 0.1, squeeze", "clip": "tiny clip",
        "fid": "torch-fidelity package, Inception of 2015-12-05",
    }  # fmt: skip
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
        r"source is 2 x 48x40 and edited is 2 x 40x40; they must have the same number and size, use Image Crop",
    ),
    "batches": ({"edited": rand(1, 40, 48, 3)}, {}, "source is 2 x 48x40 and edited is 1 x 48x40"),
    "masks": ({"mask": torch.zeros(3, 40, 48)}, {}, "3 masks for 2 images; connect one for all or one an image"),
    "values": ({"edited": torch.full((2, 40, 48, 3), torch.nan)}, {}, "edited holds NaN or infinite values"),
    "no target": ({}, {"clip": "openai/clip-vit-base-patch32"}, "target_text, which is empty; write what the edited image shall"),
    "one": (
        {"source": rand(1, 40, 48, 3), "edited": rand(1, 40, 48, 3), "mask": None}, {"fid": "inception"},
        "fid compares sets of images and got one a side; batch two or more, or switch fid off",
    ),
    "lines": ({}, {"target_text": "a\nb\nc"}, "target_text has 3 lines for 2 images"),
    "a mask of whites above 1": ({"mask": 255 * torch.ones(1, 40, 48)}, {}, "values from 255 to 255; it needs 0 to 1"),
    "one colour": ({"edited": rand(2, 40, 48, 1)}, {}, "edited is (2, 40, 48, 1); it needs images of three colours"),
    "small": ({"source": rand(2, 8, 8, 3), "edited": rand(2, 8, 8, 3), "mask": None}, {}, "at least 11x11 pixels, got 8x8"),
}  # fmt: skip


@pytest.mark.parametrize("change, settings, sentence", WRONG.values(), ids=WRONG)
def test_wrong_input_gets_a_sentence(run_graph, values, change, settings, sentence):
    run = run_graph(graph(change.get("mask", True) is not None, **settings), values | change)
    assert not run.success
    assert run.error.startswith("Edit Metrics: ") and sentence in run.error


@pytest.mark.parametrize("setting, package", [({"lpips": "squeeze"}, "lpips"), ({"fid": "inception"}, "torch-fidelity")])
def test_a_missing_package_is_named(run_graph, values, networks, monkeypatch, setting, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    run = run_graph(graph(**setting), values)
    assert not run.success
    assert run.error.startswith("Edit Metrics: ") and f"pip install {package}" in run.error


def test_a_damaged_network_is_named(run_graph, values, networks):
    damaged = networks / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / "config.json").write_text('{"model_type": "vit"}')
    run = run_graph(graph(structure="damaged"), values)
    assert not run.success
    assert run.error.startswith("Edit Metrics: ") and str(damaged) in run.error


def test_a_damaged_inception_is_named(run_graph, values, tmp_path, monkeypatch):
    damaged = tmp_path / INCEPTION
    damaged.write_bytes(b"an error page")
    monkeypatch.setattr(bridge, "inception_file", lambda tell: damaged)
    run = run_graph(graph(fid="inception"), values)
    assert run.error.strip() == f"Edit Metrics: {damaged} is damaged or holds something else than tensors; get it again"


def test_no_folder_outside_the_hosts_is_read(networks):
    with pytest.raises(FileNotFoundError, match="models"):
        files.network_folder("../../..", "vit", print)


DOWNLOADS = [
    ("structure", "facebook/dino-vitb8", "facebook/dino-vitb8 (340 MB)"),
    ("clip", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32 (600 MB)"),
    ("lpips", "alex", "alexnet-owt-7be5be79.pth (233 MB)"),
    ("fid", "inception", f"{INCEPTION} (96 MB)"),
]


@pytest.mark.parametrize("setting, name, announced", DOWNLOADS, ids=[setting for setting, *_ in DOWNLOADS])
def test_downloads_are_announced_before_they_start_and_may_fail(
    run_graph, values, monkeypatch, caplog, tmp_path, setting, name, announced
):
    """On the node and in the log, with their size."""
    said = []

    def offline(*args, **kwargs):
        assert any(announced in text for text in said) and announced in caplog.text
        raise ConnectionError("no network")

    monkeypatch.setattr(PromptServer.instance, "send_progress_text", lambda text, node_id: said.append(text))
    monkeypatch.setattr(downloads, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(downloads, "snapshot_download", offline)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, files.METRICS, ([str(tmp_path / files.METRICS)], set()))
    caplog.set_level(logging.INFO)
    run = run_graph(graph(target_text="a dog", **{setting: name}), values)
    assert run.error.startswith("Edit Metrics: ") and "(no network)" in run.error and str(tmp_path / files.METRICS) in run.error


def test_a_published_file_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    content = b"weights"
    name = f"network-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    for published in (name, "network-00000000.pth"):
        (tmp_path / published).write_bytes(content)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    told = []
    for _ in range(2):
        file = downloads.published_file((tmp_path / name).as_uri(), 12, files.METRICS, "fid", told.append)
        assert file == tmp_path / "cache" / "checkpoints" / name and file.read_bytes() == content
    assert len(told) == 1 and "(12 MB)" in told[0]
    with pytest.raises(OSError, match=r"could not be downloaded \(invalid hash value .* or switch fid off"):
        downloads.published_file((tmp_path / "network-00000000.pth").as_uri(), 12, files.METRICS, "fid", told.append)


def test_nothing_is_downloaded_before_it_is_run(run_graph, values, monkeypatch):
    monkeypatch.setattr(downloads, "snapshot_download", lambda *a, **k: pytest.fail("downloaded"))
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
