"""Edit masks in the host's executor, and what the guider does with a mask: against plain loops and the host's own nodes."""

import json
import math
from itertools import combinations
from pathlib import Path

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from server import PromptServer
from test_guider import EDITED, EULER, NEGATIVE, SOURCE, hooked
from test_nodes import graph
from tiny import conditioning, randn, relative_error, tiny_unet
from zerocon_pack.bridge.loops.differences import prompt_differences
from zerocon_pack.bridge.loops.guidance import ZeroConGuider
from zerocon_pack.bridge.loops.inversion import default_sigmas, invert
from zerocon_pack.zerocon_core.methods.guidance import GuidanceWeights
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE

ROOT = Path(__file__).parents[2]
PROMPTS = [conditioning(i) for i in (1, 2, 3, 4)]


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


def flow_unet():
    """The small U-Net under the path of SD3."""
    return ModelSamplingSD3().patch(tiny_unet(), 3.0)[0]


MODELS = {"eps": tiny_unet, "v": lambda: tiny_unet(family="SD2.x"), "flow": flow_unet}


def float64_loop(kind, latent, prompts, strength, draws, seed):
    """Eq. 2 on the network itself, in float64 and without the host's sampling. Returns the map of every sample.

    eps and v networks are compared as they are: at one level their differences are proportional to those of eps.
    """
    model = MODELS[kind]()
    sampling = model.get_model_object("model_sampling")
    sigma = torch.tensor(sampling.percent_to_sigma(1 - strength))
    unet = model.model.diffusion_model.double()
    unet.dtype = torch.float64
    timestep = sampling.timestep(sigma).double().view(1)
    generator, maps = torch.Generator().manual_seed(seed), [0.0] * len(latent)
    noises = [torch.randn(1, *latent.shape[1:], generator=generator).double() for _ in range(draws)]
    for noise in noises:
        for i in range(len(latent)):
            z = latent[i : i + 1].double() * model.model.latent_format.scale_factor
            x = (1 - sigma) * z + sigma * noise if kind == "flow" else (z + sigma * noise) / (1 + sigma**2).sqrt()
            out = [unet(x, timestep, context=prompt[0][0].double())[0] for prompt in prompts]
            pairs = [(a - b).abs().mean(0) for a, b in combinations(out, 2)]
            maps[i] = maps[i] + sum(pairs) / (len(pairs) * draws)
    return maps


def normalized(values: torch.Tensor, clamp: float = math.inf) -> torch.Tensor:
    values = values.clamp(max=clamp * float(values.mean()))
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize("prompts", [2, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_the_node_is_a_float64_loop(run_mask, kind, prompts):
    latent = randn(2, 4, 8, 6)
    run = run_mask(MODELS[kind](), {"samples": latent}, PROMPTS[:prompts], draws=2, clamp=1.5, seed=3)
    assert run.success, run.error
    mask, heat = run.captured["mask"], run.captured["heat"]
    assert mask.shape == (2, 64, 48) and heat.shape == (2, 64, 48, 3)
    for i, truth in enumerate(float64_loop(kind, latent, PROMPTS[:prompts], 0.5, 2, 3)):
        truth = normalized(truth, 1.5)
        assert (heat[i, ::8, ::8, 0] - truth).abs().max() < 2e-3
        clear = (truth - 0.5).abs() > 4e-3
        assert mask[i, ::8, ::8][clear].equal((truth > 0.5).float()[clear]) and 0 < mask[i].mean() < 1
        assert clear.float().mean() > 0.9


class TestPrompts:
    """Hands the conditionings in `prompts` to the graph as a list, as CLIP Text Encode does with a list of texts."""

    prompts: list = []
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "get"
    CATEGORY = "tests"
    IS_CHANGED = classmethod(lambda cls: float("nan"))

    def get(self):
        return (self.prompts,)


@pytest.fixture
def run_mask(run_graph, monkeypatch):
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestPrompts", TestPrompts)

    def run(model, latent, prompts=PROMPTS, source=None, more=None, **settings):
        """`more` adds nodes to the graph; TestCapture nodes are there for both outputs."""
        monkeypatch.setattr(TestPrompts, "prompts", prompts)
        inputs = dict(
            model=["model", 0], image_latent=["latent", 0], prompts=["prompts", 0], strength=0.5, draws=2, threshold=0.5,
            clamp=3.0, smoothing=0.0, seed=0,
        )  # fmt: skip
        values = {"model": model, "latent": latent}
        if source is not None:
            values["source"], inputs["source"] = source, ["source", 0]
        graph = {
            "prompts": {"class_type": "TestPrompts", "inputs": {}},
            "node": {"class_type": "ZeroConEditMask", "inputs": inputs | settings},
            "mask": {"class_type": "TestCapture", "inputs": {"value": ["node", 0]}},
            "heat": {"class_type": "TestCapture", "inputs": {"value": ["node", 1]}},
        }
        graph |= {name: {"class_type": "TestValue", "inputs": {"key": name}} for name in values}
        return run_graph(graph | (more or {}), values)

    return run


@pytest.fixture
def model():
    return tiny_unet()


LATENT = randn(1, 4, 8, 6)


def test_source_is_one_more_prompt(run_mask, model):
    linked = run_mask(model, {"samples": LATENT}, PROMPTS[:1], source=PROMPTS[1])
    listed = run_mask(model, {"samples": LATENT}, [PROMPTS[1], PROMPTS[0]])
    assert linked.success and linked.captured["heat"].equal(listed.captured["heat"])


def test_one_batched_pass_a_draw_and_every_prompt_is_positive(model):
    shapes, labels = [], []

    def count(executor, x, timestep, context, *args, **kwargs):
        options = next(a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "cond_or_uncond" in a)
        shapes.append(tuple(x.shape))
        labels.append(options["cond_or_uncond"])
        return executor(x, timestep, context, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    before = repr(model.model_options)
    weights = [p.clone() for p in model.model.parameters()]
    prompt_differences(model, randn(2, 4, 8, 6), PROMPTS, 0.5, 3, 0)
    assert shapes == [(4 * 2, 4, 8, 6)] * 3
    assert labels == [[0, 0, 0, 0]] * 3
    assert repr(model.model_options) == before
    assert all(torch.equal(a, b) for a, b in zip(weights, model.model.parameters(), strict=True))


def test_a_batch_is_its_samples_and_a_seed_its_bits(model):
    latents = randn(2, 4, 9, 6)
    both = prompt_differences(model, latents, PROMPTS, 0.5, 2, 1)
    for i in range(2):
        assert relative_error(both[i], prompt_differences(model, latents[i : i + 1], PROMPTS, 0.5, 2, 1)[0]) < 1e-5
    assert both.equal(prompt_differences(model, latents, PROMPTS, 0.5, 2, 1))
    assert not both.equal(prompt_differences(model, latents, PROMPTS, 0.5, 2, 2))


def test_cancel_leaves_the_model_as_it_was(model):
    before, options = prompt_differences(model, LATENT, PROMPTS, 0.5, 2, 0), repr(model.model_options)

    def stop(draw, mean):
        comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        prompt_differences(model, LATENT, PROMPTS, 0.5, 2, 0, stop)
    assert repr(model.model_options) == options
    assert prompt_differences(model, LATENT, PROMPTS, 0.5, 2, 0).equal(before)


def test_progress_and_preview(run_mask, model):
    run = run_mask(model, {"samples": LATENT}, draws=3)
    assert any("progress" in str(event) for event, _ in run.messages)


def test_samplers_see_the_mask_of_the_latent(run_mask, model):
    """The host resizes a mask to the latent between pixels; squares come back as they were."""
    run = run_mask(
        model,
        {"samples": LATENT},
        more={
            "set": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["latent", 0], "mask": ["node", 0]}},
            "sample": {"class_type": "KSampler", "inputs": dict(
                model=["model", 0], seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=0.7,
                positive=["other", 0], negative=["other", 0], latent_image=["set", 0])},
            "other": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["encoded", 0]}},
            "encoded": {"class_type": "TestValue", "inputs": {"key": "source"}},
            "result": {"class_type": "TestCapture", "inputs": {"value": ["sample", 0]}},
        },
        source=PROMPTS[0],
    )  # fmt: skip
    assert run.success, run.error
    mask = run.captured["mask"]
    seen = comfy.sampler_helpers.prepare_mask(mask.unsqueeze(1), LATENT.shape, torch.device("cpu"))
    assert seen[:, 0].equal(mask[:, ::8, ::8])
    moved = (run.captured["result"]["samples"] - LATENT).abs().amax(1)
    assert moved[mask[:, ::8, ::8] == 0].max() < 1e-5 < 1e-2 < moved[mask[:, ::8, ::8] == 1].max()


@pytest.mark.parametrize("threshold, said", [(1.0, "lower threshold"), (0.0, "raise threshold")])
def test_a_mask_of_nothing_or_everything_is_a_warning(run_mask, model, monkeypatch, caplog, threshold, said):
    shown = []
    monkeypatch.setattr(PromptServer.instance, "send_progress_text", lambda text, node_id: shown.append((text, node_id)))
    run = run_mask(model, {"samples": LATENT}, threshold=threshold, clamp=0.0)
    assert run.success, run.error
    assert [said in text and node_id == "node" for text, node_id in shown] == [True]
    assert any(said in record.getMessage() for record in caplog.records)


REFUSALS = {
    "one prompt": (dict(prompts=PROMPTS[:1]), "one prompt"),
    "the same prompts": (dict(prompts=[PROMPTS[0], conditioning(1), conditioning(1)]), "3 prompts are the same"),
    "video": (dict(latent={"samples": randn(1, 4, 2, 8, 6)}), "(1, 4, 2, 8, 6)"),
    "NaN": (dict(latent={"samples": torch.full((1, 4, 8, 6), math.nan)}), "NaN"),
    "a list": (dict(threshold=["thresholds", 0]), "threshold came as a list of 2"),
}


@pytest.mark.parametrize("inputs, said", REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_are_one_sentence(run_mask, model, inputs, said, monkeypatch):
    class Thresholds(TestPrompts):
        RETURN_TYPES = ("FLOAT",)
        get = lambda self: ([0.2, 0.4],)

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestThresholds", Thresholds)
    more = {"thresholds": {"class_type": "TestThresholds", "inputs": {}}}
    run = run_mask(model, **({"latent": {"samples": LATENT}, "more": more} | inputs))
    assert not run.success and run.error.startswith("Edit Mask: ") and said in run.error, run.error
    assert "\n" not in run.error.strip() and not run.error.strip().endswith("."), run.error


# The guider's mask

WEIGHTS = GuidanceWeights(0.5, 1.0, patchnce=PatchNCE(patches=8))
MASK = torch.zeros(1, 64, 64)
MASK[:, 16:48, 24:] = 1


@pytest.fixture(scope="module")
def inverted():
    with torch.inference_mode():
        return invert(tiny_unet(), randn(2, 4, 8, 8), SOURCE, default_sigmas(tiny_unet(), 3), None, 0, 0)


def sample(model, inverted, weights=WEIGHTS, mask=None, restores=False, positive=EDITED, denoise_mask=None, sigmas=None):
    noise, path = inverted
    guider = ZeroConGuider(model, path, weights, 0, 1, 0, mask, restores)
    guider.inner_set_conds({"positive": positive, "negative": NEGATIVE, "source": SOURCE})
    guider.set_cfg(4.0)
    return guider.sample(
        torch.zeros_like(noise), noise, EULER, path.sigmas if sigmas is None else sigmas, denoise_mask, disable_pbar=True
    )


def test_nothing_free_is_no_mask_and_everything_free_is_no_guidance(inverted):
    model = hooked(tiny_unet())
    assert sample(model, inverted, mask=torch.zeros_like(MASK)).equal(sample(model, inverted))
    assert sample(model, inverted, mask=torch.ones_like(MASK)).equal(sample(model, inverted, GuidanceWeights(0, 0)))
    assert not sample(model, inverted, mask=MASK).equal(sample(model, inverted))


def test_masks_of_a_batch_are_each_samples_own(inverted):
    model, (noise, path) = hooked(tiny_unet()), inverted
    masks = torch.cat([MASK, 1 - MASK])
    both = sample(model, inverted, mask=masks, restores=True)
    for i in range(2):
        one = noise[i : i + 1], path._replace(latents=[x[i : i + 1] for x in path.latents])
        assert relative_error(both[i : i + 1], sample(model, one, mask=masks[i : i + 1], restores=True)) < 1e-4


@pytest.mark.parametrize("mask", [MASK, 0.3 + 0.5 * MASK], ids=["hard", "soft"])
def test_inverted_outside_is_diffedit(inverted, mask):
    """DiffEdit's step 3 as a loop around the host's own guider: y <- M y + (1 - M) x_r after every step. No hooks needed."""
    model, (noise, path) = tiny_unet(), inverted
    held = mask[:, None, ::8, ::8]
    y = noise
    for i in range(len(path.sigmas) - 1):
        stock = comfy.samplers.CFGGuider(model)
        stock.set_conds(EDITED, NEGATIVE)
        stock.set_cfg(4.0)
        y = stock.sample(torch.zeros_like(y), y, EULER, path.sigmas[i : i + 2], disable_pbar=True)
        y = held * y + (1 - held) * model.model.process_latent_out(path.latents[i + 1])
    edited = sample(model, inverted, GuidanceWeights(0, 0), mask, restores=True)
    assert relative_error(edited, y) < 1e-5
    unmasked = sample(model, inverted, GuidanceWeights(0, 0))
    assert relative_error(unmasked, y) > 0.1


def test_diffedit_as_a_graph_of_nodes(run_graph):
    """Prompts of other lengths than each other's and a model without hooks: no maps are compared."""
    prompts = {"short": conditioning(5, tokens=5), "long": conditioning(6, tokens=9)}
    nodes = graph(
        mask={"class_type": "ZeroConEditMask", "model": ["model", 0], "image_latent": ["latent", 0], "prompts": ["long", 0],
              "source": ["short", 0], "strength": 0.5, "draws": 1, "threshold": 0.5, "clamp": 3.0, "smoothing": 0.0, "seed": 0},
        invert={"conditioning": ["short", 0]},
        guidance={"hooked_model": ["model", 0], "source": ["short", 0], "edited": ["long", 0], "negative": ["short", 0],
                  "lambda_xa": 0.0, "lambda_cut": 0.0, "mask": ["mask", 0], "outside": "inverted"},
        mask_out={"class_type": "TestCapture", "value": ["mask", 0]},
    )  # fmt: skip
    nodes |= {name: {"class_type": "TestValue", "inputs": {"key": name}} for name in prompts}
    for unused in ("clip", "direction", "hooks"):
        nodes.pop(unused)
    latent = {"samples": randn(1, 4, 8, 8)}
    run = run_graph(nodes, {"model": tiny_unet(), "latent": latent} | prompts)
    assert run.success, run.error
    outside = run.captured["mask_out"][:, None, ::8, ::8] == 0
    moved = (run.captured["result"]["samples"] - latent["samples"]).abs()
    assert moved[outside.expand_as(moved)].max() < 1e-4 < 0.1 < moved.max()


def test_inverted_everywhere_is_the_source(inverted):
    edited = sample(hooked(tiny_unet()), inverted, mask=torch.zeros_like(MASK), restores=True)
    assert relative_error(edited, randn(2, 4, 8, 8)) < 1e-5


def test_what_a_mask_does_not_go_with(inverted):
    model = hooked(tiny_unet())
    with pytest.raises(ValueError, match="^PatchNCE Guidance: the latent has a noise mask"):
        sample(model, inverted, denoise_mask=MASK)
    area = [[EDITED[0][0], {"area": (8, 4, 0, 0), "strength": 1.0}]]
    with pytest.raises(ValueError, match="^PatchNCE Guidance: a mask does not work together"):
        sample(model, inverted, mask=MASK, positive=area)
    elsewhere = torch.cat([inverted[1].sigmas[:-1], torch.tensor([0.02])])
    with pytest.raises(ValueError, match="no latent at sigma 0.02"):
        sample(model, inverted, mask=MASK, restores=True, sigmas=elsewhere)


def test_the_shipped_graph_finds_the_object_and_edits_it_in_every_colour(run_graph):
    nodes = json.loads((ROOT / "workflows" / "api" / "augment_and_mask_toy.json").read_text(encoding="utf-8"))
    of_type = {node["class_type"]: name for name, node in nodes.items()}
    nodes[of_type["KSampler"]]["inputs"]["steps"] = 2
    nodes |= {
        "found": {"class_type": "TestCapture", "inputs": {"value": [of_type["ZeroConEditMask"], 0]}},
        "truth": {"class_type": "TestCapture", "inputs": {"value": [of_type["ZeroConToyScene"], 2]}},
    }
    run = run_graph(nodes)
    assert run.success, run.error
    found, truth = run.captured["found"] > 0, run.captured["truth"] > 0.5
    assert (found & truth).sum() / (found | truth).sum() > 0.6
    prompts = nodes[of_type["ZeroConPromptAugment"]]["inputs"]["count"]
    assert sorted(len(output["images"]) for output in run.outputs.values() if "images" in output) == [1, prompts]
