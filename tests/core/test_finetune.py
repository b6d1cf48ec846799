"""Contrastive fine-tuning against the equations in `papers`, and against plain training."""

import math
from collections.abc import Sequence

import papers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zerocon_core.methods.finetune import (
    Example,
    Losses,
    LossValues,
    LowRank,
    Objective,
    Targets,
    cosine_distances,
    dissimilarity_loss,
    draw_batches,
    draw_images,
    draw_targets,
    exploded,
    losses,
    preservation_loss,
    training_steps,
    word_variations,
)
from zerocon_core.noising import Noising

EPS, FLOW = Noising(), Noising(flow=True)
COLOURS, SHAPES = ["red", "green", "blue", "yellow", "white"], ["circle", "square", "star"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def encode(prompt: str) -> tuple[Tensor, Tensor]:
    """A made-up text encoder."""
    seed = sum(map(ord, prompt))
    return randn(1, 4, 8, seed=seed), randn(1, 8, seed=seed + 1)


PREDICTED, IMAGE = randn(2, 4, 3, 5, 6, seed=1), randn(2, 3, 5, 6, seed=2)  # (B, K, C, H, W) and (B, C, H, W)
MASK = (randn(2, 1, 5, 6, seed=3) > 0.3).double()
SOFTNESS = randn(2, 6, seed=4).abs()
PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("margin", [1e9, 1.9])
def test_dissimilarity_is_that_of_the_paper(margin):
    found = dissimilarity_loss(PREDICTED, MASK, SOFTNESS, margin)
    for b in range(2):
        softness = dict(zip(PAIRS, SOFTNESS[b].tolist(), strict=True))
        truth = papers.dissimilarity(PREDICTED[b].tolist(), MASK[b, 0].tolist(), lambda i, j: softness[i, j], margin)  # noqa: B023
        assert float(found[b]) == pytest.approx(truth, rel=1e-12)


def test_preservation_is_that_of_the_paper():
    found = preservation_loss(PREDICTED, IMAGE, MASK)
    for b in range(2):
        truth = papers.preservation(PREDICTED[b].tolist(), IMAGE[b].tolist(), MASK[b, 0].tolist())
        assert float(found[b]) == pytest.approx(truth, rel=1e-12)


def test_distances_are_those_of_the_paper():
    embeddings = randn(4, 8, seed=5)
    truth = [papers.cosine_distance(embeddings[i].tolist(), embeddings[j].tolist()) for i, j in PAIRS]
    assert cosine_distances(embeddings).tolist() == pytest.approx(truth, rel=1e-12)


def test_pairs_that_are_far_enough_apart_are_not_pushed_further():
    predicted = PREDICTED.clone().requires_grad_(True)
    for margin, pushed in ((1e-3, False), (1e9, True)):
        (gradient,) = torch.autograd.grad(dissimilarity_loss(predicted, MASK, SOFTNESS, margin).sum(), predicted)
        assert bool(gradient.any()) is pushed


@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_a_mask_of_nothing_preserves_all_and_a_mask_of_everything_nothing(mask):
    mask = torch.full_like(MASK, mask)
    apart, kept = dissimilarity_loss(PREDICTED, mask, SOFTNESS, 1e9), preservation_loss(PREDICTED, IMAGE, mask)
    assert bool(apart.any()) == bool(mask.all()) and bool(kept.any()) == (not mask.any())


def predict(x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
    """A model that depends on the prompt, more in some places than in others."""
    text = torch.stack([encode(prompt)[1][0, :3] for prompt in prompts]).to(x).view(-1, 3, 1, 1)
    return (x / (1 + sigma.view(-1, 1, 1, 1) ** 2)).roll(1, 2).tanh() + text * torch.linspace(0, 1, x.shape[-1]).to(x)


def batch_of(softness: Tensor) -> list[Example]:
    return [
        Example(IMAGE[b : b + 1], f"a red star {b}", [f"a {colour} star {b}" for colour in COLOURS[1:]], softness[b])
        for b in range(2)
    ]


def test_the_objective_is_that_of_the_paper():
    noise, sigma, objective = randn(2, 3, 5, 6, seed=6), torch.tensor([0.7, 3.0]).double(), Objective(0.5, 0.3, 0.8)
    found = losses(EPS, predict, batch_of(SOFTNESS), noise, sigma, objective)
    ldm, apart, kept = [], [], []
    for b, example in enumerate(batch_of(SOFTNESS)):
        x = IMAGE[b] + sigma[b] * noise[b]
        source, *targets = (predict(x[None], sigma[b : b + 1], [prompt])[0] for prompt in example.prompts)
        ldm.append(float(((x - source) / sigma[b] - noise[b]).square().mean()))
        mask = papers.disagreement_mask([((x - target) / sigma[b]).tolist() for target in targets], 0.3)
        assert 0 < sum(map(sum, mask)) < 30
        softness, images = dict(zip(PAIRS, SOFTNESS[b].tolist(), strict=True)), [target.tolist() for target in targets]
        apart.append(papers.dissimilarity(images, mask, lambda i, j: softness[i, j], 0.8))  # noqa: B023
        kept.append(papers.preservation(images, IMAGE[b].tolist(), mask))
    truth = [sum(part) / 2 for part in (ldm, apart, kept)]
    assert [float(part) for part in found[1:]] == pytest.approx(truth, rel=1e-9)
    assert float(found.total) == pytest.approx(truth[0] + 0.5 * (truth[1] + truth[2]), rel=1e-9)


def test_a_flow_learns_its_velocity():
    """x = (1 - s) z + s eps and D = x - s v, so v = (x - D) / s, to be eps - z; where targets differ, v does as eps does."""
    noise, sigma, objective = randn(2, 3, 5, 6, seed=6), torch.tensor([0.3, 0.8]).double(), Objective(0.5, 0.3, 0.8)
    found = losses(FLOW, predict, batch_of(SOFTNESS), noise, sigma, objective)
    errors = []
    for b, example in enumerate(batch_of(SOFTNESS)):
        x = (1 - sigma[b]) * IMAGE[b] + sigma[b] * noise[b]
        velocities = [(x - predict(x[None], sigma[b : b + 1], [prompt])[0]) / sigma[b] for prompt in example.prompts]
        errors.append((velocities[0] - (noise[b] - IMAGE[b])).square().mean())
    assert float(found.ldm) == pytest.approx(float(sum(errors)) / 2, rel=1e-9)
    assert float(found.total) == pytest.approx(float(found.ldm + 0.5 * (found.dissimilarity + found.preservation)), rel=1e-9)


def test_a_prediction_that_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="prediction is not finite"):
        losses(EPS, lambda x, sigma, prompts: x / 0, batch_of(SOFTNESS), torch.zeros(2, 3, 5, 6), torch.ones(2), Objective())


# Target prompts


def test_words_of_a_caption_are_replaced_by_their_group():
    assert word_variations("a red star on a red table", [COLOURS, SHAPES]) == [
        [f"a {colour} star on a red table" for colour in COLOURS[1:]],
        ["a red circle on a red table", "a red square on a red table"],
        [f"a red star on a {colour} table" for colour in COLOURS[1:]],
    ]
    assert word_variations("a reddish dog", [COLOURS, SHAPES]) == []


def test_targets_replace_one_word_that_has_enough_replacements():
    variations = word_variations("a red star", [COLOURS, SHAPES])
    for seed in range(20):
        targets, softness = draw_targets("a red star", variations, Targets(3, False, False), encode, generator(seed))
        assert len(set(targets)) == 3 and set(targets) <= set(variations[0])
        assert softness.tolist() == [1.0] * 3
    drawn = {tuple(draw_targets("", variations, Targets(2, False, False), encode, generator(seed))[0]) for seed in range(20)}
    assert {prompts[0] in variations[0] for prompts in drawn} == {True, False}, "either word must be drawn at times"


def test_soft_augmentation_spreads_the_targets_over_their_distances():
    (prompts,) = word_variations("a red star", [COLOURS])
    caption = encode("a red star")[1][0].tolist()
    ranked = sorted(prompts, key=lambda prompt: papers.cosine_distance(caption, encode(prompt)[1][0].tolist()))
    assert draw_targets("a red star", [prompts], Targets(4), encode, generator())[0] == ranked
    for seed in range(3):  # of four, the middle ones of the nearer and of the farther half
        assert draw_targets("a red star", [prompts], Targets(2), encode, generator(seed))[0] == [ranked[0], ranked[2]]


def test_soft_loss_weighs_with_the_distance_of_the_targets():
    variations = word_variations("a red star", [COLOURS])
    targets, softness = draw_targets("a red star", variations, Targets(4, soft_choice=False), encode, generator())
    rows = [encode(target)[1][0].tolist() for target in targets]
    assert softness.tolist() == pytest.approx([papers.cosine_distance(rows[i], rows[j]) for i, j in PAIRS], rel=1e-9)


def test_soft_loss_with_prompts_at_distance_1_is_the_hard_loss():
    axes = {f"a {colour} star": axis[None] for colour, axis in zip(COLOURS, torch.eye(5), strict=True)}
    variations = word_variations("a red star", [COLOURS])
    (soft_targets, soft), (hard_targets, hard) = (
        draw_targets("a red star", variations, Targets(4, loss, False), lambda prompt: (None, axes[prompt]), generator())
        for loss in (True, False)
    )
    assert soft_targets == hard_targets
    noise, sigma = randn(2, 3, 5, 6, seed=6), torch.tensor([0.7, 3.0]).double()
    of_soft, of_hard = (
        losses(EPS, predict, [example._replace(softness=softness) for example in batch_of(SOFTNESS)], noise, sigma, Objective())
        for softness in (soft, hard)
    )
    assert of_soft == of_hard


# Training


def test_images_of_a_batch_differ_and_are_of_one_size():
    shapes = [torch.Size(shape) for shape in ((1, 4, 8, 8), (1, 4, 8, 6), (1, 4, 8, 8), (1, 4, 8, 8))]
    drawn = [draw_images(shapes, 3, generator(seed)) for seed in range(40)]
    assert {tuple(sorted(numbers)) for numbers in drawn} == {(0, 2, 3), (1,)}


def test_methods_see_the_same_images():
    captions = [f"a {colour} star" for colour in COLOURS]
    images = list(randn(5, 3, 4, 4, seed=7).split(1))
    variations = [word_variations(caption, [COLOURS]) for caption in captions]
    runs = [
        [*draw_batches(images, captions, words, 10, 2, choice, encode, seed=3)]
        for words, choice in ((None, Targets()), (variations, Targets(3, False, False)), (variations, Targets(4)))
    ]
    seen = [[example.caption for batch in batches for example in batch] for batches in runs]
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0])) == 5
    again = draw_batches(images, captions, variations, 10, 2, Targets(3, False, False), encode, seed=3)
    assert [e.targets for batch in again for e in batch] == [e.targets for batch in runs[1] for e in batch]


def test_passes_are_drawn_when_they_are_asked_for():
    endless = draw_batches([randn(1, 3, 4, 4, seed=7)], ["a red star"], None, 10**12, 1, Targets(), encode, seed=3)
    assert next(endless)[0].caption == "a red star"


@pytest.mark.parametrize(
    "losses_of_noise, expected",
    [
        ([0.1] * 9 + [0.3], False),
        ([0.1, 0.9] * 10, False),
        ([3.0, 2.5, 2.2], False),
        ([0.1, 0.2, 5.0], True),
        ([0.1] * 10 + [1.5] * 10, True),
    ],
    ids=["below that of no noise", "by noise level", "falling", "three steps", "doubled"],
)
def test_a_loss_explodes_where_it_ends_above_that_of_predicting_no_noise(losses_of_noise, expected):
    assert exploded([LossValues(loss, loss, 0.0, 0.0) for loss in losses_of_noise]) == expected


def test_an_adapter_is_a_low_rank_matrix_that_starts_at_zero():
    x = randn(7, 5, seed=8).float()
    assert not LowRank.neutral(5, 4, 2, generator())(x).any()
    down, up = randn(2, 5, seed=9).float(), randn(4, 2, seed=10).float()
    torch.testing.assert_close(LowRank(down, up, alpha=6.0)(x), x @ (3.0 * up @ down).T)


def adapter() -> LowRank:
    return LowRank(randn(2, 3, seed=11), randn(3, 2, seed=12), 2.0)


X, Y = randn(8, 3, seed=13).float(), randn(8, 3, seed=14).float()


def regression(trained: LowRank, rows: Sequence[slice]):
    """The losses of one slice after the other."""
    remaining = iter(rows)

    def loss() -> Losses:
        rows = next(remaining)
        value = F.mse_loss(trained(X[rows]), Y[rows])
        return Losses(value, value, value.new_zeros(()), value.new_zeros(()))

    return loss


def test_training_is_a_plain_adamw_loop():
    trained, plain = adapter(), adapter()
    found = list(training_steps(list(trained.parameters()), regression(trained, [slice(None)] * 5), 5, 0.1))
    optimizer, values = torch.optim.AdamW(plain.parameters(), lr=0.1), []
    for _ in range(5):
        loss = F.mse_loss(plain(X), Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert [losses.total for losses in found] == values
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), plain.parameters(), strict=True))


def test_accumulated_passes_are_one_larger_batch():
    whole, halves = adapter(), adapter()
    one = list(training_steps(list(whole.parameters()), regression(whole, [slice(0, 8)] * 3), 3, 0.01))
    parts = [slice(0, 4), slice(4, 8)] * 3
    two = list(training_steps(list(halves.parameters()), regression(halves, parts), 3, 0.01, accumulation=2))
    assert [a.total for a in one] == pytest.approx([b.total for b in two], rel=1e-5)
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_scaling_for_half_precision_changes_no_bit():
    plain, scaled = adapter(), adapter()
    for trained, half in ((plain, False), (scaled, True)):
        list(training_steps(list(trained.parameters()), regression(trained, [slice(None)] * 4), 4, 0.1, half_precision=half))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), scaled.parameters(), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(value):
    trained, shorter = adapter(), adapter()
    good = regression(trained, [slice(None)] * 2)
    count = iter(range(3))

    def loss() -> Losses:
        return good() if next(count) < 2 else Losses(*[torch.tensor(value, requires_grad=True)] * 4)

    steps, done = training_steps(list(trained.parameters()), loss, 5, 0.1), []
    with pytest.raises(FloatingPointError, match="the loss is"):
        for losses in steps:
            done.append(losses)
    assert len(done) == 2
    list(training_steps(list(shorter.parameters()), regression(shorter, [slice(None)] * 2), 2, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), shorter.parameters(), strict=True))
