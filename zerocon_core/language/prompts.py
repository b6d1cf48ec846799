"""Prompt augmentation (Bodur et al. 2024, sections 3.1 and 3.4): several target prompts of a caption, one word replaced in each.

The paper masks a random noun or adjective, gathers candidates from BERT and WordNet (synonyms, antonyms, co-hyponyms) and draws
prompts from these at random or, as soft prompt augmentation, by the distance of their CLIP embeddings from the caption's. Here a
source of candidates is any object with the two methods of `Source`.

Ours: how a noun or an adjective is recognised, the word list and the toy words as sources, repairing the article, and the
quantiles that "differing similarity levels" are read as.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..toyworld.scene import COLOURS, PATTERNS, SHAPES
from .directions import Embedding
from .english import DETERMINERS, FUNCTION_WORDS, PARTICIPLE, WORD, article, in_case_of, same_word
from .text import find_phrase
from .wordnet import WordNet


class Gap(NamedTuple):
    """A caption with one word taken out."""

    before: str
    word: str
    after: str

    @property
    def caption(self) -> str:
        return self.before + self.word + self.after

    @property
    def before_noun(self) -> bool:
        """Whether another content word follows, at once or behind "and", so that this one may describe it."""
        following = re.match(rf"\s+(?:(?:and|or)\s+)?({WORD.pattern})", self.after)
        return following is not None and following[1].lower() not in FUNCTION_WORDS

    def filled(self, word: str) -> str:
        """The caption with `word` in the gap, in the case of the word that was there and behind the article that fits it."""
        before = re.sub(
            r"\b(an?)(\s+)$", lambda found: in_case_of(found[1], article(word)) + found[2], self.before, flags=re.IGNORECASE
        )
        return before + in_case_of(self.word, word) + self.after


class Source(Protocol):
    """Where replacements come from."""

    def knows(self, word: str) -> bool:
        """Whether this source takes the word for one to replace."""

    def candidates(self, gap: Gap) -> Iterable[str]:
        """Replacements, the best first."""


@dataclass(frozen=True)
class WordList:
    """The user's words. They replace the one of them that the caption holds."""

    words: Sequence[str]

    def knows(self, word: str) -> bool:
        return any(same_word(word, other) for other in self.words)

    def candidates(self, gap: Gap) -> Sequence[str]:
        return self.words


@dataclass(frozen=True)
class ToyWords:
    """Colours, shapes and patterns of the toy world, each for its own kind."""

    kinds: tuple[tuple[str, ...], ...] = (COLOURS, SHAPES, PATTERNS)

    def knows(self, word: str) -> bool:
        return any(word.lower() in kind for kind in self.kinds)

    def candidates(self, gap: Gap) -> list[str]:
        return [word for kind in self.kinds if gap.word.lower() in kind for word in kind]


@dataclass(frozen=True)
class RelatedWords:
    """Synonyms, antonyms and co-hyponyms in the `senses` commonest meanings."""

    database: WordNet
    senses: int

    def knows(self, word: str) -> bool:
        return self.database.knows(word)

    def candidates(self, gap: Gap) -> list[str]:
        return self.database.related(gap.word, self.senses, gap.before_noun)


@dataclass(frozen=True)
class ExpectedWords:
    """What a masked language model expects in the gap: `ranking` gives words, the likeliest first."""

    ranking: Callable[[Gap], Iterable[str]]

    def knows(self, word: str) -> bool:
        return word.lower() not in FUNCTION_WORDS

    def candidates(self, gap: Gap) -> Iterable[str]:
        return filter(self.knows, self.ranking(gap))


class Augmentation(NamedTuple):
    """A target prompt and the word that is new in it. `distance` from the caption, if that was measured."""

    prompt: str
    word: str
    distance: float | None


def gap_at(caption: str, word: str) -> Gap:
    """The first place of a word or phrase in the caption. Raises ValueError if there is none."""
    found = find_phrase(caption, word)
    if found is None:
        raise ValueError(f'the caption "{caption}" does not contain the word "{word}"')
    return _gap(found)


def likely_gaps(caption: str) -> list[Gap]:
    """The words of a caption that are probably nouns and adjectives (ours).

    They stand behind a determiner, up to the next function word or participle in -ing. A caption without determiners gives all
    its words but function words.
    """
    content: list[Gap] = []
    found_in_phrases: list[Gap] = []
    phrase: list[Gap] | None = None  # the words so far behind a determiner
    for found in WORD.finditer(caption):
        word = found[0].lower()
        if word in FUNCTION_WORDS:
            if word not in ("and", "or"):
                phrase = [] if word in DETERMINERS else None
            continue
        content.append(_gap(found))
        if phrase and PARTICIPLE.match(word):
            phrase = None
        if phrase is not None:
            phrase.append(content[-1])
            found_in_phrases.append(content[-1])
    return found_in_phrases or content


def gather(gap: Gap, sources: Sequence[Source], limit: int) -> list[str]:
    """What can fill the gap: the first `limit` words of each source, no word twice and not the one that was there."""
    words: dict[str, str] = {}
    for source in sources:
        fitting = (word for word in source.candidates(gap) if not same_word(word, gap.word))
        for word in islice(fitting, limit):
            words.setdefault(word.lower(), word)
    return list(words.values())


def choose_gap(
    caption: str, sources: Sequence[Source], count: int, limit: int, generator: torch.Generator
) -> tuple[Gap, list[str]]:
    """A random word of the caption that has `count` replacements, with these; or the one that has most.

    It is one that the first of the `sources` knows, or else the next. Raises ValueError if none knows any.
    """
    gaps = likely_gaps(caption)
    known = next(filter(None, ([gap for gap in gaps if source.knows(gap.word)] for source in sources)), None)
    if known is None:
        raise ValueError(f'the chosen sources replace no word of the caption "{caption}"; name a word or add a source')
    most: tuple[Gap, list[str]] = known[0], []
    for i in torch.randperm(len(known), generator=generator).tolist():
        words = gather(known[i], sources, limit)
        if len(words) >= count:
            return known[i], words
        most = max(most, (known[i], words), key=lambda found: len(found[1]))
    return most


def spread_prompts(gap: Gap, words: Sequence[str], count: int, encode: Callable[[str], Embedding]) -> list[Augmentation]:
    """Soft prompt augmentation: the `count` words of a pool at quantiles of the distance from the caption, from close to far.

    Raises ValueError if the pool is too small.
    """
    _check_size(gap, words, count)
    distances = text_distances(encode, gap.caption, map(gap.filled, words)).tolist()
    return [Augmentation(gap.filled(words[i]), words[i], distances[i]) for i in at_quantiles(distances, count)]


def random_prompts(
    gap: Gap, words: Sequence[str], count: int, generator: torch.Generator, encode: Callable[[str], Embedding] | None = None
) -> list[Augmentation]:
    """`count` random words of a pool, their distances measured if there is an `encode`. Raises ValueError if it is too small."""
    _check_size(gap, words, count)
    drawn = [words[i] for i in torch.randperm(len(words), generator=generator)[:count].tolist()]
    prompts = [gap.filled(word) for word in drawn]
    if encode is None:
        return [Augmentation(prompt, word, None) for prompt, word in zip(prompts, drawn, strict=True)]
    return [Augmentation(*row) for row in zip(prompts, drawn, text_distances(encode, gap.caption, prompts).tolist(), strict=True)]


def text_distances(encode: Callable[[str], Embedding], caption: str, prompts: Iterable[str]) -> Tensor:
    """1 - cos between the embeddings of the caption and of each prompt, in float64 (prompts,).

    Raises ValueError for embeddings that are not finite.
    """
    source = sentence_embedding(*encode(caption))
    targets = torch.stack([sentence_embedding(*encode(prompt)) for prompt in prompts])
    distances = (1 - torch.cosine_similarity(source[None], targets)).clamp(min=0)  # not -1e-17
    if not distances.isfinite().all():
        raise ValueError("the text encoder gives NaN or infinite values; load the CLIP again")
    return distances


def sentence_embedding(tokens: Tensor, pooled: Tensor | None) -> Tensor:
    """(d,) in float64: the pooled embedding, which is CLIP's at the end token, or the mean over tokens (1, n, d) without one.

    Text encoders that can do without their CLIP part give zeros then.
    """
    return (tokens.mean(1) if pooled is None or not pooled.any() else pooled)[0].double()


def at_quantiles(distances: Sequence[float], count: int) -> list[int]:
    """Indices of the distances at the quantiles 1/2K, 3/2K, ... (2K-1)/2K of their distribution, for K = `count`, in that order.

    The quantile at q of n distances is the smallest one with at least q n of them up to it, so `count` <= n gives different ones.
    """
    order = sorted(range(len(distances)), key=distances.__getitem__)
    return [order[((2 * k + 1) * len(distances) - 1) // (2 * count)] for k in range(count)]


def _check_size(gap: Gap, words: Sequence[str], count: int) -> None:
    if count > len(words):
        raise ValueError(
            f'{count} prompts were asked for, but there are {len(words)} words to replace "{gap.word}" with; '
            "ask for fewer, or allow another source, more meanings or a larger pool"
        )


def _gap(found: re.Match[str]) -> Gap:
    return Gap(found.string[: found.start()], found[0], found.string[found.end() :])
