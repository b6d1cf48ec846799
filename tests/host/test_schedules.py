"""Ranges are shares of the model's schedule, whether it is a table of timesteps or continuous (EDM, as CosXL and Playground)."""

import math

import pytest
import torch
from comfy.model_base import ModelType
from comfy.patcher_extension import WrappersMP
from graphs import cds_graph
from test_nodes import WordClip
from test_nodes import graph as pipeline
from tiny import FAMILIES, WIDTH, conditioning, randn, tiny_unet
from zerocon_pack.bridge.loops.differences import noise_level
from zerocon_pack.bridge.loops.training import Embeddings, Training, train
from zerocon_pack.bridge.model.adapters import new_adapters
from zerocon_pack.zerocon_core.methods.cds import draw_timesteps, timestep_range
from zerocon_pack.zerocon_core.methods.finetune import Example, Objective

CONTINUOUS = [ModelType.EDM, ModelType.V_PREDICTION_EDM, ModelType.V_PREDICTION_CONTINUOUS]


@pytest.fixture(params=CONTINUOUS, ids=lambda kind: kind.name)
def continuous(request, monkeypatch):
    kind, _, sizes = FAMILIES["SD1.x"]
    monkeypatch.setitem(FAMILIES, "SD1.x", (kind, request.param, sizes))
    with torch.inference_mode():
        return tiny_unet()


def seen(model):
    """A clone that notes the noise levels that it is asked at."""
    levels = []

    def note(executor, x, timestep, *args, **kwargs):
        levels.append(float(timestep[0]))
        return executor(x, timestep, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "note", note)
    return model, levels


def values(model):
    latent = {"samples": randn(1, 4, 8, 8)}
    return {"model": model, "latent": latent, "source": conditioning(1), "target": conditioning(2), "negative": conditioning(3)}


def share(model, sigma):
    """Where a level lies between the least and the most noise of a schedule that is even in log sigma."""
    sampling = model.get_model_object("model_sampling")
    low, high = math.log(float(sampling.sigma_min)), math.log(float(sampling.sigma_max))
    return (math.log(sigma) - low) / (high - low)


@pytest.mark.parametrize("ids_steps", [0, 1])
def test_cds_draws_shares_of_a_continuous_schedule(run_graph, continuous, ids_steps):
    model, levels = seen(continuous)
    run = run_graph(cds_graph(cds=dict(steps=6, seed=3, ids_steps=ids_steps)), values(model))
    assert run.success, run.error
    assert torch.isfinite(run.captured["result"]["samples"]).all()
    drawn = torch.randint(50, 949, (6,), generator=torch.Generator().manual_seed(3))  # the papers' timesteps of 1000
    asked = [share(model, level) for level in dict.fromkeys(levels)]
    assert asked == pytest.approx([t / 999 for t in drawn.tolist()], abs=1e-4)


@pytest.mark.parametrize("order", ["random", "descending"])
def test_cds_draws_the_papers_timesteps_of_a_table(run_graph, order):
    with torch.inference_mode():
        model, levels = seen(tiny_unet())
    run = run_graph(cds_graph(cds=dict(steps=8, seed=5, timestep_order=order)), values(model))
    assert run.success, run.error
    drawn = draw_timesteps(8, 50, 948, order, torch.Generator().manual_seed(5))
    expected = model.get_model_object("model_sampling").sigma(drawn)
    assert [*dict.fromkeys(levels)] == [*dict.fromkeys(expected.tolist())]  # to the bit


def test_the_defaults_are_the_papers_timesteps():
    assert timestep_range(0.05, 0.948) == (50, 948)
    assert timestep_range(0.0, 1.0) == (0, 999)


@pytest.mark.parametrize("whole", [(0.0, 0.0), (1.0, 1.0)])
def test_the_ends_of_a_schedule_are_its_own(run_graph, continuous, whole):
    model, levels = seen(continuous)
    run = run_graph(cds_graph(cds=dict(steps=2, min_timestep=whole[0], max_timestep=whole[1])), values(model))
    assert run.success, run.error
    assert share(model, levels[0]) == pytest.approx(whole[0], abs=1e-4)


@pytest.mark.parametrize("strength", [0.01, 0.5, 0.65, 1.0])
def test_the_strength_of_masks_is_a_share_too(continuous, strength):
    assert share(continuous, float(noise_level(continuous, strength)[0])) == pytest.approx(strength, abs=1e-4)


def test_guidance_runs_on_a_continuous_schedule(run_graph, continuous):
    run = run_graph(pipeline(), {"clip": WordClip(), "model": continuous, "latent": {"samples": randn(1, 4, 8, 8)}})
    assert run.success, run.error
    assert torch.isfinite(run.captured["result"]["samples"]).all()


def test_training_draws_from_a_continuous_schedule(continuous):
    model, levels = seen(continuous)
    prompts = ("caption", "first", "second")
    example = Example(randn(1, 4, 8, 8), prompts[0], prompts[1:], torch.tensor([0.5]))
    embeddings = Embeddings(lambda prompt: (randn(1, 7, WIDTH, seed=prompts.index(prompt)), None))
    training = Training([[example]] * 3, 3, 3, embeddings, Objective(), 0.01, 1, seed=0, checkpointing=False)
    with torch.inference_mode():
        history = train(model, training, new_adapters(model, 2, seed=0), report=lambda line: None)
    assert len(history) == 3 and all(math.isfinite(step.total) for step in history)
    assert all(-1e-4 < share(model, level) < 1 + 1e-4 for level in levels) and max(levels) > 2 * min(levels)
