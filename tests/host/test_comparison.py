"""What keeps two prompts from being compared is told before anything is sampled, with its cause."""

import pytest
import torch
from graphs import cds_graph
from test_nodes import WordClip
from test_nodes import graph as pipeline
from tiny import FAMILIES, conditioning, counted, randn, tiny_unet
from zerocon_pack.bridge.loops.hosted import guider_of, run_hosted
from zerocon_pack.bridge.model.attention import observe
from zerocon_pack.bridge.model.comparison import map_size
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers

RANGE = {"class_type": "ConditioningSetTimestepRange", "start": 0.3, "end": 1.0}
AREA = {"class_type": "ConditioningSetAreaPercentage", "width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
TWO = {"class_type": "ConditioningCombine"}


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny_unet()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(16, 16), (13, 10), (7, 24)])
def test_the_size_of_maps_is_known_beforehand(family, size):
    with torch.inference_mode():
        model, latent = tiny_unet(family=family), randn(1, 4, *size)
        layers = frozenset(transformer_layers(model.model.diffusion_model))

        def look(run):
            levels = run.sigmas[:1].repeat(1)
            return observe(run.model, run.conds["positive"], run.latent, levels, run.options, HookedLayers(layers, layers))

        guider = guider_of(model, positive=conditioning(1))
        shown = run_hosted(guider, look, latent, torch.ones(1), callback=lambda *seen: None)
    assert {key[0] for key in shown.self_attention} == layers
    for maps in (shown.self_attention, {key: m.movedim(-1, 1)[:, :, 0] for key, m in shown.cross_attention.items()}):
        for (layer, _), seen in maps.items():
            assert map_size(model.model.diffusion_model, layer, size) == tuple(seen.shape[-2:])


GUIDANCE = {
    "max_side": (dict(hooks={"max_side": 3}), "max_side is 3 and leaves out every"),
    "a range of one": (
        dict(late=RANGE | {"conditioning": ["direction", 1]}, guidance={"edited": ["late", 0]}),
        "1 of the source's prompts act and 0 of what it becomes, by their timestep ranges",
    ),
    "a range that the guidance leaves": (
        dict(
            late=RANGE | {"conditioning": ["direction", 0]},
            later=RANGE | {"conditioning": ["direction", 1]},
            guidance={"source": ["late", 0], "edited": ["later", 0]},
        ),
        "0 of the source's prompts act and 0",
    ),
    "an area of one": (
        dict(half=AREA | {"conditioning": ["direction", 1]}, guidance={"edited": ["half", 0]}),
        "the areas of the source's prompts are not those",
    ),
}


@pytest.mark.parametrize("changes, said", GUIDANCE.values(), ids=GUIDANCE.keys())
def test_the_guidance_names_the_cause_before_it_samples(run_graph, model, changes, said):
    counting, passes = counted(model)
    values = {"clip": WordClip(), "model": counting, "latent": {"samples": randn(1, 4, 8, 8)}}
    run = run_graph(pipeline(**{name: dict(inputs) for name, inputs in changes.items()}), values)
    assert not run.success and run.error.startswith("PatchNCE Guidance: ") and said in run.error, run.error
    assert "\n" not in run.error.strip() and not run.error.strip().endswith(".")
    assert passes == {"no grad": 2}  # those of the inversion


def test_the_same_range_on_both_is_guided_within_it(run_graph, model):
    nodes = pipeline(
        invert={"steps": 4},
        early=RANGE | {"start": 0.0, "end": 0.9, "conditioning": ["direction", 0]},
        earlier=RANGE | {"start": 0.0, "end": 0.9, "conditioning": ["direction", 1]},
        guidance={"source": ["early", 0], "edited": ["earlier", 0], "end_percent": 0.5},
    )
    run = run_graph(nodes, {"clip": WordClip(), "model": model, "latent": {"samples": randn(1, 4, 8, 8)}})
    assert run.success, run.error


CDS = {
    "max_side": (
        dict(
            hooks=dict(
                class_type="ZeroConAttentionHookedUNet", model=["model", 0], self_attention="decoder", cross_attention="all",
                max_side=3,
            ),
            cds={"model": ["hooks", 0]},
        ),
        "max_side is 3 and leaves out every self-attention layer, whose maps are of 4x4 positions",
    ),
    "a range of one": (dict(late=RANGE | {"conditioning": ["target", 0]}, cds={"target": ["late", 0]}), "timestep ranges"),
    "an area of one": (dict(half=AREA | {"conditioning": ["target", 0]}, cds={"target": ["half", 0]}), "the same areas"),
    "two prompts for one": (
        dict(two=TWO | {"conditioning_1": ["target", 0], "conditioning_2": ["negative", 0]}, cds={"target": ["two", 0]}),
        "the source has 1 prompts combined and what it becomes 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes, said", CDS.values(), ids=CDS.keys())
def test_cds_names_the_cause_before_it_samples(run_graph, model, changes, said):
    counting, passes = counted(model)
    values = {"model": counting, "latent": {"samples": randn(1, 4, 8, 8)}}
    values |= {name: conditioning(seed) for seed, name in enumerate(("source", "target", "negative"))}
    run = run_graph(cds_graph(**{name: dict(inputs) for name, inputs in changes.items()}), values)
    assert not run.success and run.error.startswith("CDS Optimize: ") and said in run.error, run.error
    assert not passes
    # DDS compares scores alone, which need no maps.
    if "max_side" in said:
        changes = changes | {"cds": changes["cds"] | {"w_cut": 0.0}}
        assert run_graph(cds_graph(**{name: dict(inputs) for name, inputs in changes.items()}), values).success


def test_what_skips_layers_while_it_runs_is_named(run_graph, model):
    """A cache leaves layers out at some steps alone: that is seen first where it happens."""
    cached = model.clone()
    calls = []

    def skip(executor, x, *args, **kwargs):
        calls.append(x)
        return executor(x, *args, **kwargs) if len(calls) < 4 else torch.zeros_like(x)

    cached.add_wrapper_with_key("diffusion_model", "cache", skip)
    run = run_graph(pipeline(), {"clip": WordClip(), "model": cached, "latent": {"samples": randn(1, 4, 8, 8)}})
    assert not run.success and "PatchNCE Guidance: " in run.error and "(a cache)" in run.error, run.error
