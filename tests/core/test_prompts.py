"""Prompts of a caption with one word replaced, against results by hand; distances and quantiles against numpy's."""

import zlib

import numpy as np
import pytest
import torch

from zerocon_core.language.directions import Embedding
from zerocon_core.language.english import article, in_case_of, regular_plural, same_word
from zerocon_core.language.prompts import (
    Augmentation,
    ExpectedWords,
    Gap,
    RelatedWords,
    ToyWords,
    WordList,
    at_quantiles,
    choose_gap,
    gap_at,
    gather,
    likely_gaps,
    random_prompts,
    spread_prompts,
    text_distances,
)

CAPTION = "a red circle on a striped background"
COLOURS = ["green", "blue", "yellow", "white", "black"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(sentence: str) -> tuple[np.ndarray, np.ndarray]:
    """Token embeddings (7, 5) and a pooled embedding (3,) that depend on every letter."""
    random = np.random.default_rng(zlib.crc32(sentence.encode()))
    return random.normal(size=(7, 5)), random.normal(size=3)


def encode(sentence: str) -> Embedding:
    tokens, pooled = arrays(sentence)
    return torch.from_numpy(tokens)[None], torch.from_numpy(pooled)[None]


def without_pooled(sentence: str) -> Embedding:
    return encode(sentence)[0], None


def with_zeros(sentence: str) -> Embedding:
    return encode(sentence)[0], torch.zeros(1, 3)


# English


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ("a", "cat dog university unicorn unique user useful european one ukulele utensil house horse honeycomb ewe ubiquitous"),
        ("an", "apple Orange old umbrella uncle urn ugly uninteresting hour honest heirloom egg igloo usher oneiric unmade"),
    ],
)
def test_articles_follow_the_sound(expected, words):
    assert {word: article(word) for word in words.split()} == dict.fromkeys(words.split(), expected)


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("dog", "dogs"), ("box", "boxes"), ("bus", "buses"), ("church", "churches"), ("dish", "dishes"), ("city", "cities"),
     ("toy", "toys"), ("woman", "women"), ("human", "humans"), ("fire engine", "fire engines")],
)  # fmt: skip
def test_plurals(singular, plural):
    assert regular_plural(singular) == plural
    assert same_word(singular.upper(), plural) and same_word(plural, singular) and same_word(plural, plural)
    assert not same_word(singular, "cup") and not same_word("cups", plural)


def test_case_follows_the_word_that_was_there():
    assert [in_case_of(p, "blue sky") for p in ("red", "Red", "RED", "R", "")] == [
        "blue sky", "Blue sky", "BLUE SKY", "Blue sky", "blue sky"
    ]  # fmt: skip


# Gaps


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        (CAPTION, "red circle striped background"),
        ("the front-end view of a black car", "front-end view black car"),
        ("a girl playing in a park", "girl park"),
        ("A black and white cat, sitting on the floor", "black white cat floor"),
        ("a tall building and a diamond ring", "tall building diamond ring"),
        ("two dogs running on the beach.", "dogs beach"),
        ("snow on mountains", "snow mountains"),  # no determiner: all but function words
        ("a man is very happy", "man"),
        ("of the and a", ""),
        ("", ""),
    ],
)
def test_nouns_and_adjectives_are_likely(caption, words):
    gaps = likely_gaps(caption)
    assert [gap.word for gap in gaps] == words.split()
    assert all(gap.caption == caption for gap in gaps)


def test_a_gap_is_filled_with_its_article_and_case():
    assert gap_at("a red car", "red").filled("orange") == "an orange car"
    assert gap_at("An  old house", "OLD").filled("new") == "A  new house"
    assert gap_at("AN ORANGE CAKE", "orange").filled("fruit") == "A FRUIT CAKE"
    assert gap_at("Umbrella on a mat", "umbrella").filled("cat") == "Cat on a mat"
    assert gap_at("the red car", "red").filled("orange") == "the orange car"
    assert gap_at("banana ripe", "ripe").filled("old") == "banana old"  # no article at the end of a word
    assert gap_at("a red car and a red cup", "red").filled("blue") == "a blue car and a red cup"
    assert gap_at("a fire engine at night", "fire engine").filled("ambulance") == "an ambulance at night"


def test_words_are_found_whole():
    assert gap_at("a category of cats and a cat", "cat") == Gap("a category of cats and a ", "cat", "")
    with pytest.raises(ValueError, match='"a category" does not contain the word "cat"'):
        gap_at("a category", "cat")


def test_a_word_before_another_content_word_describes_it():
    described = {gap.word for gap in likely_gaps("a black and white cat on a big old mat in the sun") if gap.before_noun}
    assert described == {"black", "white", "big", "old"}


# Sources


def test_toy_words_are_of_one_kind():
    toy = ToyWords()
    assert [gap.word for gap in likely_gaps(CAPTION) if toy.knows(gap.word)] == ["red", "circle", "striped"]
    assert gather(gap_at(CAPTION, "red"), [toy], 9) == COLOURS
    assert gather(gap_at(CAPTION, "circle"), [toy], 9) == ["square", "triangle", "star"]
    assert gather(gap_at(CAPTION, "background"), [toy], 9) == []


def test_the_word_itself_its_plural_and_repetitions_are_left_out():
    own = WordList(["cat", "Cats", "dog", "CAT", "Dog", "bird"])
    assert gather(gap_at("a cat on a mat", "cat"), [own, WordList(["bird", "owl", "dog"])], 9) == ["dog", "bird", "owl"]


def test_each_source_gives_its_best():
    first, second = WordList(["a1", "red", "a2", "a3"]), ExpectedWords(lambda gap: iter(["the", "b1", "a1", "b2", "b3"]))
    assert gather(gap_at(CAPTION, "red"), [first, second], 2) == ["a1", "a2", "b1"]


def test_expected_words_are_no_function_words():
    source = ExpectedWords(lambda gap: ["The", "cat", "with", "dog"])
    assert list(source.candidates(gap_at(CAPTION, "red"))) == ["cat", "dog"]
    assert source.knows("circle") and not source.knows("On")


def test_related_words_know_where_the_word_stands():
    class Database:
        def knows(self, word):
            return word == "red"

        def related(self, word, senses, before_noun):
            return [word, f"sense {senses}", f"before noun {before_noun}"]

    source = RelatedWords(Database(), 3)
    assert source.knows("red") and not source.knows("blue")
    assert gather(gap_at("a red cat", "red"), [source], 9) == ["sense 3", "before noun True"]
    assert gather(gap_at("a cat in red", "red"), [source], 9) == ["sense 3", "before noun False"]


# The choice of the word


def chosen(sources, count: int = 3) -> set[str]:
    return {choose_gap(CAPTION, sources, count, 9, seeded(seed))[0].word for seed in range(30)}


def test_the_first_source_that_knows_a_word_decides():
    anything = ExpectedWords(lambda gap: ["one1", "two", "cat", "dog"])
    assert chosen([anything]) == {"red", "circle", "striped", "background"}
    assert chosen([ToyWords(), anything]) == {"red", "circle", "striped"}
    assert chosen([WordList(["plain", "striped", "wavy", "checked"]), ToyWords()]) == {"striped"}
    assert chosen([WordList(["gold"]), ToyWords()]) == {"red", "circle", "striped"}


def test_words_with_too_few_replacements_are_passed_over():
    assert chosen([ToyWords()], count=5) == {"red"}
    gap, words = choose_gap(CAPTION, [ToyWords()], 6, 9, seeded())
    assert (gap.word, words) == ("red", COLOURS)  # none has six: the one with most


def test_a_caption_without_a_word_to_replace_is_an_error():
    with pytest.raises(ValueError, match='no word of the caption "a cat"'):
        choose_gap("a cat", [ToyWords()], 1, 9, seeded())
    with pytest.raises(ValueError, match='no word of the caption "of the"'):
        choose_gap("of the", [ExpectedWords(lambda gap: ["cat"])], 1, 9, seeded())


# Distances


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("encoder", [encode, without_pooled, with_zeros])
def test_distances_are_one_minus_the_cosine(encoder):
    prompts = ["a blue circle", "a green circle", CAPTION]
    vector = (lambda s: arrays(s)[1]) if encoder is encode else (lambda s: arrays(s)[0].mean(0))
    expected = [cosine_distance(vector(CAPTION), vector(prompt)) for prompt in prompts]
    assert text_distances(encoder, CAPTION, prompts).numpy() == pytest.approx(expected, abs=1e-12)
    assert expected[2] == pytest.approx(0, abs=1e-12)


def test_embeddings_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="NaN or infinite"):
        text_distances(lambda s: (torch.full((1, 2, 3), torch.nan), None), CAPTION, ["x"])


@pytest.mark.parametrize("total", [1, 2, 5, 20, 33])
def test_quantiles_are_numpys(total):
    distances = np.random.default_rng(total).random(total)
    for count in range(1, total + 1):
        chosen = at_quantiles(distances.tolist(), count)
        levels = (2 * np.arange(count) + 1) / (2 * count)
        assert distances[chosen].tolist() == np.quantile(distances, levels, method="inverted_cdf").tolist()
        assert len(set(chosen)) == count


def test_equal_distances_still_give_different_words():
    assert at_quantiles([0.5] * 6, 3) == [0, 2, 4]


# Augmentation


def test_soft_augmentation_spreads_over_the_distances():
    words = [f"word{i}" for i in range(12)]
    found = spread_prompts(gap_at(CAPTION, "red"), words, 4, encode)
    distances = {w: cosine_distance(arrays(CAPTION)[1], arrays(f"a {w} circle on a striped background")[1]) for w in words}
    in_order = sorted(words, key=distances.get)
    assert [f.word for f in found] == [in_order[i] for i in (1, 4, 7, 10)]
    assert [f.distance for f in found] == pytest.approx([distances[f.word] for f in found], abs=1e-12)
    assert [f.prompt for f in found] == [f"a {f.word} circle on a striped background" for f in found]


def test_random_augmentation_draws_without_repeating():
    gap = gap_at(CAPTION, "red")
    draws = [[f.word for f in random_prompts(gap, COLOURS, 3, seeded(seed))] for seed in range(40)]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert {word for draw in draws for word in draw} == set(COLOURS) and len({tuple(draw) for draw in draws}) > 10
    assert draws[7] == [f.word for f in random_prompts(gap, COLOURS, 3, seeded(7))]


def test_random_augmentation_measures_only_what_it_drew():
    heard = []

    def listening(sentence: str) -> Embedding:
        heard.append(sentence)
        return encode(sentence)

    gap = gap_at("a orange circle", "orange")  # the caption is measured as it is, its article not repaired
    found = random_prompts(gap, COLOURS, 2, seeded(), listening)
    assert heard == ["a orange circle", *(f.prompt for f in found)]
    assert found == [Augmentation(f.prompt, f.word, float(text_distances(encode, heard[0], [f.prompt]))) for f in found]


@pytest.mark.parametrize("select", [spread_prompts, lambda *pool: random_prompts(*pool[:3], seeded())])
def test_all_words_can_be_asked_for_but_no_more(select):
    gap = gap_at(CAPTION, "red")
    assert {f.word for f in select(gap, COLOURS, 5, encode)} == set(COLOURS)
    with pytest.raises(ValueError, match='6 prompts were asked for, but there are 5 words to replace "red" with'):
        select(gap, COLOURS, 6, encode)
