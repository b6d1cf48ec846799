"""The many ways in which training says what is in a scene, as token ids of the host's tokenizer."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from common import pack

captions = pack("zerocon_core.tabletop.captions")
scene = pack("zerocon_core.tabletop.scene")

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
CAPTION_SHARE = 0.7

START, END, LENGTH = 49406, 49407, 77
# Stands for every word that the world has no picture of: its embedding stays zero, like that of all words never trained.
UNKNOWN = -1


class Wording:
    """Turns scenes into token ids, each time in other words."""

    def __init__(self, tokenize: Callable[[str], list[int]]) -> None:
        self._ids = lru_cache(maxsize=None)(lambda text: tuple(tokenize(text)))

    def vocabulary(self) -> list[int]:
        """Every id that `tokens` can contain, except `UNKNOWN`."""
        words = " ".join((*OPENINGS, *captions.VOCABULARY, "an the"))
        return sorted({*self._ids(words), START, END})

    def tokens(self, subject: "scene.Scene", rng: np.random.Generator) -> list[int]:
        """`LENGTH` ids that describe the scene, a part of it, or nothing."""
        if rng.random() < EMPTY_SHARE:
            return _framed([])
        words = self._ids(f"{OPENINGS[rng.integers(len(OPENINGS))]} {phrase(subject, rng)}".strip())
        return _framed(_scattered(words, rng) if rng.random() < 0.3 else list(words))


def phrase(subject: "scene.Scene", rng: np.random.Generator) -> str:
    """Mostly all that a caption says, its solids in any order, else a part of it."""
    floor = f"{subject.floor.pattern} floor"
    solids = [subject.solids[i] for i in rng.permutation(len(subject.solids))]
    if rng.random() < CAPTION_SHARE:
        return " and ".join(f"a {s}" for s in solids) + f" on a {floor}"
    first = solids[0]
    parts = (
        " and ".join(f"a {s.colour} {s.shape}" for s in solids),
        " and ".join(f"a {s.shape}" for s in solids) + f" on a {floor}",
        f"the {first.colour} {first.shape} on the {floor}",
        f"a {first}",
        f"a {first.material} {first.shape}",
        f"a {floor}",
        f"{first.colour} {first.shape}",
        first.colour,
        first.shape,
    )
    return parts[rng.integers(len(parts))]


def _scattered(words: tuple[int, ...], rng: np.random.Generator) -> list[int]:
    """The words among unknown ones: some before, a few after, seldom one in between."""
    between = [id for word in words for id in ([UNKNOWN, word] if rng.random() < 0.06 else [word])]
    return [UNKNOWN] * int(rng.integers(9)) + between + [UNKNOWN] * int(rng.integers(5))


def _framed(words: list[int]) -> list[int]:
    """Start, words, end, and ends for padding, as the host's tokenizer frames them."""
    return [START, *words] + [END] * (LENGTH - 1 - len(words))
