"""The many ways in which training says what is in a scene, as token ids of the host's tokenizer."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import comfy.sd
import numpy as np
from zerocon_pack.zerocon_core.toyworld import scene

# The empty one thrice: every third phrase stands alone.
OPENINGS = (
    *[""] * 3,
    "a photo of",
    "photo of",
    "a picture of",
    "an image of",
    "a photograph of",
    "a drawing of",
    "a rendering of",
)
EMPTY_SHARE = 0.1

START, END, LENGTH = 49406, 49407, 77
# Stands for every word that the world has no picture of: its embedding stays zero, like that of all words never trained.
UNKNOWN = -1


class Wording:
    """Turns scenes into token ids, each time in other words.

    `words` are all that `phrase` uses to describe a scene; a share of `scattered` phrases stands among words without a picture.
    """

    def __init__(
        self,
        tokenize: Callable[[str], list[int]],
        words: tuple[str, ...],
        phrase: Callable[[Any, np.random.Generator], str],
        scattered: float,
    ) -> None:
        self._words, self._phrase, self._scattered = words, phrase, scattered
        self._ids = lru_cache(maxsize=None)(lambda text: tuple(tokenize(text)))

    def vocabulary(self) -> list[int]:
        """Every id that `tokens` can contain, except `UNKNOWN`."""
        return sorted({*self._ids(" ".join((*OPENINGS, *self._words))), START, END})

    def tokens(self, subject: Any, rng: np.random.Generator) -> list[int]:
        """`LENGTH` ids that describe the scene, a part of it, or nothing."""
        if rng.random() < EMPTY_SHARE:
            return _framed([])
        words = self._ids(f"{OPENINGS[rng.integers(len(OPENINGS))]} {self._phrase(subject, rng)}".strip())
        return _framed(_scattered(words, rng) if rng.random() < self._scattered else list(words))


def word_ids(clip: comfy.sd.CLIP, text: str) -> list[int]:
    """The text's token ids by the host's tokenizer, without start and end."""
    return [id for id, _ in clip.tokenize(text)["l"][0] if id < START]


def phrase(subject: scene.Scene, rng: np.random.Generator) -> str:
    """The caption in six of ten cases, else one of its parts."""
    colour, shape, pattern = subject.colour, subject.shape, subject.pattern
    parts = (
        f"a {colour} {shape}",
        f"the {colour} {shape} on the {pattern} background",
        f"{colour} {shape}",
        f"a {shape} on a {pattern} background",
        f"a {pattern} background",
        f"a {shape}",
        colour,
        shape,
        pattern,
    )
    return scene.caption(subject) if rng.random() < 0.6 else parts[rng.integers(len(parts))]


def _scattered(words: tuple[int, ...], rng: np.random.Generator) -> list[int]:
    """The words among unknown ones: some before, a few after, seldom one in between."""
    between = [id for word in words for id in ([UNKNOWN, word] if rng.random() < 0.06 else [word])]
    return [UNKNOWN] * int(rng.integers(9)) + between + [UNKNOWN] * int(rng.integers(5))


def _framed(words: list[int]) -> list[int]:
    """Start, words, end, and ends for padding, as the host's tokenizer frames them."""
    return [START, *words] + [END] * (LENGTH - 1 - len(words))
