"""Sampling that walks an inversion back with its residuals."""

import comfy.samplers
import pytest
import torch
from tiny import conditioning, counted, randn, relative_error, tiny_unet
from zerocon_pack.bridge.loops.guidance import ZeroConGuider
from zerocon_pack.bridge.loops.inversion import default_sigmas, invert
from zerocon_pack.bridge.model.attention import hook_layers
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers
from zerocon_pack.zerocon_core.methods.guidance import GuidanceWeights
from zerocon_pack.zerocon_core.methods.inversion import NoiseRegularization

SOURCE, EDITED, NEGATIVE = conditioning(1), conditioning(2), conditioning(3)
EULER = comfy.samplers.sampler_object("euler")
OFF = GuidanceWeights(0, 0)


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def hooked(model):
    return hook_layers(model, HookedLayers(frozenset(), frozenset(transformer_layers(model.model.diffusion_model))))


def sample(model, inverted, sigmas, edited=SOURCE, weights=OFF, cfg=1.0, align=True, first=0):
    noise, path = inverted
    guider = ZeroConGuider(model, path, weights, 0.0, 1.0, 0, align=align)
    guider.inner_set_conds({"positive": edited, "negative": NEGATIVE, "source": SOURCE})
    guider.set_cfg(cfg)
    start = model.model.process_latent_out(path.latents[first]) if first else noise
    return guider.sample(torch.zeros_like(start), start, EULER, sigmas[first:], disable_pbar=True)


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("family", ["SD1.x", "SD2.x"])
def test_the_source_comes_back_exactly(family, steps):
    model, passes = counted(tiny_unet(family=family))
    latent, sigmas = randn(1, 4, 8, 12), default_sigmas(model, steps)
    inverted = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    passes.clear()
    assert relative_error(sample(model, inverted, sigmas), latent) < 1e-5
    assert passes == {"no grad": steps}
    assert relative_error(sample(model, inverted, sigmas, align=False), latent) > 1e-3


def test_from_any_level_on_and_after_refinements():
    model = tiny_unet()
    latent, sigmas = randn(2, 4, 8, 8), default_sigmas(model, 6)
    inverted = invert(model, latent, SOURCE, sigmas, None, 2, 0)
    assert relative_error(sample(model, inverted, sigmas, first=3), latent) < 1e-5


def test_guidance_has_nothing_to_move_where_source_and_edit_are_one():
    """Both sides are asked at the same place, so the losses are 0 all the way and the source comes back."""
    model = hooked(tiny_unet())
    latent, sigmas = randn(1, 4, 8, 8), default_sigmas(model, 4)
    inverted = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    guided = GuidanceWeights(3.0, 0)
    assert relative_error(sample(model, inverted, sigmas, weights=guided), latent) < 1e-4
    edit = sample(model, inverted, sigmas, EDITED, guided, cfg=5.0)
    assert relative_error(edit, sample(model, inverted, sigmas, EDITED, cfg=5.0)) > 1e-3


def refused(said, model, inverted, sigmas):
    with pytest.raises(ValueError, match=f"^PatchNCE Guidance: .*{said}"):
        sample(model, inverted, sigmas)


def test_what_cannot_be_retraced_is_refused():
    model = tiny_unet()
    latent, sigmas = randn(1, 4, 8, 8), default_sigmas(model, 4)
    bent = invert(model, latent, SOURCE, sigmas, NoiseRegularization(), 0, 0)
    refused("regularised.*lambda_ac and lambda_kl", model, bent, sigmas)
    straight = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    refused("leaves out noise levels", model, straight, sigmas[[0, 2, 3, 4]])
    other = invert(model, randn(1, 4, 8, 8, seed=9), SOURCE, sigmas, None, 0, 0)
    refused("not the inverted one", model, (straight[0], other[1]), sigmas)
    refused("no latent at sigma", model, straight, default_sigmas(model, 3))
