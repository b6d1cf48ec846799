"""Cross-attention maps as heat maps: where in the image the model sees a word of the prompt.

The maps are averaged over heads and layers, all resized to one grid, as prompt-to-prompt (Hertz et al. 2022) and DAAM (Tang et
al. 2022) look at them. Ours: one noise level instead of a whole sampling, the linear resizing, the colours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

INFERNO = [
    (0, 0, 4), (20, 11, 52), (57, 9, 99), (95, 19, 110), (133, 33, 107), (169, 46, 94),
    (203, 65, 73), (230, 93, 47), (247, 132, 16), (252, 174, 18), (245, 219, 76), (252, 255, 164),
]  # fmt: skip
"""Matplotlib's colour map of that name (CC0) at even distances."""


class Token(NamedTuple):
    """A token of a prompt: its place in the prompt's embedding, and the tokenizer's text of it ("circle</w>")."""

    position: int
    text: str


def positions_of(phrase: Sequence[str], tokens: Sequence[Token]) -> list[int]:
    """The places of all occurrences of `phrase`, as its tokens' texts, in the tokens of a prompt; empty if there is none."""
    texts, phrase = [token.text for token in tokens], list(phrase)
    starts = [i for i in range(len(texts) - len(phrase) + 1) if phrase and texts[i : i + len(phrase)] == phrase]
    return [token.position for start in starts for token in tokens[start : start + len(phrase)]]


def average_maps(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean over layers of the mean over heads. `maps` (B, heads, h, w, tokens), each resized to `size`: (B, tokens, H, W)."""
    resized = (resize(probabilities.float().mean(1).movedim(-1, 1), size) for probabilities in maps)
    return sum(resized, torch.zeros(())) / len(maps)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, N, h, w) in another size, by linear interpolation; smaller ones are averages."""
    return F.interpolate(maps, size, mode="bilinear", antialias=True)


def heat_of_words(maps: Tensor, words: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The mean map of the tokens of each word, and the share of all attention that these tokens get together.

    `maps` (B, tokens, H, W); `words` are lists of token positions. Returns (B, words, H, W) and (B, words).
    """
    heat = torch.stack([maps[:, word].mean(1) for word in words], 1)
    shares = torch.stack([maps[:, word].sum((1, 2, 3)) for word in words], 1)
    return heat, shares / maps.sum((1, 2, 3)).unsqueeze(1)


def normalize(maps: Tensor) -> Tensor:
    """(M - min) / (max - min) of each map (..., H, W); a constant map becomes 0."""
    lowest, highest = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - lowest) / (highest - lowest).clamp_min(torch.finfo(maps.dtype).tiny)


def colours(heat: Tensor) -> Tensor:
    """Heat from 0 to 1, of any shape, as colours (..., 3) from black over red to light yellow."""
    table = torch.tensor(INFERNO, dtype=heat.dtype, device=heat.device) / 255
    place = heat.clamp(0, 1) * (len(table) - 1)
    below = place.long().clamp_max(len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (place - below).unsqueeze(-1))
