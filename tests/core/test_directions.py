"""Phrases, sentence banks and the mean of their embeddings, with a made-up text encoder."""

import zlib

import numpy as np
import pytest
import torch

from zerocon_core.language.directions import (
    TEMPLATES,
    Embedding,
    edit_direction,
    mean_embedding,
    paired_sentences,
    phrases,
    shift_tokens,
)


def arrays(sentence: str) -> tuple[np.ndarray, np.ndarray]:
    """Token embeddings (7, 5) and a pooled embedding (3,) that depend on every letter."""
    random = np.random.default_rng(zlib.crc32(sentence.encode()))
    return random.normal(size=(7, 5)).astype(np.float32), random.normal(size=3).astype(np.float32)


def encode(sentence: str) -> Embedding:
    tokens, pooled = arrays(sentence)
    return torch.from_numpy(tokens)[None], torch.from_numpy(pooled)[None]


def without_pooled(sentence: str) -> Embedding:
    return encode(sentence)[0], None


# Sentence banks


def test_templates_each_hold_one_place_for_the_phrase():
    assert len(TEMPLATES) == len(set(TEMPLATES)) >= 64
    assert all(template.count("{}") == 1 and "=>" not in template for template in TEMPLATES)
    assert all(template == " ".join(template.split()) for template in TEMPLATES)


def test_templates_are_filled_on_both_sides():
    sources, targets = paired_sentences("a cat", "a dog")
    assert len(sources) == len(targets) == len(TEMPLATES)
    for template, source, target in zip(TEMPLATES, sources, targets, strict=True):
        assert source == template.format("a cat") and target == template.format("a dog")


def test_templates_and_pairs_mix():
    bank = ["a photo of {}", "", "  a cat on a mat =>  a dog on a rug ", "   ", "{} and {}", "x => y => z"]
    assert paired_sentences("a cat", "a dog", bank) == (
        ["a photo of a cat", "a cat on a mat", "a cat and a cat", "x"],
        ["a photo of a dog", "a dog on a rug", "a dog and a dog", "y => z"],
    )


def test_a_phrase_with_braces_is_taken_literally():
    assert paired_sentences("{0}", "{name}", ["see {}"]) == (["see {0}"], ["see {name}"])


def test_a_line_of_neither_form_is_an_error():
    with pytest.raises(ValueError, match='the line "just words", which holds neither {} nor =>'):
        paired_sentences("a", "b", ["a photo of {}", "  just words "])


@pytest.mark.parametrize("bank", [[], ["", "  "]])
def test_an_empty_bank_is_an_error(bank):
    with pytest.raises(ValueError, match="empty"):
        paired_sentences("a", "b", bank)


# Directions

SOURCES, TARGETS = paired_sentences("a cat", "a dog")
TARGETS = [*TARGETS, "one more sentence on this side"]


def test_direction_is_the_difference_of_the_means():
    direction = edit_direction(encode, SOURCES, TARGETS)
    for part, found in enumerate(direction):
        target, source = (np.mean([arrays(s)[part].astype(np.float64) for s in side], axis=0) for side in (TARGETS, SOURCES))
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found[0].numpy(), target - source, rtol=0, atol=2e-7)
    assert direction.tokens.shape == (1, 7, 5) and direction.pooled.shape == (1, 3)


def test_order_of_the_sentences_does_not_matter():
    direction, reverse = edit_direction(encode, SOURCES, TARGETS), edit_direction(encode, SOURCES[::-1], TARGETS[::-1])
    assert direction.tokens.equal(reverse.tokens) and direction.pooled.equal(reverse.pooled)


def test_swapping_from_and_to_negates():
    there, back = edit_direction(encode, SOURCES, TARGETS), edit_direction(encode, TARGETS, SOURCES)
    assert there.tokens.equal(-back.tokens) and there.pooled.equal(-back.pooled)
    nowhere = edit_direction(encode, SOURCES, SOURCES)
    assert not nowhere.tokens.any() and not nowhere.pooled.any()


def test_many_sentences_lose_no_precision():
    """4097 times the same value: a sum in float32, or in float16 as encoders give it, would drift."""
    value = torch.tensor([[[0.1, 1000.1]]]).half()
    tokens, _ = mean_embedding(lambda _: (value, None), ["same"] * 4097)
    assert tokens.equal(value.float())


def test_an_encoder_without_a_pooled_embedding():
    direction = edit_direction(without_pooled, SOURCES, TARGETS)
    assert direction.pooled is None
    assert direction.tokens.equal(edit_direction(encode, SOURCES, TARGETS).tokens)


# Phrases

CAPTION = "A cat on a  red mat"


@pytest.mark.parametrize(
    ("caption", "source", "target", "expected"),
    [
        (CAPTION, "a cat", "a dog", ("a cat", "a dog")),
        (CAPTION, " a cat ", "\ta dog\n", ("a cat", "a dog")),
        ("", "a cat", "a dog", ("a cat", "a dog")),  # with both phrases the caption is not needed
        (CAPTION, "a bird", "a dog", ("a bird", "a dog")),  # nor need it hold them
        (f" {CAPTION} ", "", "a dog", (CAPTION, "a dog")),
        (CAPTION, "red", "", (CAPTION, "A cat on a mat")),  # removal closes the gap
        (CAPTION, "ON A  RED MAT", "", (CAPTION, "A cat")),  # in any case
        ("a cat and a cat", "a cat", "", ("a cat and a cat", "and a cat")),  # once
        ("a category of cat", "cat", "", ("a category of cat", "a category of")),  # whole words
        ("a cat", "A cat", "  ", ("a cat", "")),
    ],
)
def test_phrases(caption, source, target, expected):
    assert phrases(caption, source, target) == expected


@pytest.mark.parametrize(
    ("caption", "source", "target", "message"),
    [
        (CAPTION, "", " ", "both"),
        ("", "", "a dog", "caption are both empty"),
        (CAPTION, "a bird", "", "does not contain it"),
        ("", "a bird", "", "does not contain it"),
        (CAPTION, "a dog", "A dog", "zero"),
        ("a dog", "", "A Dog ", "zero"),
    ],
)
def test_phrases_that_leave_nothing_to_do_are_an_error(caption, source, target, message):
    with pytest.raises(ValueError, match=message):
        phrases(caption, source, target)


# Applying a direction


@pytest.mark.parametrize(("tokens", "reach"), [(7, 7), (4, 7), (14, 7)])
@pytest.mark.parametrize("strength", [1.0, -0.5, 2.5])
def test_shift_tokens_adds_where_both_have_tokens(tokens, reach, strength):
    random = np.random.default_rng(0)
    c, delta = random.normal(size=(2, tokens, 5)), random.normal(size=(1, reach, 5))
    expected = c.copy()
    for sample in range(2):
        for token in range(min(tokens, reach)):
            expected[sample, token] += strength * delta[0, token]
    given, direction = torch.from_numpy(c.copy()), torch.from_numpy(delta.copy())
    np.testing.assert_allclose(shift_tokens(given, direction, strength).numpy(), expected, rtol=1e-12)
    assert given.equal(torch.from_numpy(c)) and direction.equal(torch.from_numpy(delta))


def test_shift_tokens_keeps_the_type_of_the_tokens():
    shifted = shift_tokens(torch.ones(1, 2, 3).half(), torch.full((1, 2, 3), 0.5), 1.0)
    assert shifted.dtype == torch.float16 and shifted.equal(torch.full((1, 2, 3), 1.5).half())


def test_strength_0_is_off():
    tokens = torch.randn(1, 7, 5)
    tokens[0, 0, 0] = -0.0  # adding 0 would lose the sign
    shifted = shift_tokens(tokens, torch.full((1, 7, 5), float("inf")), 0.0)
    assert shifted.view(torch.int32).equal(tokens.view(torch.int32))
