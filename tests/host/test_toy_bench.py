"""The methods of the benchmark of edits do what their settings say, in a run of few steps."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from zerocon_pack.benchmarks.toy.bench import Batch, Bench
from zerocon_pack.benchmarks.toy.edits import KINDS, draw_edits
from zerocon_pack.benchmarks.toy.methods import CFG, Guided, Score, Transplant
from zerocon_pack.bridge.loops.hosted import guider_of
from zerocon_pack.zerocon_core.methods.cds import draw_timesteps
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE, patch_nce_loss
from zerocon_pack.zerocon_core.toyworld.scene import object_mask


@pytest.fixture(scope="module")
def batch():
    bench = Bench(steps=5, iterations=2)  # outside inference mode: plain autograd takes gradients through its weights below
    with torch.inference_mode():
        yield Batch(bench, draw_edits(4))


IDENTITY = KINDS.index("identity")


def test_without_weights_it_is_the_hosts_sampler_from_the_inverted_noise(batch):
    guider = comfy.samplers.CFGGuider(batch.bench.model)
    guider.set_conds(batch.target, batch.negative)
    guider.set_cfg(CFG)
    noise, _ = batch.inverted()
    assert torch.equal(Guided()(batch), batch.sample(guider, noise, batch.bench.sigmas))


def test_a_sampled_reference_runs_from_the_noise_to_what_the_sampler_makes_of_it(batch):
    noise, inverted = batch.inverted()
    sampled = batch.sampled(noise)
    assert len(sampled.latents) == len(sampled.sigmas) == len(inverted.latents)
    assert torch.allclose(sampled.latents[0], inverted.latents[0], atol=1e-4)
    guider = guider_of(batch.bench.model, positive=batch.source)
    end = batch.bench.model.model.process_latent_in(batch.sample(guider, noise, batch.bench.sigmas))
    assert torch.equal(sampled.latents[-1], end)
    assert not torch.equal(sampled.latents[-1], inverted.latents[-1])


def test_diffedit_gives_an_identity_back_and_the_source_outside_its_mask(batch):
    edited, mask = Guided(mask=0, strength=0.8)(batch), batch.mask(0)
    assert not mask[IDENTITY].any() and mask[:IDENTITY].flatten(1).any(1).all()
    outside = (mask == 0).unsqueeze(1).expand_as(edited)
    assert torch.allclose(edited[outside], batch.latent[outside], atol=1e-4)
    assert (edited - batch.latent)[~outside].abs().max() > 0.1


def test_a_grown_mask_holds_the_found_one_and_its_neighbours(batch):
    found, grown = batch.mask(0)[0], batch.mask(1)[0]
    for y, x in found.nonzero().tolist():
        assert grown[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].all()
    assert grown.sum() > found.sum()


def test_where_the_contrast_reads_makes_a_difference_and_nothing_without_weight(batch):
    places = ("self-attention", "cross-attention", "output")
    dds = Score()(batch)
    results = [Score(20.0, place=place)(batch) for place in places]
    for i, result in enumerate(results):
        assert all(not torch.equal(result, other) for other in (dds, *results[:i]))
    for place in places:
        assert torch.equal(Score(place=place)(batch), dds)


def test_reading_the_output_is_contrast_of_the_noise_prediction(batch, monkeypatch):
    """The first iteration against plain autograd through the model's weights."""
    bench, w_cut, step = batch.bench, 20.0, Score().step_size
    unet = bench.model.model

    def eps(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        levels = sigma * torch.ones(len(x))
        return (x - unet.apply_model(x, levels, c_crossattn=embeddings, transformer_options={})) / sigma

    comfy.model_management.load_models_gpu([bench.model])
    timestep = draw_timesteps(1, 50, 948, "descending", torch.Generator())[:1]
    with torch.inference_mode(False), torch.enable_grad():
        sigma = bench.model.get_model_object("model_sampling").sigma(timestep)[0].clone()
        z = unet.process_latent_in(batch.latent).clone()
        noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(0)).expand_as(z)
        embeddings = batch.source[0][0].clone()
        reference = eps(z + sigma * noise, sigma).detach()
        embeddings = batch.target[0][0].clone()
        moved = z.clone().requires_grad_(True)
        pairs = [(eps(moved + sigma * noise, sigma), reference)]
        loss = patch_nce_loss(pairs, PatchNCE(), torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad(loss.sum(), moved)
    expected = -step * w_cut * z[0, 0].numel() / 2000 * gradient

    monkeypatch.setattr(bench, "iterations", 1)
    both, alone = (unet.process_latent_in(Score(w, place="output")(batch)) for w in (w_cut, 0.0))
    assert (both - alone - expected).norm() < 1e-3 * expected.norm()


def test_a_transplant_changes_the_objects_place_alone(batch):
    changed = (Transplant()(batch) != batch.latent).any(1)[KINDS.index("colour")]
    edit = batch.edits[KINDS.index("colour")]
    objects = torch.from_numpy(object_mask(edit.source)) > 0
    rows, columns = (objects.any(axis).nonzero().flatten() // 4 for axis in (1, 0))
    assert changed[int(objects.nonzero().float().mean(0)[0]) // 4].any()
    for axis, places in ((1, rows), (0, columns)):
        found = changed.any(axis).nonzero().flatten()
        assert places.min() - 1 <= found.min() and found.max() <= places.max() + 1
