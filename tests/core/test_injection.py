"""What is injected when, and Prompt-to-Prompt's words against its published code."""

import random

import prompt_to_prompt
import pytest
import torch

from zerocon_core.language.tokens import Token
from zerocon_core.methods.injection import Injected, LocalBlend, MasaCtrl, PlugAndPlay, PromptToPrompt, WordEdit, aligned


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(text: str) -> list[Token]:
    return [Token(place, word) for place, word in enumerate(text.split(), 1)]


@pytest.mark.parametrize("steps, cross, maps", [(50, 40, 20), (20, 16, 8), (12, 9, 4), (1, 0, 0)])
def test_prompt_to_prompt_takes_whole_steps(steps, cross, maps):
    injected = [PromptToPrompt().at(step, steps) for step in range(steps)]
    assert [i.words for i in injected] == [True] * cross + [False] * (steps - cross)
    assert [i.maps for i in injected] == [True] * maps + [False] * (steps - maps)
    assert not any(i.content or i.features for i in injected)


def test_plug_and_play_and_masactrl_at_50_steps():
    injected = [PlugAndPlay().at(step, 50) for step in range(50)]
    assert sum(i.maps for i in injected[:25]) == sum(i.maps for i in injected) == 25
    assert sum(i.features for i in injected[:40]) == sum(i.features for i in injected) == 40
    content = [MasaCtrl().at(step, 50) for step in range(50)]
    assert content == [Injected()] * 4 + [Injected(content=True)] * 46


def test_a_share_of_0_is_never():
    methods = PromptToPrompt(0, 0), PlugAndPlay(0, 0), MasaCtrl(1)
    assert not any(any(method.at(step, 7)) for method in methods for step in range(7))


@pytest.mark.parametrize("seed", range(40))
def test_alignment_is_the_published_one(seed):
    draw = random.Random(seed)
    source, edited = (draw.choices("abcd", k=draw.randrange(8)) for _ in range(2))
    expected = dict(prompt_to_prompt.mapper_y_to_x(source, edited).reshape(-1, 2).tolist())
    assert aligned(source, edited) == [None if expected[j] == -1 else expected[j] for j in range(len(edited))]


REFINED = [
    ("a red cat on a mat", "a fluffy red cat on a mat"),
    ("a cat", "a photo of a cat and a dog"),
    ("a red cat", "a blue dog"),
    ("a cat on a mat", "a dog on a mat"),
]


@pytest.mark.parametrize("source, edited", REFINED)
def test_refining_writes_what_the_published_code_writes(source, edited):
    before, after = randn(2, 3, 20), randn(2, 3, 20, seed=1)
    mapper, alphas = prompt_to_prompt.refinement_mapper(["<", *source.split(), ">"], ["<", *edited.split(), ">"], 20)
    expected = before[:, :, mapper] * alphas + after * (1 - alphas)
    torch.testing.assert_close(WordEdit.refine(20, tokens(source), tokens(edited)).apply(before, after), expected)


def test_padding_never_takes_the_map_of_a_word():
    """A source longer than the edit: column 4 of the edit is padding, of the source "the"."""
    edit = WordEdit.refine(10, tokens("a cat on the mat"), tokens("a cat"))
    assert edit.counterpart[:4].tolist() == [0, 1, 2, 6] and edit.shared[:4].all()  # start, a, cat, end
    assert not edit.shared[4:6].any() and edit.shared[6:].all()


def test_replacing_takes_every_map_and_reweighting_multiplies_it():
    before, after = randn(2, 3, 6), randn(2, 3, 6, seed=1)
    assert WordEdit.replace(6).apply(before, after).equal(before)
    heavier = WordEdit.replace(6, {2: 3.0, 4: 0.5}).apply(before, after)
    assert heavier.equal(before * torch.tensor([1, 1, 3, 1, 0.5, 1]))
    refined = WordEdit.refine(6, tokens("a cat"), tokens("a fat cat"), {2: 3.0}).apply(before, after)
    assert refined[..., 2].equal(3 * after[..., 2]) and refined[..., 3].equal(before[..., 2])


def test_a_lengthened_prompt_is_edited_in_each_repetition():
    before, after = randn(2, 3, 6), randn(2, 3, 6, seed=1)
    edit = WordEdit.refine(6, tokens("a cat"), tokens("a fat cat"), {2: 3.0})
    torch.testing.assert_close(
        edit.apply(before.repeat(1, 1, 2), after.repeat(1, 1, 2)), edit.apply(before, after).repeat(1, 1, 2)
    )


def test_the_local_blend_is_the_published_one():
    steps, layers, heads, words = 3, 2, 4, 5
    # One pattern in all of them, so that their mean has peaks.
    seen = (5 * randn(2, 1, 1, 1, 8, 12, words) + randn(2, steps, layers, heads, 8, 12, words)).softmax(-1)
    places = {"source": [1], "edited": [2, 3]}
    blend = LocalBlend(places, 0.8)
    for step in range(steps):
        for layer in range(layers):
            for side, name in enumerate(places):
                blend.look(name, seen[side, step, layer][None])
    alpha = torch.zeros(2, 1, 1, 1, 1, words, dtype=torch.float64)
    for side, chosen in enumerate(places.values()):
        alpha[side, ..., chosen] = 1
    maps = seen.sum(1).reshape(2, layers * heads, 1, 8, 12, words)
    expected = prompt_to_prompt.blend_mask(maps, alpha, (16, 24), 0.8)
    mask = blend.mask((16, 24))
    assert 0 < mask.mean() < 1 and mask.equal(expected.to(mask))


def test_a_blend_of_words_of_one_side_needs_no_other():
    blend = LocalBlend({"source": [], "edited": [1]})
    for side in blend.words:
        blend.look(side, torch.rand(1, 2, 4, 4, 3))
    assert blend.mask((8, 8)).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="no map"):
        LocalBlend({"source": [1]}).mask((8, 8))
