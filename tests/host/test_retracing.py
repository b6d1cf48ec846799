"""Sampling that walks an inversion back with its residuals."""

import comfy.samplers
import pytest
import torch
from tiny import FAMILIES, conditioning, counted, randn, relative_error, tiny_unet
from zerocon_pack.bridge import toyworld
from zerocon_pack.bridge.loops.guidance import ZeroConGuider
from zerocon_pack.bridge.loops.inversion import default_sigmas, invert
from zerocon_pack.bridge.model.attention import hook_layers
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers
from zerocon_pack.zerocon_core.methods.guidance import GuidanceWeights
from zerocon_pack.zerocon_core.methods.inversion import NoiseRegularization
from zerocon_pack.zerocon_core.toyworld import scene

SOURCE = conditioning(1)
EULER = comfy.samplers.sampler_object("euler")
OFF = GuidanceWeights(0, 0)


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def hooked(model):
    return hook_layers(model, HookedLayers(frozenset(), frozenset(transformer_layers(model.model.diffusion_model))))


def sample(model, inverted, sigmas, edited=SOURCE, weights=OFF, cfg=1.0, align=True, first=0, source=None):
    noise, path = inverted
    guider = ZeroConGuider(model, path, weights, 0.0, 1.0, 0, align=align)
    guider.inner_set_conds({"positive": edited, "negative": source or edited, "source": source or edited})
    guider.set_cfg(cfg)
    start = model.model.process_latent_out(path.latents[first]) if first else noise
    return guider.sample(torch.zeros_like(start), start, EULER, sigmas[first:], disable_pbar=True)


@pytest.fixture(scope="module")
def toy():
    """A trained model, a picture as its latent, and prompts. (A random one multiplies rounding errors from step to step.)"""
    with torch.inference_mode():
        model, clip, vae = toyworld.load_toy_world()
        encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))
        pictures = torch.stack([torch.from_numpy(scene.render(s)) for s in scene.held_out_scenes(2)])
        return model, vae.encode(pictures), encode("a red circle"), encode("a blue circle")


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
def test_the_source_comes_back_exactly(toy, steps):
    model, latent, source, _ = toy
    sigmas = default_sigmas(model, steps)
    inverted = invert(model, latent, source, sigmas, None, 0, 0)
    assert relative_error(sample(model, inverted, sigmas, source), latent) < 1e-5
    assert relative_error(sample(model, inverted, sigmas, source, align=False), latent) > 1e-2


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_so_it_does_with_v(steps):
    model, passes = counted(tiny_unet(family="SD2.x"))
    latent, sigmas = randn(1, 4, 8, 12), default_sigmas(model, steps)
    inverted = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    passes.clear()
    assert relative_error(sample(model, inverted, sigmas), latent) < 1e-5
    assert passes == {"no grad": steps}
    assert relative_error(sample(model, inverted, sigmas, align=False), latent) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_ends_where_the_inversion_began_it(family):
    model = tiny_unet(family=family)
    latent, sigmas = randn(1, 4, 8, 12), default_sigmas(model, 5)
    inverted = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    path = inverted[1]
    for i in range(5):
        result = model.model.process_latent_in(sample(model, inverted, sigmas[: i + 2], first=i))
        assert (result - path.latents[i + 1]).norm() < 1e-5 * path.latents[i].norm()


def test_from_any_level_on_and_after_refinements(toy):
    model, latent, source, _ = toy
    sigmas = default_sigmas(model, 6)
    inverted = invert(model, latent, source, sigmas, None, 2, 0)
    assert relative_error(sample(model, inverted, sigmas, source, first=3), latent) < 1e-5


def test_guidance_has_nothing_to_move_where_source_and_edit_are_one(toy):
    """Both sides are asked at the same place, so the losses are 0 all the way and the source comes back."""
    model, latent, source, edited = toy
    model, sigmas = hooked(model), default_sigmas(model, 5)
    inverted = invert(model, latent, source, sigmas, None, 0, 0)
    guided = GuidanceWeights(0.1, 0)
    assert relative_error(sample(model, inverted, sigmas, source, guided), latent) < 1e-4
    edit = sample(model, inverted, sigmas, edited, guided, 5.0, source=source)
    assert relative_error(edit, sample(model, inverted, sigmas, edited, cfg=5.0)) > 1e-3


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
