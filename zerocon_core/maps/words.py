"""Cross-attention maps as heat maps: where in the image the model sees a word of the prompt.

The maps are averaged over heads and layers, all resized to one grid, as prompt-to-prompt (Hertz et al. 2022) and DAAM (Tang et
al. 2022) look at them. Ours: one noise level instead of a whole sampling, the linear resizing.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..language.tokens import Token, places_of, spans, spelled


class Word(NamedTuple):
    """What one heat map is of: its name, and the places of its tokens in the prompt's embedding."""

    name: str
    positions: list[int]


def find_words(phrases: Iterable[tuple[str, Sequence[str]]], tokens: Sequence[Token]) -> list[Word]:
    """Words or phrases, each with its tokens' texts, among the tokens of a prompt. Raises ValueError for those that it lacks."""
    found = [Word(name, [*places_of(spelled(texts), tokens)] if texts else []) for name, texts in phrases]
    if missing := [f'"{word.name}"' for word in found if not word.positions]:
        words = dict.fromkeys(spelled(token.text for token in tokens).split())
        raise ValueError(f"the prompt does not contain {', '.join(missing)}; choose from its words: {', '.join(words)}")
    return found


def name_tokens(positions: Iterable[int], tokens: Sequence[Token]) -> list[Word]:
    """Single tokens, each named by its place and, where it is among `tokens`, by its text."""
    text, spanned = spans(tokens)
    texts = {span.token.position: text[span.start : span.end] for span in spanned}
    return [Word(f"{position} {texts.get(position, '')}".strip(), [position]) for position in positions]


def average_maps(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean over layers of the mean over heads. `maps` (B, heads, h, w, tokens), each resized to `size`: (B, tokens, H, W)."""
    resized = (resize(probabilities.float().mean(1).movedim(-1, 1), size) for probabilities in maps)
    return sum(resized, torch.zeros(())) / len(maps)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, N, h, w) in another size, by linear interpolation; smaller ones are averages."""
    return F.interpolate(maps, size, mode="bilinear", antialias=True)


def heat_of_words(maps: Tensor, words: Sequence[Word]) -> tuple[Tensor, Tensor]:
    """The mean map of the tokens of each word, and the share of all attention that these tokens get together.

    `maps` (B, tokens, H, W). Returns (B, words, H, W) and (B, words).
    """
    heat = torch.stack([maps[:, word.positions].mean(1) for word in words], 1)
    shares = torch.stack([maps[:, word.positions].sum((1, 2, 3)) for word in words], 1)
    return heat, shares / maps.sum((1, 2, 3)).unsqueeze(1)


def normalize(maps: Tensor) -> Tensor:
    """(M - min) / (max - min) of each map (..., H, W); a constant map becomes 0."""
    lowest, highest = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - lowest) / (highest - lowest).clamp_min(torch.finfo(maps.dtype).tiny)
