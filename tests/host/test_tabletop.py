"""The tabletop in the host: its own classes, and its VAE nodes on an autoencoder of ours."""

import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.sd
import comfy.sd1_clip
import pytest
import torch
from zerocon_pack.bridge import tabletop
from zerocon_pack.zerocon_core.tabletop import autoencoder, render, sampling

IMAGES = torch.stack([torch.from_numpy(render.render(s)) for s in sampling.held_out_scenes(8)])


@pytest.fixture(scope="module")
def model() -> autoencoder.PatchAutoencoder:
    """Components of these pictures and a refinement that was never trained."""
    model = autoencoder.PatchAutoencoder()
    values = autoencoder.principal_components(IMAGES.movedim(-1, 1) * 2 - 1)
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)
    return model.requires_grad_(False)


def test_the_hosts_nodes_take_the_autoencoder(run_graph, model):
    run = run_graph(
        {
            "vae": {"class_type": "TestValue", "inputs": {"key": "vae"}},
            "image": {"class_type": "TestValue", "inputs": {"key": "image"}},
            "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["vae", 0]}},
            "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["encode", 0], "vae": ["vae", 0]}},
            "tiled": {
                "class_type": "VAEDecodeTiled",
                "inputs": {
                    "samples": ["encode", 0], "vae": ["vae", 0], "tile_size": 64, "overlap": 32,
                    "temporal_size": 64, "temporal_overlap": 8,
                },
            },
            "latent": {"class_type": "TestCapture", "inputs": {"value": ["encode", 0]}},
            "back": {"class_type": "TestCapture", "inputs": {"value": ["decode", 0]}},
            "tiled back": {"class_type": "TestCapture", "inputs": {"value": ["tiled", 0]}},
        },
        {"vae": tabletop.build_vae(model), "image": IMAGES},
    )  # fmt: skip
    assert run.success, run.error
    latent = model.encode(IMAGES.movedim(-1, 1) * 2 - 1)
    assert torch.allclose(run.captured["latent"]["samples"], latent, atol=1e-4)
    decoded = (model.decode(latent).movedim(1, -1) / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(run.captured["back"], decoded, atol=1e-5)
    assert torch.allclose(run.captured["tiled back"], decoded, atol=1e-3)


def test_a_picture_of_another_size_is_cropped_as_the_host_does(model):
    vae = tabletop.build_vae(model)
    assert vae.encode(torch.rand(1, 132, 121, 3)).shape == (1, 16, 16, 15)


def test_the_preview_is_the_mean_colour_of_a_patch(model):
    format = tabletop.TabletopLatentFormat(model)
    latent = torch.randn(1, 16, 4, 4)
    shown = torch.einsum("bchw,cr->brhw", latent, torch.tensor(format.latent_rgb_factors))
    shown = shown + torch.tensor(format.latent_rgb_factors_bias)[:, None, None]
    assert torch.allclose(shown, torch.nn.functional.avg_pool2d(model.decode_linear(latent), 8), atol=1e-4)


def test_the_networks_are_of_the_hosts_classes():
    denoiser, clip = tabletop.build_model(tabletop.TabletopLatentFormat()), tabletop.build_clip()
    assert type(denoiser.diffusion_model) is comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
    assert type(clip) is comfy.sd.CLIP and type(clip.cond_stage_model) is comfy.sd1_clip.SD1ClipModel
    assert sum(p.numel() for p in denoiser.diffusion_model.parameters()) < 4.5e6


def test_a_text_encoder_is_packed_without_loss(monkeypatch):
    table = torch.zeros(49_408, 4)
    table[[5, 49_406]] = torch.randn(2, 4)
    state = {tabletop.TOKENS: table, "other": torch.ones(1)}
    monkeypatch.setattr(tabletop.weights, "read", lambda name: tabletop.pack_text_encoder(dict(state)))
    assert torch.equal(tabletop.text_encoder_weights()[tabletop.TOKENS], table)
