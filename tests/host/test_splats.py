"""Gaussian splats in the host: its SPLAT, its cameras, its VAE, and the nodes that edit splats."""

import copy
import math
from dataclasses import replace

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy_api.latest import io
from tiny import conditioning, fingerprint, tiny_unet

if not hasattr(io, "Splat"):
    pytest.skip("this host has no splats", allow_module_level=True)

from comfy_api.latest import Types
from comfy_extras.nodes_gaussian_splat import CreateCameraInfo, RenderSplat, _camera_basis
from zerocon_pack.bridge.loops.splats import draw_views
from zerocon_pack.bridge.splats import framing, orbit, pinhole, splat_with, splats_from
from zerocon_pack.bridge.toyworld import build_vae
from zerocon_pack.zerocon_core.splats.render import rasterization
from zerocon_pack.zerocon_core.toyworld import weights

SIZE = 64
CAMERA = dict(mode="orbit", yaw=30.0, pitch=20.0, distance=3.0)


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def ball(count: int = 400, degree: int = 0, padding: int = 0, batch: int = 1) -> Types.SPLAT:
    """A sphere of flat splats whose colours change slowly, as those of a captured surface do."""
    i = torch.arange(count) + 0.5
    phi, y = math.pi * (1 + 5**0.5) * i, 1 - 2 * i / count
    ring = (1 - y * y).sqrt()
    points = torch.stack([ring * phi.cos(), y, ring * phi.sin()], -1)
    sh = torch.randn(count, (degree + 1) ** 2, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    sh[:, 0] = points.roll(1, -1) * torch.tensor([1.5, 0.8, 1.2])
    spacing = math.sqrt(4 * math.pi / max(count, 1))
    scales = spacing * torch.tensor([0.75, 0.75, 0.1]).expand(count, 3)
    # From z to where the point is.
    quats = torch.nn.functional.normalize(torch.stack([1 + points[:, 2], -points[:, 1], points[:, 0], 0 * y], -1), dim=-1)
    pad = lambda t: torch.cat([t, t.new_zeros(padding, *t.shape[1:])])[None].repeat(batch, *[1] * t.ndim)
    counts = torch.tensor([count] * batch) if padding else None
    return Types.SPLAT(*(pad(t) for t in (points, scales, quats, torch.full((count, 1), 0.97), sh)), counts)


def camera_info(roll: float = 0.0, fov: float = 45.0, zoom: float = 1.0, target=(0.1, -0.2, 0.05)):
    return CreateCameraInfo.execute(CAMERA, *target, roll, fov, zoom).args[0]


def psnr(a, b):
    return float(-10 * torch.log10((a - b).square().mean()))


def to_linear(c):
    return torch.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def to_srgb(c):
    return torch.where(c <= 0.0031308, c * 12.92, 1.055 * c.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("roll", [0.0, 40.0])
def test_it_draws_what_the_host_draws(roll):
    """But for the host's pixels, which are seen at their corners, and its colours, which blend in linear light."""
    splat, info = ball(2000), camera_info(roll)
    theirs, mask = RenderSplat.execute(splat, 128, 128, 1, 1.0, 1.0, 0.0, 0.0, "#000000", "color", camera_info=info).args
    splats, camera = splats_from(splat), pinhole(info, 128, 128)
    K = camera.K.clone()
    K[:2, 2] += 0.5
    colors, covered = rasterization(
        splats.means, splats.quats, splats.scales, splats.opacities, to_linear(splats.colors.clamp(0, 1)),
        camera.viewmat[None], K[None], 128, 128, eps2d=0.0,
    )  # fmt: skip
    assert psnr(to_srgb(colors[0]), theirs[0]) > 33
    assert psnr(covered[0, ..., 0], mask[0]) > 33


@pytest.mark.parametrize("roll", [0.0, -25.0])
@pytest.mark.parametrize("quaternion", [True, False])
def test_cameras_are_the_hosts(roll, quaternion):
    info = camera_info(roll if quaternion else 0.0)
    if not quaternion:
        info = {k: v for k, v in info.items() if k != "quaternion"}
    eye, _, *rows = _camera_basis(info, torch.device("cpu"))
    camera = pinhole(info, 64, 48)
    assert torch.allclose(camera.viewmat[:3, :3], torch.stack(rows), atol=1e-6)
    assert torch.allclose(camera.viewmat @ torch.cat([eye, torch.ones(1)]), torch.tensor([0.0, 0.0, 0.0, 1.0]), atol=1e-6)
    assert camera.K[0, 0] == pytest.approx(24 / math.tan(math.radians(45.0) / 2))


def test_an_orbit_is_the_hosts_turntable():
    first, splat = camera_info(15.0), ball(500)
    options = (splat, 64, 64, 3, 1.0, 1.0, 0.0, 0.0, "#000000", "color")
    theirs = RenderSplat.execute(*options, camera_info=first).args[0]
    for info, picture in zip(orbit(first, 3), theirs, strict=True):
        again = RenderSplat.execute(*options[:3], 1, *options[4:], camera_info=info).args[0]
        assert psnr(again[0], picture) > 50


def test_framing_is_the_hosts():
    splat = ball(500)
    theirs = RenderSplat.execute(splat, 64, 64, 1, 1.0, 1.0, 0.0, 0.0, "#000000", "color").args[0]
    ours = orbit(framing(splats_from(splat), 30.0, 0.0, 35.0), 360)[35]
    again = RenderSplat.execute(splat, 64, 64, 1, 1.0, 1.0, 0.0, 0.0, "#000000", "color", camera_info=ours).args[0]
    assert psnr(again, theirs) > 50


def bits(splat) -> dict:
    return {name: getattr(splat, name).clone() for name in ("positions", "scales", "rotations", "opacities", "sh")}


def test_a_splat_comes_back_as_it_was_but_for_what_changed():
    splat = ball(50, degree=2, padding=7)
    before, splats = bits(splat), splats_from(splat)
    assert len(splats) == 50 and not splats.means.is_inference()
    colors = splats.colors.clone()
    colors[3] = torch.tensor([0.2, 0.4, 0.6])
    edited = splat_with(splat, splats, replace(splats, colors=colors))
    sh = before["sh"].clone()
    sh[0, 3, 0] = (torch.tensor([0.2, 0.4, 0.6]) - 0.5) / 0.28209479177387814
    assert torch.allclose(edited.sh, sh) and torch.equal(edited.sh[0, 4:], before["sh"][0, 4:])
    assert all(torch.equal(value, before[name]) for name, value in bits(splat).items())
    assert all(torch.equal(value, before[name]) for name, value in bits(edited).items() if name != "sh")
    moved = splat_with(splat, splats, type(splats)(splats.means + 1, splats.quats * 2, splats.scales, splats.opacities, colors))
    assert torch.allclose(moved.positions[0, :50], before["positions"][0, :50] + 1)
    assert torch.allclose(moved.rotations, before["rotations"], atol=1e-6)
    assert torch.equal(moved.positions[0, 50:], before["positions"][0, 50:])


def test_all_views_come_equally_often():
    batches = draw_views(16, 3, 8, torch.Generator().manual_seed(1))
    seen = [view for batch in batches for view in batch]
    assert len(batches) == 16 and all(sorted(seen[i : i + 8]) == list(range(8)) for i in range(0, 48, 8))


# --- nodes ---


@pytest.fixture(scope="module")
def values():
    with torch.inference_mode():
        vae = build_vae(weights.read("vae"))
        prompts = {name: conditioning(seed) for seed, name in enumerate(("source", "target", "negative"))}
        return {"model": tiny_unet(), "vae": vae, "splat": ball(), **prompts}


def graph(**changes) -> dict:
    """Views of a splat, an edit of the images by a stock node, and both ways back. `changes` are inputs by node."""
    nodes = {
        "views": ("ZeroConSplatViews", dict(splat=["splat", 0], views=4, size=SIZE, pitch=15.0, distance=0.0, fov=35.0)),
        "invert": ("ImageInvert", dict(image=["views", 0])),
        "lift": ("ZeroConViewsToSplat", dict(
            splat=["splat", 0], cameras=["views", 2], edited_images=["invert", 0], strength=1.0)),
        "cds": ("ZeroConCDSOptimize3D", dict(
            model=["model", 0], vae=["vae", 0], splat=["splat", 0], cameras=["views", 2], source=["source", 0],
            target=["target", 0], negative=["negative", 0], cfg=3.0, steps=4, views_per_step=2, learning_rate=0.01,
            train="colors", w_dds=1.0, w_cut=3.0, temperature=0.07, patches=16, patch_sizes="1", contrast="cds",
            min_timestep=0.05, max_timestep=0.948, timestep_order="random", checkpointing=False, seed=1)),
        "masks": ("TestValue", dict(key="masks")),
    }  # fmt: skip
    for name in ("model", "vae", "splat", "source", "target", "negative"):
        nodes[name] = "TestValue", {"key": name}
    for name, inputs in changes.items():
        nodes[name] = nodes[name][0], nodes[name][1] | inputs
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def watched(graph: dict, node: str, outputs: int = 3) -> dict:
    watch = {f"{node} {i}": {"class_type": "TestCapture", "inputs": {"value": [node, i]}} for i in range(outputs)}
    return graph | watch


def result(run, node: str, outputs: int = 3) -> list:
    assert run.success, run.error
    return [run.captured[f"{node} {i}"] for i in range(outputs)]


def test_views_show_the_splat_from_all_around(run_graph, values):
    images, coverage, cameras = result(run_graph(watched(graph(), "views"), values), "views")
    assert images.shape == (4, SIZE, SIZE, 3) and coverage.shape == (4, SIZE, SIZE) and len(cameras) == 4
    assert coverage[:, SIZE // 2, SIZE // 2].min() > 0.9 and coverage[:, 0, 0].max() == 0
    assert torch.equal(images[:, 0, 0], torch.full((4, 3), 0.5))
    assert (images[0] - images[1]).abs().max() > 0.1


def test_edited_views_go_back_into_the_splat(run_graph, values):
    before = bits(values["splat"])
    edited, renders = result(run_graph(watched(graph(), "lift", 2), values), "lift", 2)
    images, *_ = result(run_graph(watched(graph(), "views"), values), "views")
    assert psnr(renders, 1 - images) > psnr(images, 1 - images) + 10
    assert not torch.equal(edited.sh, before["sh"]) and torch.equal(edited.positions, before["positions"])
    assert all(torch.equal(value, before[name]) for name, value in bits(values["splat"]).items())


@pytest.mark.parametrize("w_cut", [3.0, 0.0], ids=["CDS", "DDS"])
def test_cds_moves_the_splat_and_nothing_else(run_graph, values, w_cut):
    before, model, vae = bits(values["splat"]), fingerprint(values["model"]), fingerprint(values["vae"].patcher)
    run = run_graph(watched(graph(cds={"w_cut": w_cut}), "cds"), values)
    edited, renders, loss = result(run, "cds")
    assert renders.shape == (4, SIZE, SIZE, 3) and len(loss["loss"]) == 4 and all(map(math.isfinite, loss["loss"]))
    moved = (edited.sh != before["sh"]).any(-1)[0, :, 0]
    assert moved.float().mean() > 0.5
    change = 0.28209479177387814 * (edited.sh - before["sh"])
    assert 0.01 < change.abs().max() < 0.05  # four steps of Adam at 0.01
    assert not edited.sh.requires_grad
    assert all(torch.equal(getattr(edited, name), before[name]) for name in before if name != "sh")
    assert all(torch.equal(value, before[name]) for name, value in bits(values["splat"]).items())
    assert fingerprint(values["model"]) == model and fingerprint(values["vae"].patcher) == vae
    assert any("progress" in str(event) for event, _ in run.messages)


def test_same_seed_same_bits(run_graph, values):
    first, *_ = result(run_graph(watched(graph(), "cds"), values), "cds")
    other, *_ = result(run_graph(watched(graph(cds={"seed": 2}), "cds"), values), "cds")
    again, *_ = result(run_graph(watched(graph(), "cds"), values | {"splat": copy.copy(values["splat"])}), "cds")
    assert torch.equal(first.sh, again.sh) and not torch.equal(first.sh, other.sh)


def test_everything_can_be_trained(run_graph, values):
    edited, *_ = result(run_graph(watched(graph(cds={"train": "everything"}), "cds"), values), "cds")
    before = bits(values["splat"])
    assert all((value != before[name]).any() and torch.isfinite(value).all() for name, value in bits(edited).items())
    assert (edited.opacities >= 0).all() and (edited.opacities <= 1).all() and (edited.scales > 0).all()


def left_half() -> torch.Tensor:
    masks = torch.zeros(4, SIZE, SIZE)
    masks[0, :, : SIZE // 2] = 1
    masks[2, :, SIZE // 2 :] = 1  # the same side, from behind
    masks[1] = masks[3] = 0.5
    return masks


@pytest.mark.parametrize("node", ["lift", "cds"])
def test_outside_of_the_masks_every_bit_stays(run_graph, values, node):
    count = 2 if node == "lift" else 3
    run = run_graph(watched(graph(**{node: {"mask": ["masks", 0]}}), node, count), values | {"masks": left_half()})
    edited, before = result(run, node, count)[0], bits(values["splat"])
    moved = (edited.sh != before["sh"])[0, :, 0].any(-1)
    x = before["positions"][0, :, 0]
    assert moved[x < -0.3].float().mean() > 0.8 and not moved[x > 0.3].any()


@pytest.mark.parametrize("node", ["lift", "cds"])
def test_masks_of_nothing_leave_the_splat_alone(run_graph, values, node):
    count = 2 if node == "lift" else 3
    masks = torch.zeros(4, SIZE, SIZE)
    run = run_graph(watched(graph(**{node: {"mask": ["masks", 0]}}), node, count), values | {"masks": masks})
    assert all(torch.equal(value, bits(values["splat"])[name]) for name, value in bits(result(run, node, count)[0]).items())


def broken(**fields):
    splat = ball()
    for name, value in fields.items():
        setattr(splat, name, value)
    return splat


def speck():
    masks = torch.zeros(4, SIZE, SIZE)
    masks[0, 0, 0] = 1
    return masks


REFUSALS = {
    "a batch of splats": ("views", {}, {"splat": ball(batch=2)}, ["batch of 2", "one by one"]),
    "no splats": ("views", {}, {"splat": ball(0)}, ["empty"]),
    "NaN": ("views", {}, {"splat": broken(positions=torch.full((1, 400, 3), float("nan")))}, ["NaN"]),
    "a mesh": ("views", {}, {"splat": Types.MESH(torch.zeros(1, 3, 3), torch.zeros(1, 1, 3))}, ["MESH", "TripoSplat"]),
    "nothing in view": ("views", {"views": {"camera_info": ["camera", 0]}}, {}, ["4 cameras", "distance to 0"]),
    "an orthographic camera": ("views", {"views": {"camera_info": ["flat", 0]}}, {}, ["orthographic", "perspective"]),
    "too few images": ("lift", {"lift": {"edited_images": ["one", 0]}}, {}, ["1 edited_images", "4 cameras"]),
    "images of another size": ("lift", {"lift": {"edited_images": ["small", 0]}}, {}, ["16x16", "64x64", "Upscale Image"]),
    "too few masks": ("lift", {"lift": {"mask": ["masks", 0]}}, {"masks": torch.ones(2, SIZE, SIZE)}, ["2 masks", "4 cameras"]),
    "masks that mean no splat": ("cds", {"cds": {"mask": ["masks", 0]}}, {"masks": speck()}, ["mean no splat"]),
    "a size the VAE cannot take": ("cds", {"views": {"size": 72}, "cds": {"vae": ["odd", 0]}}, {}, ["72", "multiple of 16"]),
    "another VAE": ("cds", {"cds": {"vae": ["wide", 0]}}, {}, ["16 channels", "own VAE"]),
    "too many views a step": ("cds", {"cds": {"views_per_step": 5}}, {}, ["views_per_step is 5", "4 cameras"]),
    "an empty range": ("cds", {"cds": {"min_timestep": 0.9, "max_timestep": 0.2}}, {}, ["0.9 to 0.2", "empty"]),
    "the same prompt": ("cds", {"cds": {"target": ["source", 0]}}, {}, ["same prompt"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_node_and_the_remedy(run_graph, values, name):
    node, changes, given, said = REFUSALS[name]
    odd, wide = copy.copy(values["vae"]), copy.copy(values["vae"])
    odd.downscale_ratio, wide.latent_channels = 16, 16
    far = camera_info() | {"position": {"x": 0.0, "y": 50.0, "z": 3.0}, "target": {"x": 0.0, "y": 50.0, "z": 0.0}}
    far.pop("quaternion", None)
    more = {
        "odd": odd, "wide": wide, "one": torch.zeros(1, SIZE, SIZE, 3), "small": torch.zeros(4, 16, 16, 3), "camera": far,
        "flat": camera_info() | {"cameraType": "orthographic"},
    }  # fmt: skip
    extra = {key: {"class_type": "TestValue", "inputs": {"key": key}} for key in more}
    run = run_graph(watched(graph(**changes) | extra, node, 1), values | more | given)
    kind = {"views": "Splat Views", "lift": "Views To Splat", "cds": "CDS Optimize 3D"}[node]
    assert not run.success and run.error.startswith(f"{kind}: ") or run.error.startswith("Splat Views: "), run.error
    assert all(words in run.error for words in said), run.error


def test_a_cancelled_run_gives_nothing_and_leaves_the_splat(run_graph, values, monkeypatch):
    before, model, calls = bits(values["splat"]), fingerprint(values["model"]), []
    original = comfy.model_management.throw_exception_if_processing_interrupted

    def stop():
        calls.append(1)
        if len(calls) > 12:
            raise comfy.model_management.InterruptProcessingException()
        original()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", stop)
    run = run_graph(watched(graph(cds={"steps": 50}), "cds"), values)
    assert not run.success and not run.captured
    assert all(torch.equal(value, before[name]) for name, value in bits(values["splat"]).items())
    assert fingerprint(values["model"]) == model


def test_view_dependent_colour_is_kept_and_said(run_graph, values, caplog):
    splat = ball(degree=3)
    edited, _ = result(run_graph(watched(graph(), "lift", 2), values | {"splat": splat}), "lift", 2)
    assert torch.equal(edited.sh[..., 1:, :], splat.sh[..., 1:, :]) and not torch.equal(edited.sh[..., 0, :], splat.sh[..., 0, :])
    assert "view-dependent colour" in caplog.text and "kept" in caplog.text
