"""The nodes in the host's executor: what they hand on, and what they refuse in one sentence."""

from pathlib import Path

import comfy.latent_formats
import folder_paths
import pytest
import torch
from diffusers import DDIMInverseScheduler
from graphs import changed
from tiny import conditioning, randn, relative_error, tiny_unet
from zerocon_pack.bridge.loops.inversion import default_sigmas


class WordClip:
    """A text encoder with the host's interface: each word has its own fixed embedding; 8 tokens a window."""

    WINDOW = 8

    class tokenizer:
        class clip_l:
            start_token, end_token, pad_token = "<", ">", ">"
            inv_vocab = type("Same", (dict,), {"__missing__": lambda self, word: word + "</w>"})()

    def tokenize(self, text):
        words = text.split()
        step = self.WINDOW - 2
        windows = [words[i : i + step] for i in range(0, len(words), step)] or [[]]
        pad = lambda w: ["<", *w, *[">"] * (self.WINDOW - 1 - len(w))]
        return {"l": [[(word, 1.0) for word in pad(window)] for window in windows]}

    def encode_from_tokens(self, tokens, return_pooled=False):
        rows = [randn(64, seed=sum(map(ord, word)) + 7 * i) for w in tokens["l"] for i, (word, _) in enumerate(w)]
        cond = torch.stack(rows)[None]
        return cond, cond.mean(1)

    def encode_from_tokens_scheduled(self, tokens):
        cond, pooled = self.encode_from_tokens(tokens, True)
        return [[cond, {"pooled_output": pooled, "kept": 1}]]


def graph(**changes) -> dict:
    """The pipeline from latent to edited latent. `changes` are inputs by node, such as invert={"steps": 3}."""
    nodes = {
        "direction": ("ZeroConEditDirection", dict(
            clip=["clip", 0], caption="a red cat on a mat", edit_from="red", edit_to="blue", bank="", strength=1.0)),
        "invert": ("ZeroConDDIMInvert", dict(
            model=["model", 0], image_latent=["latent", 0], conditioning=["direction", 0], steps=2, lambda_ac=0.0,
            lambda_kl=0.0, regularization_steps=5, rolls=5, refinements=0, seed=0)),
        "hooks": ("ZeroConAttentionHookedUNet", dict(
            model=["model", 0], self_attention="decoder", cross_attention="all", max_side=0)),
        "guidance": ("ZeroConPatchNCEGuidance", dict(
            hooked_model=["hooks", 0], source=["direction", 0], edited=["direction", 1], negative=["direction", 0],
            trajectory=["invert", 1], cfg=5.0, lambda_xa=0.1, lambda_cut=1.0, weighting="relative", temperature=0.07,
            patches=256, patch_sizes="1, 2", contrast="cds", start_percent=0.0, end_percent=1.0, seed=0)),
        "noise": ("DisableNoise", {}),
        "sampler": ("KSamplerSelect", dict(sampler_name="euler")),
        "sample": ("SamplerCustomAdvanced", dict(
            noise=["noise", 0], guider=["guidance", 0], sampler=["sampler", 0], sigmas=["invert", 2],
            latent_image=["invert", 0])),
        "result": ("TestCapture", dict(value=["sample", 0])),
    }  # fmt: skip
    for name in ("clip", "model", "latent"):
        nodes[name] = "TestValue", {"key": name}
    return changed(nodes, changes)


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny_unet()


@pytest.fixture
def values(model):
    return {"clip": WordClip(), "model": model, "latent": {"samples": randn(1, 4, 8, 8), "kept": 1}}


def test_the_pipeline_runs_and_reports_progress(run_graph, values):
    run = run_graph(graph(), values)
    assert run.success, run.error
    latent = run.captured["result"]
    assert latent["samples"].shape == (1, 4, 8, 8) and latent["kept"] == 1
    assert torch.isfinite(latent["samples"]).all()
    assert any("progress" in str(event) for event, _ in run.messages)


def test_same_seed_same_bits_after_other_work(run_graph, values):
    changed = dict(guidance={"patches": 5, "seed": 3}, invert={"lambda_ac": 1.0, "seed": 3})
    first = run_graph(graph(**changed), values).captured["result"]["samples"]
    other = run_graph(graph(guidance={"patches": 5, "seed": 4}, invert={"lambda_ac": 1.0, "seed": 4}), values)
    assert not torch.equal(other.captured["result"]["samples"], first)
    torch.manual_seed(99)
    again = run_graph(graph(**changed), values | {"latent": dict(values["latent"])}).captured["result"]["samples"]
    assert torch.equal(again, first)


VALUE = {"class_type": "TestValue"}
REFUSALS = {
    "no hooks": (dict(guidance={"hooked_model": ["model", 0]}), ["Attention Hooked U-Net"]),
    "no cross-attention": (dict(hooks={"cross_attention": "none"}), ["lambda_xa", "cross-attention"]),
    "no self-attention": (dict(hooks={"self_attention": "none"}), ["lambda_cut", "self-attention"]),
    "relative to nothing": (dict(guidance={"lambda_xa": 0.0}), ["weighting", "absolute"]),
    "patch sizes": (dict(guidance={"patch_sizes": "1, x"}), ["patch_sizes", "1, x"]),
    "inverted without a mask": (dict(guidance={"outside": "inverted"}), ["outside", "mask"]),
    "a noise mask on the latent": (
        dict(
            drawn={"class_type": "SolidMask", "value": 1.0, "width": 64, "height": 64},
            masked={"class_type": "SetLatentNoiseMask", "samples": ["invert", 0], "mask": ["drawn", 0]},
            sample={"latent_image": ["masked", 0]},
        ),
        ["noise mask", "connect the mask to PatchNCE Guidance"],
    ),
    "empty caption": (dict(direction={"caption": " "}), ["caption is empty"]),
    "no phrases": (dict(direction={"edit_from": "", "edit_to": ""}), ["from", "to", "empty"]),
    "identical phrases": (dict(direction={"edit_to": "Red"}), ["red", "zero"]),
    "bad bank": (dict(direction={"bank": "a photo"}), ["a photo", "=>"]),
    "wrong sampler": (dict(sampler={"sampler_name": "dpmpp_2m"}), ["KSamplerSelect", "euler"]),
    "flipped schedule": (
        dict(
            flip={"class_type": "FlipSigmas", "sigmas": ["steps", 0]},
            steps={"class_type": "BasicScheduler", "model": ["model", 0], "scheduler": "normal", "steps": 3, "denoise": 1.0},
            invert={"schedule": ["flip", 0]},
        ),
        ["DDIM Invert", "high to low"],
    ),
    "no steps": (
        dict(
            steps={"class_type": "BasicScheduler", "model": ["model", 0], "scheduler": "normal", "steps": 3, "denoise": 0.0},
            invert={"schedule": ["steps", 0]},
        ),
        ["DDIM Invert", "at least 1"],
    ),
    "other schedule": (
        dict(
            steps={"class_type": "BasicScheduler", "model": ["model", 0], "scheduler": "karras", "steps": 7, "denoise": 1.0},
            sample={"sigmas": ["steps", 0]},
        ),
        ["sigmas output", "DDIM Invert"],
    ),
    "other latent": (
        dict(
            other={"class_type": "EmptyLatentImage", "width": 128, "height": 64, "batch_size": 1},
            sample={"latent_image": ["other", 0]},
        ),
        ["latent", "trajectory", "DDIM Invert"],
    ),
    "a latent of another VAE": (
        dict(invert={"image_latent": ["sixteen", 0]}, sixteen=VALUE | {"key": "sixteen"}),
        ["16 channels", "own VAE"],
    ),
    "a latent of one position": (dict(invert={"image_latent": ["point", 0]}, point=VALUE | {"key": "point"}), ["2x2"]),
    "a prompt of another model": (
        dict(invert={"conditioning": ["wide", 0]}, wide=VALUE | {"key": "wide"}),
        ["width 96", "64", "CLIP of this model"],
    ),
    "a batch of prompts": (
        dict(invert={"conditioning": ["three", 0]}, three=VALUE | {"key": "three"}),
        ["batch of 3", "one for each"],
    ),
    "a number that is none": (dict(guidance={"cfg": float("nan")}), ["cfg is nan", "finite"]),
    "more patch sizes than anyone wants": (dict(guidance={"patch_sizes": "1 " * 9 + "2 3 4 5 6 7 8 9 10"}), ["patch_sizes", "8"]),
    "a power of two": (dict(guidance={"patch_sizes": "1, ²"}), ["patch_sizes", "²"]),
    "noise on top": (
        dict(noise={"class_type": "RandomNoise", "noise_seed": 1}),
        ["PatchNCE Guidance", "DisableNoise"],
    ),
    "the image in place of its inversion": (dict(sample={"latent_image": ["latent", 0]}), ["PatchNCE Guidance", "noise_latent"]),
    "a prompt for later steps": (
        dict(
            late={"class_type": "ConditioningSetTimestepRange", "conditioning": ["direction", 0], "start": 0.3, "end": 1.0},
            invert={"conditioning": ["late", 0]},
        ),
        ["DDIM Invert", "100% of the image", "timestep range"],
    ),
    "a prompt for half the image": (
        dict(
            half={
                "class_type": "ConditioningSetAreaPercentage",
                "conditioning": ["direction", 0],
                "width": 0.5,
                "height": 1.0,
                "x": 0.0,
                "y": 0.0,
                "strength": 1.0,
            },
            invert={"conditioning": ["half", 0]},
        ),
        ["DDIM Invert", "50% of the image"],
    ),
    "other text encoder": (
        dict(guidance={"edited": ["short", 0]}, short={"class_type": "TestValue", "key": "short"}),
        ["tokens", "one Edit Direction"],
    ),
}


@pytest.mark.parametrize("changes, said", REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_are_one_sentence_and_the_next_run_works(run_graph, values, changes, said):
    values |= {
        "short": conditioning(1, tokens=5), "wide": [[randn(1, 8, 96), {}]], "three": [[randn(3, 8, 64), {}]],
        "sixteen": {"samples": randn(1, 16, 8, 8)}, "point": {"samples": randn(1, 4, 1, 1)},
    }  # fmt: skip
    run = run_graph(graph(**{name: dict(inputs) for name, inputs in changes.items()}), values)
    assert not run.success
    assert all(words in run.error for words in said), run.error
    assert "\n" not in run.error.strip() and not run.error.strip().endswith("."), run.error
    assert run_graph(graph(), values).success


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 8, 50, 501])
def test_steps_are_as_many_and_start_from_noise(model, steps):
    sigmas = default_sigmas(model, steps)
    assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all()
    assert float(sigmas[0]) == pytest.approx(float(model.get_model_object("model_sampling").sigma_max)) and sigmas[-1] == 0


@pytest.mark.parametrize("node", ["PerturbedAttentionGuidance", "APG", "PerpNeg", "SelfAttentionGuidance"])
def test_inversion_asks_the_prompt_alone_whatever_guidance_the_model_carries(run_graph, values, node):
    inputs = {
        "PerturbedAttentionGuidance": {"scale": 3.0},
        "APG": {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.5},
        "PerpNeg": {"empty_conditioning": ["direction", 1], "neg_scale": 1.0},
        "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    }[node]
    plain = run_graph(graph(result={"value": ["invert", 0]}), values).captured["result"]["samples"]
    patched = graph(
        result={"value": ["invert", 0]},
        invert={"model": ["patched", 0]},
        patched={"class_type": node, "model": ["model", 0]} | inputs,
    )
    run = run_graph(patched, values)
    assert run.success, run.error
    assert torch.equal(run.captured["result"]["samples"], plain)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite(run_graph, values, bad):
    values["latent"]["samples"][0, 0, 0, 0] = bad
    run = run_graph(graph(), values)
    assert not run.success and "DDIM Invert" in run.error and "NaN" in run.error


def test_a_model_that_is_no_unet(run_graph, values):
    class Transformer(torch.nn.Module):
        pass

    class Patcher:
        model = Transformer()
        get_model_object = lambda self, name: comfy.latent_formats.SD15() if name == "latent_format" else Transformer()

    nodes = {name: node for name, node in graph(result={"value": ["hooks", 0]}).items() if name in ("model", "hooks", "result")}
    run = run_graph(nodes, values | {"model": Patcher()})
    assert not run.success and "SD1.x" in run.error


def test_directions_keep_options_and_are_what_the_sentences_say(run_graph, values):
    nodes = graph(direction={"bank": "a photo of {}", "strength": 0.5})
    nodes = {name: nodes[name] for name in ("clip", "direction")}
    for i in range(3):
        nodes[f"out{i}"] = {"class_type": "TestCapture", "inputs": {"value": ["direction", i]}}
    run = run_graph(nodes, values)
    assert run.success, run.error
    source, edited, direction = (run.captured[f"out{i}"] for i in range(3))
    clip = WordClip()
    encode = lambda text: clip.encode_from_tokens(clip.tokenize(text))[0]
    expected = encode("a photo of blue") - encode("a photo of red")
    assert relative_error(direction.tokens, expected) < 1e-6
    assert torch.equal(source[0][0], encode("a red cat on a mat"))
    assert relative_error(edited[0][0], source[0][0] + 0.5 * expected) < 1e-6
    assert edited[0][1]["kept"] == 1
    assert relative_error(edited[0][1]["pooled_output"], source[0][1]["pooled_output"] + 0.5 * expected.mean(1)) < 1e-5


def test_long_captions_work_and_long_sentences_say_what_was_cut(run_graph, values, caplog):
    caption = "a red cat on a mat beside the very old wooden door"
    run = run_graph(graph(direction={"caption": caption, "edit_from": "", "edit_to": "a blue cat"}), values)
    assert run.success, run.error
    assert any("the very old wooden door" in record.getMessage() for record in caplog.records)


def test_a_direction_survives_saving_and_loading(run_graph, values):
    nodes = graph()
    nodes = {name: nodes[name] for name in ("clip", "direction")}
    nodes["save"] = {
        "class_type": "ZeroConSaveEditDirection",
        "inputs": {"direction": ["direction", 2], "filename_prefix": "directions/test"},
    }
    nodes["out"] = {"class_type": "TestCapture", "inputs": {"value": ["direction", 2]}}
    saved = run_graph(nodes, values)
    assert saved.success, saved.error
    name = saved.outputs["save"]["text"][0].split("/")[-1] + " [output]"
    load = {"class_type": "ZeroConLoadEditDirection", "inputs": {"name": name}}
    loaded = run_graph({"load": load, "out": {"class_type": "TestCapture", "inputs": {"value": ["load", 0]}}}, values)
    assert loaded.success, loaded.error
    assert torch.equal(loaded.captured["out"].tokens, saved.captured["out"].tokens)
    assert torch.equal(loaded.captured["out"].pooled, saved.captured["out"].pooled)


def test_a_damaged_direction_says_so(run_graph, values):
    folder = Path(folder_paths.get_output_directory()) / "directions"
    folder.mkdir(exist_ok=True)
    (folder / "damaged.safetensors").write_bytes(b"not safetensors")
    load = {"class_type": "ZeroConLoadEditDirection", "inputs": {"name": "damaged.safetensors [output]"}}
    run = run_graph({"load": load, "out": {"class_type": "TestCapture", "inputs": {"value": ["load", 0]}}}, values)
    assert not run.success and "damaged" in run.error and "save it again" in run.error


@pytest.mark.parametrize("family", ["SD1.x", "SD2.x"])
def test_inversion_agrees_with_diffusers_driving_the_same_network(run_graph, values, family):
    """diffusers' inverse DDIM scheduler in variance-preserving form, float64, on the same U-Net.

    The network is asked at the noise level it steps to. A v prediction therefore becomes an eps prediction at that level, where
    diffusers itself would take the level it steps from.
    """
    steps = 20
    with torch.inference_mode():
        model = values["model"] = tiny_unet(family=family)
    scheduler = DDIMInverseScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    truth = tiny_unet(family=family).model.diffusion_model.double()
    truth.dtype = torch.float64
    condition = WordClip().encode_from_tokens_scheduled(WordClip().tokenize("a red cat on a mat"))[0][0]
    x = values["latent"]["samples"].double() * model.model.latent_format.scale_factor
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            out = truth(x, timestep.double().repeat(1), context=condition.double())
            alpha = scheduler.alphas_cumprod[timestep].double()
            eps = out if family == "SD1.x" else alpha.sqrt() * out + (1 - alpha).sqrt() * x
            x = scheduler.step(eps, timestep, x).prev_sample

    nodes = graph(invert={"steps": steps}, result={"value": ["invert", 0]})
    for unused in ("sample", "guidance", "hooks", "noise", "sampler"):
        nodes.pop(unused)
    run = run_graph(nodes, values)
    assert run.success, run.error
    sigma = default_sigmas(model, steps)[0]
    ours = run.captured["result"]["samples"] * model.model.latent_format.scale_factor / (1 + sigma**2).sqrt()
    assert relative_error(ours, x) < 1e-4
