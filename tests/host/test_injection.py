"""Attention injection inside the host's own sampling, against the published code's hooks on the same U-Net in float64."""

import math
from functools import partial

import comfy.model_management
import comfy.ops
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from prompt_to_prompt import blend_mask, refinement_mapper
from tiny import FAMILIES, conditioning, counted, fingerprint, randn, relative_error, tensor_bytes, tiny_unet
from zerocon_pack.bridge import toyworld
from zerocon_pack.bridge.loops.injection import BlendWords, InjectionGuider
from zerocon_pack.bridge.loops.inversion import default_sigmas, invert
from zerocon_pack.bridge.model.injection import injected_layers
from zerocon_pack.zerocon_core.language.tokens import Token
from zerocon_pack.zerocon_core.methods.injection import MasaCtrl, PlugAndPlay, PromptToPrompt, WordEdit
from zerocon_pack.zerocon_core.toyworld import scene

SOURCE, EDITED, NEGATIVE = conditioning(1), conditioning(2), conditioning(3)
EULER = comfy.samplers.sampler_object("euler")
CFG = 4.0
BEFORE, AFTER = "a red cat on a mat", "a fluffy red dog on a mat"
REFINED = WordEdit.refine(77, *([Token(i, w) for i, w in enumerate(text.split(), 1)] for text in (BEFORE, AFTER)), {2: 2.5})
NEVER = {"P2P": PromptToPrompt(0, 0), "PnP": PlugAndPlay(0, 0), "MasaCtrl": MasaCtrl(1)}
ALWAYS = {"P2P": PromptToPrompt(1, 1), "PnP": PlugAndPlay(1, 1), "MasaCtrl": MasaCtrl(0)}


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def guider_for(model, path, method, edited=EDITED, cfg=CFG, **options):
    words = options.pop("words", REFINED if isinstance(method, PromptToPrompt) else None)
    guider = InjectionGuider(model, path, method, words, **options)
    guider.inner_set_conds({"positive": edited, "negative": NEGATIVE, "source": SOURCE})
    guider.set_cfg(cfg)
    return guider


def edit(model, latent, method, steps=3, callback=None, **options):
    sigmas = default_sigmas(model, steps)
    noise, path = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    guider = guider_for(model, path, method, **options)
    return guider.sample(torch.zeros_like(noise), noise, EULER, sigmas, callback=callback, disable_pbar=True)


class Published:
    """The published code's hooks on a U-Net whose batch is [source, negative, edited]. Attributes say what is on."""

    def __init__(self, unet):
        self.limit = 0
        self.maps = self.words = self.content = self.features = False
        self.layers = ()
        self.seen = {}
        for name, module in unet.named_modules():
            if name.endswith(("attn1", "attn2")):
                module.forward = partial(self.attention, name, module)
        unet.output_blocks[1][0].out_layers[3].register_forward_hook(self.convolution)

    def attention(self, name, module, x, context=None, value=None, mask=None, transformer_options=None):
        context = x if context is None else context
        q, k, v = (
            layer(t).unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for layer, t in ((module.to_q, x), (module.to_k, context), (module.to_v, context))
        )
        is_cross, here = name.endswith("attn2"), name.startswith(self.layers)
        if not is_cross and here and self.content:  # MasaCtrl
            k[1:], v[1:] = k[:1].clone(), v[:1].clone()
        if not is_cross and here and self.maps and self.negative:  # Plug-and-Play
            q[1:], k[1:] = q[:1].clone(), k[:1].clone()
        attn = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        if is_cross and self.words:  # Prompt-to-Prompt
            mapper, alphas = refinement_mapper(["<", *BEFORE.split(), ">"], ["<", *AFTER.split(), ">"])
            equalizer = torch.ones(77, dtype=attn.dtype)
            equalizer[2] = 2.5
            base, replaced = attn[0], attn[2]
            attn[2] = (base[:, :, mapper] * alphas + replaced * (1 - alphas)) * equalizer
        if not is_cross and self.maps and not self.negative and attn.shape[2] <= self.limit:
            attn[2] = attn[0]
        if is_cross and attn.shape[2] == self.limit and not name.startswith("middle"):
            kept = attn[[0, 2]]
            self.seen[name] = self.seen.get(name, 0) + kept
        return module.to_out((attn @ v).transpose(1, 2).flatten(2))

    def convolution(self, module, args, output):
        if self.features:
            output = output.clone()
            output[1:] = output[:1]
        return output


LAYERS = {"PnP": ("output_blocks.1", "output_blocks.2", "output_blocks.3"), "MasaCtrl": ("output_blocks.2", "output_blocks.3")}


def transcription(family, name, sources, x, sigmas, timesteps, windows, blended=None):
    """What the published hooks make of x (1, C, H, W) in the model's latent space: the latent after each step, in float64."""
    model = tiny_unet(family=family).model
    unet = model.diffusion_model.double()
    unet.dtype = torch.float64
    height, width = x.shape[-2:]
    code = Published(unet)
    code.limit = height * width // 4
    code.negative, code.layers = name == "PnP", LAYERS.get(name, ())
    context = torch.cat([c[0][0] for c in (SOURCE, NEGATIVE, EDITED)]).double()
    pooled = torch.cat([c[0][1]["pooled_output"] for c in (SOURCE, NEGATIVE, EDITED)])
    y = model.encode_adm(pooled_output=pooled, width=width * 8, height=height * 8) if family == "SDXL" else None
    predicts_v = FAMILIES[family][1] == ModelType.V_PREDICTION
    results, x = [], x.double()
    for step, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].double(), sigmas[1:].double(), strict=True)):
        for what, (first, last) in windows.items():
            setattr(code, what, first <= step < last)
        alpha, alpha_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
        x_t = torch.cat([sources[step].double(), x, x]) * alpha.sqrt()
        out = unet(x_t, timesteps[step].double().repeat(3), context=context, y=None if y is None else y.double())
        eps = (1 - alpha).sqrt() * x_t + alpha.sqrt() * out if predicts_v else out
        noise = eps[1:2] + CFG * (eps[2:] - eps[1:2])
        z = (x_t[1:2] - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        x = (alpha_next.sqrt() * z + (1 - alpha_next).sqrt() * noise) / alpha_next.sqrt()
        if blended is not None:
            maps = torch.cat([seen.unflatten(2, (height // 2, width // 2)) for seen in code.seen.values()], 1).unsqueeze(2)
            alpha_layers = torch.zeros(2, 1, 1, 1, 1, 77, dtype=torch.float64)
            for side, places in enumerate(blended.values()):
                alpha_layers[side, ..., places] = 1
            mask = blend_mask(maps, alpha_layers, (height, width), 0.9)
            x = sources[step + 1].double() + mask * (x - sources[step + 1].double())
        results.append(x)
    return results


CASES = {
    "P2P": (PromptToPrompt(2 / 3, 1 / 3), dict(words=(0, 2), maps=(0, 1)), None),
    "P2P, blended": (PromptToPrompt(2 / 3, 1 / 3), dict(words=(0, 2), maps=(0, 1)), {"source": [3], "positive": [2, 4]}),
    "PnP": (PlugAndPlay(1 / 3, 2 / 3), dict(maps=(0, 1), features=(0, 2)), None),
    "MasaCtrl": (MasaCtrl(1 / 3), dict(content=(1, 3)), None),
}
PAIRS = [(family, case) for family in FAMILIES for case in CASES if not (family == "SDXL" and case == "MasaCtrl")]


@pytest.mark.parametrize("family, case", PAIRS)
@torch.inference_mode(False)
def test_every_step_is_that_of_the_published_code(family, case):
    method, windows, places = CASES[case]
    model = tiny_unet(family=family)
    levels = default_sigmas(model, 8)[2:6]
    with torch.inference_mode():
        noise, path = invert(model, randn(1, 4, 16, 12), SOURCE, levels, None, 0, 0)
        blend = None if places is None else BlendWords(places, 0.9)
        seen = []
        guider = guider_for(model, path, method, blend=blend)
        result = guider.sample(
            torch.zeros_like(noise),
            noise,
            EULER,
            levels,
            callback=lambda i, denoised, x, n: seen.append(x.clone()),
            disable_pbar=True,
        )
    seen = [*seen[1:], model.model.process_latent_in(result)]
    timesteps = model.get_model_object("model_sampling").timestep(levels)
    name = case.split(",")[0]
    expected = transcription(family, name, path.latents, path.latents[0], levels, timesteps, windows, places)
    without = transcription(family, name, path.latents, path.latents[0], levels, timesteps, windows if places else {})
    assert relative_error(without[-1], expected[-1]) > 1e-3, "the injection, or the blend, must matter"
    assert max(relative_error(mine, theirs) for mine, theirs in zip(seen, expected, strict=True)) < 1e-5


@pytest.mark.parametrize("name", NEVER)
def test_without_a_window_it_is_the_stock_guider_bit_for_bit(name):
    model, passes = counted(tiny_unet())
    latent, sigmas = randn(1, 4, 16, 12), default_sigmas(model, 3)
    noise, path = invert(model, latent, SOURCE, sigmas, None, 0, 0)
    stock = comfy.samplers.CFGGuider(model)
    stock.set_conds(EDITED, NEGATIVE)
    stock.set_cfg(CFG)
    passes.clear()
    expected = stock.sample(torch.zeros_like(noise), noise, EULER, sigmas, disable_pbar=True)
    guider = guider_for(model, path, NEVER[name])
    assert torch.equal(guider.sample(torch.zeros_like(noise), noise, EULER, sigmas, disable_pbar=True), expected)
    assert passes == {"no grad": 2 * 2 * 3}


def watched(model):
    """A clone, and the sizes of the batches that it runs."""
    batches = []

    def watch(apply, args):
        batches.append(len(args["input"]))
        return apply(args["input"], args["timestep"], **args["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(watch)
    return model, batches


@pytest.mark.parametrize("name", ALWAYS)
def test_a_step_is_one_batch_of_three(name):
    model, passes = counted(tiny_unet())
    model, batches = watched(model)
    edit(model, randn(1, 4, 16, 12), ALWAYS[name])
    assert batches == [1] * 3 + [3] * 3
    assert passes == {"no grad": 3 + 3 * 3}


@pytest.mark.parametrize("name", ALWAYS)
def test_short_of_memory_the_parts_run_one_after_the_other(name, monkeypatch):
    model, latent = tiny_unet(), randn(1, 4, 16, 12)
    blend = BlendWords({"source": [3], "positive": [2, 4]})
    together = edit(model, latent, ALWAYS[name], blend=blend)
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e18)
    model, batches = watched(model)
    assert relative_error(edit(model, latent, ALWAYS[name], blend=blend), together) < 1e-5
    assert batches == [1] * (3 + 3 * 3)


@pytest.fixture(scope="module")
def toy():
    """A trained model, a picture as its latent, and its caption."""
    with torch.inference_mode():
        model, clip, vae = toyworld.load_toy_world()
        caption = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))
        return model, vae.encode(torch.from_numpy(scene.render(scene.held_out_scenes(1)[0]))[None]), caption


@pytest.mark.parametrize("cfg", [1.0, CFG])
@pytest.mark.parametrize("name", ALWAYS)
def test_a_prompt_that_stays_brings_the_source_back(toy, name, cfg):
    model, latent, caption = toy
    sigmas = default_sigmas(model, 8)
    noise, path = invert(model, latent, caption, sigmas, None, 0, 0)
    words = WordEdit.replace(caption[0][0].shape[1]) if name == "P2P" else None
    guider = guider_for(model, path, ALWAYS[name], caption, cfg, words=words, align=True)
    guider.inner_set_conds(dict.fromkeys(("positive", "negative", "source"), caption))
    result = guider.sample(torch.zeros_like(noise), noise, EULER, sigmas, disable_pbar=True)
    assert relative_error(result, latent) < 1e-5


def test_a_mask_brings_the_source_back_outside():
    model, latent = tiny_unet(), randn(1, 4, 16, 12)
    mask = torch.zeros(1, 16, 12)
    mask[:, :, :6] = 1
    result = edit(model, latent, ALWAYS["PnP"], mask=mask)
    assert relative_error(result[..., 6:], latent[..., 6:]) < 1e-5 < relative_error(result[..., :6], latent[..., :6])


@pytest.mark.parametrize("name", ALWAYS)
def test_a_batch_is_its_samples(name):
    model, latents = tiny_unet(), randn(2, 4, 13, 10)
    blend = BlendWords({"source": [3], "positive": [2, 4]})
    both = edit(model, latents, ALWAYS[name], blend=blend)
    for i in range(2):
        assert relative_error(both[i : i + 1], edit(model, latents[i : i + 1], ALWAYS[name], blend=blend)) < 1e-4


def test_memory_does_not_grow_with_steps():
    measured = []
    blend = BlendWords({"source": [3], "positive": [2, 4]})
    edit(tiny_unet(), randn(1, 4, 16, 16), ALWAYS["P2P"], 8, callback=lambda *_: measured.append(tensor_bytes()), blend=blend)
    assert max(measured[2:]) <= measured[1] * 1.01


@pytest.mark.parametrize("failure", [RuntimeError, comfy.model_management.InterruptProcessingException, None])
def test_a_run_leaves_the_model_as_it_was(failure):
    model = tiny_unet()

    def stop(step, *_):
        if failure is not None and step == 1:
            raise failure()

    before = fingerprint(model)
    try:
        edit(model, randn(1, 4, 8, 8), ALWAYS["PnP"], callback=stop)
    except BaseException as error:
        assert failure is not None and isinstance(error, failure)
    assert fingerprint(model) == before
    assert not any(module._forward_hooks for module in model.model.modules())


SD15 = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    transformer_depth_middle=1, context_dim=768, use_spatial_transformer=True, num_heads=8, legacy=False,
)  # fmt: skip
SDXL = SD15 | dict(
    num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], context_dim=2048, num_heads=-1, num_head_channels=64,
)  # fmt: skip


def network(config) -> UNetModel:
    with torch.device("meta"):
        return UNetModel(**config, operations=comfy.ops.disable_weight_init)


def places(layers) -> list[tuple]:
    return sorted({(layer.block, layer.number) for layer in layers})


def test_the_layers_are_the_published_ones():
    sd, sdxl = network(SD15), network(SDXL)
    assert places(injected_layers(sd, PlugAndPlay()).self_attention) == [("output", n) for n in range(4, 12)]
    assert injected_layers(sd, PlugAndPlay()).block == 4
    assert places(injected_layers(sd, MasaCtrl()).self_attention) == [("output", n) for n in range(6, 12)]  # 10 of 16 on
    assert places(injected_layers(sdxl, MasaCtrl()).self_attention) == [("output", n) for n in (3, 4, 5)]  # 64 of 70 on
    assert len(injected_layers(sdxl, MasaCtrl()).self_attention) == 6
    # 16^2 maps and the 8^2 of the middle; words at five 16^2 layers of encoder and decoder.
    coarse = [("input", 7), ("input", 8), ("middle", 0), ("output", 3), ("output", 4), ("output", 5)]
    assert places(injected_layers(sd, PromptToPrompt()).self_attention) == coarse
    assert places(injected_layers(sd, PromptToPrompt()).blended) == [place for place in coarse if place[0] != "middle"]
    assert len(injected_layers(sd, PromptToPrompt()).cross_attention) == 16
