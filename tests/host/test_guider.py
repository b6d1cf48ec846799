"""The guided step inside the host's own sampling."""

import math

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_base import ModelType
from tiny import FAMILIES, conditioning, counted, randn, relative_error, tensor_bytes, tiny_unet
from zerocon_pack.bridge.loops.guidance import ZeroConGuider
from zerocon_pack.bridge.loops.inversion import default_sigmas, invert
from zerocon_pack.bridge.model.attention import hook_layers
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers
from zerocon_pack.zerocon_core.methods.guidance import GuidanceWeights
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE

SOURCE, EDITED, NEGATIVE = conditioning(1), conditioning(2), conditioning(3)
EULER = comfy.samplers.sampler_object("euler")


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def hooked(model):
    layers = transformer_layers(model.model.diffusion_model)
    decoder = frozenset(layer for layer in layers if layer.block == "output")
    return hook_layers(model, HookedLayers(decoder, frozenset(layers)))


def edit(model, latent, weights, steps=3, cfg=5.0, seed=0, callback=None, start=0.0, end=1.0, **trajectory):
    sigmas = default_sigmas(model, steps)
    noise, path = trajectory.get("inverted") or invert(model, latent, SOURCE, sigmas, None, 0, 0)
    guider = ZeroConGuider(model, path, weights, start, end, seed)
    guider.inner_set_conds({"positive": EDITED, "negative": NEGATIVE, "source": SOURCE})
    guider.set_cfg(cfg)
    return guider.sample(torch.zeros_like(noise), noise, EULER, sigmas, callback=callback, disable_pbar=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_weights_it_is_the_stock_guider_bit_for_bit(family):
    model = tiny_unet(family=family)
    latent = randn(2, 4, 16, 12)
    sigmas = default_sigmas(model, 3)
    noise, _ = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    stock = comfy.samplers.CFGGuider(model)
    stock.set_conds(EDITED, NEGATIVE)
    stock.set_cfg(5.0)
    expected = stock.sample(torch.zeros_like(noise), noise, EULER, sigmas, disable_pbar=True)
    assert torch.equal(edit(hooked(model), latent, GuidanceWeights(0, 0)), expected)


def test_hooks_change_nothing_elsewhere():
    model = tiny_unet()

    def sample(model):
        sigmas = default_sigmas(model, 3)
        return comfy.samplers.sample(
            model, randn(1, 4, 8, 8, seed=4), EDITED, NEGATIVE, 5.0, torch.device("cpu"), EULER, sigmas,
            latent_image=torch.zeros(1, 4, 8, 8), disable_pbar=True,
        )  # fmt: skip

    assert torch.equal(sample(hooked(model)), sample(model))


def float64_step(family, latent, x, sigma, sigma_next, timestep, lambda_xa, cfg):
    """pix2pix-zero's step as its paper writes it: x_t in variance-preserving form, float64, plain autograd.

    L_xa = sum over attn2 layers of the mean over the heads of both branches of sum_pixels,tokens (M - M_ref)^2, as the published
    code has it; x_t <- x_t - lambda grad L_xa of the conditional branch; eps at the new x_t under CFG; DDIM step. `latent` is the
    reference at this noise level.
    """
    unet = tiny_unet(family=family).model.diffusion_model.double()
    unet.dtype = torch.float64
    predicts_v = FAMILIES[family][1] == ModelType.V_PREDICTION
    alpha, alpha_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    maps = []

    def read(module, args, kwargs):
        q = module.to_q(args[0]).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        k = module.to_k(kwargs["context"]).unflatten(-1, (module.heads, -1)).transpose(1, 2)
        maps.append((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1))

    attn2 = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    handles = [module.register_forward_pre_hook(read, with_kwargs=True) for module in attn2]

    def eps(x_t, condition):
        maps.clear()
        out = unet(x_t, timestep.double(), context=condition[0][0].double())
        return (1 - alpha).sqrt() * x_t + alpha.sqrt() * out if predicts_v else out

    with torch.enable_grad():
        eps(latent.double() * alpha.sqrt(), SOURCE)
        reference = [m.detach() for m in maps]
        x_t = (x.double() * alpha.sqrt()).requires_grad_(True)
        eps(x_t, EDITED)
        loss = sum(
            (m[:, head] - r[:, head]).square().sum() / (2 * m.shape[1])
            for m, r in zip(maps, reference, strict=True)
            for head in range(m.shape[1])
        )
        (gradient,) = torch.autograd.grad(loss, x_t)
    x_t = x_t.detach() - lambda_xa * gradient
    conditional, unconditional = eps(x_t, EDITED), eps(x_t, NEGATIVE)
    for handle in handles:
        handle.remove()
    noise = unconditional + cfg * (conditional - unconditional)
    z = (x_t - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    return (alpha_next.sqrt() * z + (1 - alpha_next).sqrt() * noise) / alpha_next.sqrt()


@pytest.mark.parametrize("family", ["SD1.x", "SD2.x"])
@torch.inference_mode(False)
def test_cross_attention_step_agrees_with_a_float64_transcription(family):
    model = tiny_unet(family=family)
    levels = default_sigmas(model, 8)[3:6]
    scale = model.model.latent_format.scale_factor
    _, path = invert(model, randn(1, 4, 16, 12), SOURCE, levels, None, 0, 0)
    # The lower half of the way, where the sampler holds an edit and no longer what was inverted.
    sigmas, source = levels[1:], path.latents[1]
    start = source / scale + 0.05 * randn(1, 4, 16, 12, seed=6)
    with torch.inference_mode():
        guider = ZeroConGuider(hooked(model), path, GuidanceWeights(lambda_xa=3.0, lambda_cut=0), 0, 1, 0)
        guider.inner_set_conds({"positive": EDITED, "negative": NEGATIVE, "source": SOURCE})
        guider.set_cfg(5.0)
        result = guider.sample(torch.zeros_like(start), start, EULER, sigmas, disable_pbar=True)

    timestep = model.get_model_object("model_sampling").timestep(sigmas[:1])
    sigma, sigma_next = sigmas.double()

    def step(lambda_xa):
        return float64_step(family, source, start * scale, sigma, sigma_next, timestep, lambda_xa, 5.0) / scale

    expected = step(3.0)
    assert relative_error(step(0.0), expected) > 1e-3, "the guidance must matter"
    assert relative_error(result, expected) < 1e-4


@pytest.mark.parametrize("weights", [GuidanceWeights(0.1, 0), GuidanceWeights(0.1, 1.0), GuidanceWeights(0, 0.1, relative=False)])
@pytest.mark.parametrize("family", FAMILIES)
def test_passes_of_a_guided_step(weights, family):
    model, passes = counted(hooked(tiny_unet(family=family)))
    steps = 4
    inverted = invert(model, randn(1, 4, 8, 8), SOURCE, default_sigmas(model, steps), None, 0, 0)
    assert passes == {"no grad": steps}
    passes.clear()
    edit(model, None, weights, steps, inverted=inverted)
    assert passes == {"no grad": steps * (1 + 2), "grad": steps}


def test_window_limits_the_guidance():
    model, passes = counted(hooked(tiny_unet()))
    edit(model, randn(1, 4, 8, 8), GuidanceWeights(0.1, 0), steps=10, start=0.0, end=0.5)
    assert 0 < passes["grad"] < 10


@pytest.mark.parametrize("weights", [GuidanceWeights(0.5, 1.0), GuidanceWeights(0.5, 0.01, relative=False)], ids=["rel", "abs"])
def test_a_run_in_two_halves_is_the_whole_run(weights):
    """SplitSigmas, two samplers: the relative weight of the lower half is that of the upper."""
    model, latent = hooked(tiny_unet()), randn(2, 4, 8, 8)
    sigmas = default_sigmas(model, 4)
    inverted = invert(model, latent, SOURCE, sigmas, None, 0, 0)

    def run(start, levels):
        guider = ZeroConGuider(model, inverted[1], weights, 0.0, 1.0, 0)
        guider.inner_set_conds({"positive": EDITED, "negative": NEGATIVE, "source": SOURCE})
        guider.set_cfg(5.0)
        return guider.sample(torch.zeros_like(start), start, EULER, levels, disable_pbar=True)

    whole = run(inverted[0], sigmas)
    assert relative_error(run(run(inverted[0], sigmas[:3]), sigmas[2:]), whole) < 1e-4


def test_a_run_that_starts_at_the_source_further_down_measures_there():
    model, latent = hooked(tiny_unet()), randn(1, 4, 8, 8)
    model, passes = counted(model)
    sigmas = default_sigmas(model, 4)
    _, path = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    passes.clear()
    guider = ZeroConGuider(model, path, GuidanceWeights(0.5, 1.0), 0.0, 1.0, 0)
    guider.inner_set_conds({"positive": EDITED, "negative": NEGATIVE, "source": SOURCE})
    start = model.model.process_latent_out(path.latents[2])
    guider.sample(torch.zeros_like(start), start, EULER, sigmas[2:], disable_pbar=True)
    assert passes["grad"] == 2


def test_memory_does_not_grow_with_steps():
    measured = []
    edit(
        hooked(tiny_unet()),
        randn(1, 4, 16, 16),
        GuidanceWeights(0.1, 1.0),
        8,
        callback=lambda *a: measured.append(tensor_bytes()),
    )
    assert max(measured[2:]) <= measured[1] * 1.01


def test_same_seed_same_bits_and_another_seed_other_patches():
    model, latent = hooked(tiny_unet()), randn(1, 4, 16, 16)
    weights = GuidanceWeights(0.1, 3.0, patchnce=PatchNCE(patches=8))
    first = edit(model, latent, weights, seed=1)
    assert torch.equal(first, edit(model, latent, weights, seed=1))
    assert not torch.equal(first, edit(model, latent, weights, seed=2))


@pytest.mark.parametrize("shape", [(13, 10), (8, 24)])
def test_a_batch_is_its_samples_at_odd_sizes(shape):
    model, latents = hooked(tiny_unet()), randn(2, 4, *shape)
    weights = GuidanceWeights(0.5, 1.0)
    both = edit(model, latents, weights)
    for i in range(2):
        assert relative_error(both[i : i + 1], edit(model, latents[i : i + 1], weights)) < 1e-4


@pytest.mark.parametrize("failure", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_a_stopped_run_leaves_the_model_as_it_was(failure):
    model, latent = hooked(tiny_unet()), randn(1, 4, 8, 8)
    weights = GuidanceWeights(0.1, 1.0)
    before = edit(model, latent, weights)
    options = repr(model.model_options)

    def stop(step, *_):
        if step == 1:
            raise failure()

    with pytest.raises(failure):
        edit(model, latent, weights, callback=stop)
    assert repr(model.model_options) == options
    assert not any("forward" in module.__dict__ for module in model.model.modules())
    assert torch.equal(edit(model, latent, weights), before)


def test_conditionings_of_several_areas():
    """Entries run in any order and grouping; each is compared with its counterpart."""
    area = lambda seed, x: [[conditioning(seed)[0][0], {"area": (16, 8, 0, x), "strength": 1.0}]]
    model, latent = hooked(tiny_unet()), randn(1, 4, 16, 16)
    sigmas = default_sigmas(model, 3)
    noise, path = invert(model, latent, SOURCE, sigmas, None, 0, 0)

    def run(positive, source):
        guider = ZeroConGuider(model, path, GuidanceWeights(0.5, 0), 0, 1, 0)
        guider.inner_set_conds({"positive": positive, "negative": NEGATIVE, "source": source})
        guider.set_cfg(3.0)
        return guider.sample(torch.zeros_like(noise), noise, EULER, sigmas, disable_pbar=True)

    left, right = area(1, 0), area(2, 8)
    assert relative_error(run(right + left, right + left), run(left + right, left + right)) < 1e-5


def test_memory_is_reserved_for_the_backward_pass(monkeypatch):
    asked = []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda *a, **k: (asked.append(k["memory_required"]), load(*a, **k))
    )
    model, latent = hooked(tiny_unet()), randn(1, 4, 8, 8)
    edit(model, latent, GuidanceWeights(0, 0))
    plain = asked[-1]
    edit(model, latent, GuidanceWeights(0.1, 0))
    assert asked[-1] == pytest.approx(12 * plain)


def test_a_gradient_that_is_not_finite_is_refused():
    model = hooked(tiny_unet())
    noise, path = invert(model, randn(1, 4, 8, 8), SOURCE, default_sigmas(model, 3), None, 0, 0)
    path.latents[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="^PatchNCE Guidance: .*not finite at sigma"):
        edit(model, None, GuidanceWeights(0.1, 0), inverted=(noise, path))
