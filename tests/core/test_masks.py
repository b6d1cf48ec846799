"""Edit masks against the loops of `papers`, and what the losses do with a mask."""

import math
from dataclasses import replace

import papers
import pytest
import torch
from test_guidance import ABSOLUTE, REFERENCE, RELATIVE, SIGMA, X, generator, of_sample, randn
from test_guidance import observe as observe_two_layers
from torch import Tensor

from zerocon_core.maps.differences import average_difference, coverage, difference_map, edit_mask, heat_map, smooth
from zerocon_core.methods.guidance import Guidance, cross_attention_loss
from zerocon_core.methods.patchnce import PatchNCE, draw_held_patches, patch_nce_loss
from zerocon_core.noising import Noising

PREDICTIONS = randn(4, 2, 3, 5, 7, seed=1) * torch.linspace(0.1, 2, 7).double()  # more spread to the right
SHAPE = torch.Size((2, 3, 5, 7))


@pytest.mark.parametrize("prompts", [2, 3, 4])
def test_the_map_is_the_papers(prompts):
    maps = difference_map(PREDICTIONS[:prompts])
    for i in range(2):
        expected = papers.prompt_difference([prediction[i] for prediction in PREDICTIONS[:prompts]])
        torch.testing.assert_close(maps[i], torch.tensor(expected).double())


def test_two_prompts_are_diffedits_map():
    source, target = PREDICTIONS[:2]
    assert torch.equal(difference_map(PREDICTIONS[:2]), (target - source).abs().mean(1))


@pytest.mark.parametrize("clamp", [0.0, 1.5, 3.0])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_the_mask_is_the_papers(clamp, threshold):
    maps = difference_map(PREDICTIONS)
    mask = edit_mask(heat_map(maps, clamp), threshold)
    expected = [papers.binary_mask(m.tolist(), threshold, clamp or math.inf) for m in maps]
    assert mask.tolist() == expected
    assert 0 < mask.mean() < 1


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
def test_smoothing_is_a_gaussian(sigma):
    maps = difference_map(PREDICTIONS)
    expected = torch.tensor([papers.blurred(m.tolist(), sigma) for m in maps]).double()
    torch.testing.assert_close(smooth(maps, sigma), expected)


def test_without_smoothing_nothing_is_touched():
    maps = difference_map(PREDICTIONS)
    assert smooth(maps, 0.0) is maps


def test_every_way_to_write_a_prediction_gives_one_mask():
    """At one x and level, eps, v and the denoised latent are linear in each other."""
    x, sigma = randn(*SHAPE, seed=2), 1.7
    denoised = x - sigma * PREDICTIONS
    v = PREDICTIONS / (1 + sigma**2) ** 0.5 - denoised * sigma / (1 + sigma**2) ** 0.5
    heat = heat_map(difference_map(PREDICTIONS))
    for other in (denoised, v):
        torch.testing.assert_close(heat_map(difference_map(other)), heat)


def predict(noise: Tensor) -> Tensor:
    """Three prompts whose predictions depend on the sample and on the noise in a way that is not linear."""
    return torch.stack([(noise * (k + 1) + X5).sin() for k in range(3)])


X5 = randn(*SHAPE, seed=3).float()


def test_draws_are_averaged():
    singles, draw = [], generator(5)
    for _ in range(3):
        singles.append(difference_map(predict(torch.randn(1, *SHAPE[1:], generator=draw).expand(SHAPE))))
    seen = []
    averaged = average_difference(predict, SHAPE, 3, generator(5), lambda i, mean: seen.append((i, mean)))
    torch.testing.assert_close(averaged, torch.stack(singles).mean(0))
    assert [i for i, _ in seen] == [0, 1, 2]
    torch.testing.assert_close(seen[1][1], torch.stack(singles[:2]).mean(0))
    assert torch.equal(averaged, average_difference(predict, SHAPE, 3, generator(5)))
    assert not torch.equal(averaged, average_difference(predict, SHAPE, 3, generator(6)))


def test_samples_of_a_batch_share_their_noise():
    together = average_difference(predict, SHAPE, 2, generator())
    for i in range(2):
        one = torch.Size((1, *SHAPE[1:]))
        alone = average_difference(lambda noise, i=i: predict(noise)[:, i : i + 1], one, 2, generator())
        torch.testing.assert_close(together[i : i + 1], alone)


def test_what_has_no_mask_is_an_error():
    with pytest.raises(ValueError, match="at least 2"):
        difference_map(PREDICTIONS[:1])
    with pytest.raises(ValueError, match="no place"):
        heat_map(difference_map(PREDICTIONS[:1].repeat(3, 1, 1, 1, 1)))


def test_coverage_is_the_mean_of_each_position():
    mask = (randn(2, 6, 8, seed=4) > 0).double()
    expected = torch.tensor([papers.pooled(m.tolist(), 2) for m in mask]).double()
    torch.testing.assert_close(coverage(mask, (3, 4)), expected)
    enlarged = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(coverage(enlarged, (6, 8)), mask)


# Losses that leave a mask free

FREE = torch.zeros(2, 8, 10)
FREE[0, 2:6, :5] = 1
FREE[1, :, 6:] = 1


@pytest.mark.parametrize("direction", ["cds", "cut"])
def test_contrast_is_taken_among_the_places_outside(direction):
    edited, source = randn(2, 3, 4, 5, seed=5), randn(2, 3, 4, 5, seed=6)
    loss = patch_nce_loss([(edited, source)], PatchNCE(direction=direction), generator(), FREE)
    for i in range(2):
        terms = []
        for size in (1, 2):
            covered = papers.pooled(papers.pooled(FREE[i].tolist(), 2), size)
            held = [p for p, share in enumerate(share for row in covered for share in row) if share < 0.5]
            assert 1 < len(held) < len(covered) * len(covered[0])
            edit, reference = ([papers.unit_patches(maps[i], size)[p] for p in held] for maps in (edited, source))
            anchor, other = (reference, edit) if direction == "cds" else (edit, reference)
            terms.append(papers.info_nce(anchor, other, 0.07))
        assert float(loss[i]) == pytest.approx(9 * sum(terms), rel=1e-4)


def test_cross_attention_is_compared_outside():
    m, reference = randn(2, 2, 4, 5, 3, seed=7), randn(2, 2, 4, 5, 3, seed=8)
    loss = cross_attention_loss([(m, reference)], FREE)
    for i in range(2):
        held = torch.tensor(papers.pooled(FREE[i].tolist(), 2)).flatten() < 0.5
        outside = [maps[i].flatten(1, 2)[:, held] for maps in (m, reference)]
        assert float(loss[i]) == pytest.approx(papers.attention_distance([tuple(outside)]))


@pytest.mark.parametrize("weights", [ABSOLUTE, RELATIVE], ids=["absolute", "relative"])
@pytest.mark.parametrize("patches", [256, 3])
def test_a_batch_of_masks_is_its_samples(weights, patches):
    weights = replace(weights, patchnce=PatchNCE(patches=patches))
    moved = Guidance(Noising(), weights, generator(), FREE).shift(observe_two_layers, X, SIGMA, REFERENCE)
    for i in range(2):
        guidance = Guidance(Noising(), weights, generator(), FREE[i : i + 1])
        one = guidance.shift(observe_two_layers, X[i : i + 1], SIGMA, of_sample(REFERENCE, i))
        torch.testing.assert_close(moved[i : i + 1], one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weights", [ABSOLUTE, RELATIVE], ids=["absolute", "relative"])
@pytest.mark.parametrize("patches", [256, 3])
def test_nothing_free_is_no_mask_and_everything_free_holds_nothing(weights, patches):
    weights = replace(weights, patchnce=PatchNCE(patches=patches))

    def shift(free: Tensor | None) -> Tensor:
        return Guidance(Noising(), weights, generator(), free).shift(observe_two_layers, X, SIGMA, REFERENCE)

    assert torch.equal(shift(torch.zeros_like(FREE)), shift(None))
    assert not shift(torch.ones_like(FREE)).any()
    # One sample's mask is not another's.
    half = shift(torch.stack([torch.ones(8, 10), torch.zeros(8, 10)]))
    assert not half[0].any()
    torch.testing.assert_close(half[1], shift(None)[1])


def test_drawn_places_are_outside_as_far_as_there_are_any():
    held = torch.zeros(3, 50, dtype=torch.bool)
    held[0, 10:40], held[1, 3] = True, True
    places, real = draw_held_patches(held, 20, generator())
    assert places.shape == real.shape == (3, 20)
    assert real.sum(1).tolist() == [20, 1, 0]
    assert all(len(set(row.tolist())) == 20 for row in places)
    assert held.gather(1, places).equal(real)
    assert {int(p) for seed in range(40) for p in draw_held_patches(held, 20, generator(seed))[0][0]} == set(range(10, 40))
