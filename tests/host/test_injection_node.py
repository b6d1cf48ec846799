"""Attention Injection in the host's executor: what it hands on, and what it refuses in one sentence."""

import pytest
import torch
from graphs import changed
from test_nodes import WordClip
from tiny import randn, tiny_unet
from tiny_dit import tiny_dit

VALUE = {"class_type": "TestValue"}
CAT, DOG, FLUFFY = "a red cat sits", "a red dog sits", "a red fluffy dog sits"


def graph(**changes) -> dict:
    """From latent to edited latent. `changes` are inputs by node, such as invert={"steps": 3}."""
    prompt = lambda text: ("CLIPTextEncode", dict(clip=["clip", 0], text=text))
    nodes = {
        "source": prompt(CAT),
        "edited": prompt(FLUFFY),
        "negative": prompt(""),
        "invert": ("ZeroConDDIMInvert", dict(
            model=["model", 0], image_latent=["latent", 0], conditioning=["source", 0], steps=3, lambda_ac=0.0,
            lambda_kl=0.0, regularization_steps=5, rolls=5, refinements=0, seed=0)),
        "injection": ("ZeroConAttentionInjection", dict(
            model=["model", 0], source=["source", 0], edited=["edited", 0], negative=["negative", 0], clip=["clip", 0],
            trajectory=["invert", 1], method="prompt-to-prompt refine", cfg=5.0, cross_steps=1.0, self_steps=1.0,
            attention_steps=1.0, feature_steps=1.0, masactrl_start=0.0, source_prompt=CAT, edited_prompt=FLUFFY, reweight="",
            blend_words="", blend_threshold=0.3, align=False)),
        "noise": ("DisableNoise", {}),
        "sampler": ("KSamplerSelect", dict(sampler_name="euler")),
        "sample": ("SamplerCustomAdvanced", dict(
            noise=["noise", 0], guider=["injection", 0], sampler=["sampler", 0], sigmas=["invert", 2],
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
    return {"clip": WordClip(), "model": model, "latent": {"samples": randn(1, 4, 8, 8)}}


def result(run_graph, values, **changes):
    run = run_graph(graph(**changes), values)
    assert run.success, run.error
    return run.captured["result"]["samples"]


def test_every_method_edits_in_its_own_way(run_graph, values):
    methods = ["prompt-to-prompt replace", "prompt-to-prompt refine", "plug-and-play", "MasaCtrl"]
    results = [result(run_graph, values, edited={"text": DOG}, injection={"method": m, "edited_prompt": DOG}) for m in methods]
    results += [
        result(run_graph, values, injection={"reweight": "fluffy: 3, red: 0"}),
        result(run_graph, values, injection={"blend_words": "cat, fluffy dog"}),
    ]
    assert all(torch.isfinite(one).all() for one in results)
    assert not any(one.equal(other) for i, one in enumerate(results) for other in results[:i])


def test_words_are_not_needed_where_nothing_asks_for_them(run_graph, values):
    """The edited output of Edit Direction has no text of its own."""
    quiet = dict(source_prompt="", edited_prompt="", method="prompt-to-prompt replace")
    known = dict(edited_prompt=DOG, method="prompt-to-prompt replace")
    same = result(run_graph, values, edited={"text": DOG}, injection=known)
    assert result(run_graph, values, edited={"text": DOG}, injection=quiet).equal(same)


REFUSALS = {
    "other token counts": (dict(injection={"method": "prompt-to-prompt replace"}), ["4 tokens", "5", "prompt-to-prompt refine"]),
    "a word that is not there": (dict(injection={"reweight": "horse: 2"}), ['"horse"', "fluffy"]),
    "a word of neither prompt": (dict(injection={"blend_words": "horse"}), ['"horse"', CAT]),
    "a factor that is none": (dict(injection={"reweight": "fluffy"}), ['reweight has "fluffy"', "fluffy: 3"]),
    "no words": (dict(injection={"source_prompt": ""}), ["refine needs the words", "source_prompt"]),
    "other words": (dict(injection={"edited_prompt": "a b c d e f g h i j"}), ["edited_prompt", "text that the conditioning"]),
    "another number of windows": (dict(edited={"text": "a b c d e f g h i j"}), ["8 tokens", "16"]),
    "a model without the layers": (dict(injection={"model": ["dit", 0]}, dit=VALUE | {"key": "dit"}), ["has not the layers"]),
    "wrong sampler": (dict(sampler={"sampler_name": "dpmpp_2m"}), ["KSamplerSelect", "euler"]),
    "noise on top": (dict(noise={"class_type": "RandomNoise", "noise_seed": 1}), ["DisableNoise"]),
    "another trajectory": (
        dict(second={"class_type": "ZeroConDDIMInvert", **graph()["invert"]["inputs"], "image_latent": ["other", 0]},
             other=VALUE | {"key": "other"}, injection={"trajectory": ["second", 1]}),
        ["not the inverted one", "one DDIM Invert"],
    ),
    "residuals that are not there": (dict(invert={"lambda_kl": 1.0}, injection={"align": True}), ["align", "lambda_kl"]),
    "two prompts": (
        dict(two={"class_type": "ConditioningCombine", "conditioning_1": ["edited", 0], "conditioning_2": ["source", 0]},
             injection={"edited": ["two", 0]}),
        ["edited conditioning has 2 prompts", "Conditioning Combine"],
    ),
    "an area": (
        dict(half={"class_type": "ConditioningSetArea", "conditioning": ["edited", 0], "width": 64, "height": 64, "x": 0, "y": 0,
                   "strength": 1.0}, injection={"edited": ["half", 0]}),
        ["area"],
    ),
    "a prompt for later steps": (
        dict(late={"class_type": "ConditioningSetTimestepRange", "conditioning": ["source", 0], "start": 0.5, "end": 1.0},
             injection={"source": ["late", 0]}),
        ["timestep range"],
    ),
    "merged tokens": (dict(tome={"class_type": "TomePatchModel", "model": ["model", 0], "ratio": 0.5},
                           injection={"model": ["tome", 0], "method": "plug-and-play"}), ["merges tokens"]),
}  # fmt: skip


@pytest.mark.parametrize("changes, said", REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_are_one_sentence(run_graph, values, changes, said):
    values |= {"other": {"samples": randn(1, 4, 8, 8, seed=5)}}
    if "dit" in changes:
        values["dit"] = tiny_dit("FLUX.1")
    run = run_graph(graph(**changes), values)
    assert not run.success and run.error.strip().count("\n") == 0
    assert run.error.startswith("Attention Injection: ")
    assert all(words in run.error for words in said), run.error
