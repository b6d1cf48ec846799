"""Attention injection: an edit is sampled beside its source and takes over some of what the model computed there.

Prompt-to-Prompt (Hertz et al. 2022), Plug-and-Play (Tumanyan et al. 2022) and MasaCtrl (Cao et al. 2023) share one form. In
one pass the model sees the source, the edit and the negative prompt, and in chosen layers rows of the edit are replaced by
those of the source:

    self-attention maps    softmax(q k / sqrt(d)) of the source, the edit's own v     Prompt-to-Prompt, Plug-and-Play
    self-attention content the edit's own q, k and v of the source                    MasaCtrl
    cross-attention maps   probabilities of the tokens that both prompts share        Prompt-to-Prompt
    features               what a residual block adds                                 Plug-and-Play

No gradients. The equations and numbers are those of the published code; the source is at the latents of its inversion instead of
being sampled again, as Direct Inversion (Ju et al. 2024) has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..language.tokens import Token


class Injected(NamedTuple):
    """What is injected at one step."""

    maps: bool = False
    """Self-attention maps."""
    content: bool = False
    """Self-attention content."""
    words: bool = False
    """Cross-attention maps."""
    features: bool = False
    """Of the residual block."""


@dataclass(frozen=True)
class PromptToPrompt:
    """Cross-attention maps in the first `cross` of the steps and self-attention maps in the first `self_`, as shares."""

    cross: float = 0.8
    self_: float = 0.4
    negative: ClassVar[bool] = False
    """Whether the negative prompt takes over from the source too."""

    def at(self, step: int, steps: int) -> Injected:
        return Injected(maps=step < share(self.self_, steps), words=step < share(self.cross, steps))


@dataclass(frozen=True)
class PlugAndPlay:
    """Self-attention maps in the first `attention` of the steps and features in the first `features`, as shares."""

    attention: float = 0.5
    features: float = 0.8
    negative: ClassVar[bool] = True

    def at(self, step: int, steps: int) -> Injected:
        return Injected(maps=step < share(self.attention, steps), features=step < share(self.features, steps))


@dataclass(frozen=True)
class MasaCtrl:
    """Self-attention content from the share `start` of the steps on: the published code starts with step 4 of 50."""

    start: float = 0.08
    negative: ClassVar[bool] = True

    def at(self, step: int, steps: int) -> Injected:
        return Injected(content=step >= share(self.start, steps))


Method = PromptToPrompt | PlugAndPlay | MasaCtrl


def share(part: float, steps: int) -> int:
    """How many whole steps are `part` of them."""
    return int(part * steps + 1e-6)


# Prompt-to-Prompt's words


def aligned(source: Sequence[str], edited: Sequence[str]) -> list[int | None]:
    """For each token of the edit its counterpart in the source, None for a new one: a longest common subsequence.

    Of several, the one that Prompt-to-Prompt's Needleman-Wunsch finds (gap 0, match 1, mismatch -1: unequal tokens never pair).
    """
    best = [[0] * (len(edited) + 1) for _ in range(len(source) + 1)]
    for i, old in enumerate(source, 1):
        for j, new in enumerate(edited, 1):
            best[i][j] = max(best[i - 1][j], best[i][j - 1], best[i - 1][j - 1] + (1 if old == new else -1))
    counterparts: list[int | None] = [None] * len(edited)
    i, j = len(source), len(edited)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            counterparts[j] = i
    return counterparts


class WordEdit(NamedTuple):
    """What becomes of the columns of the cross-attention maps: one entry a token of the prompt's embedding, (tokens,)."""

    counterpart: Tensor
    """Which column of the source a column takes, int64."""
    shared: Tensor
    """Whether it takes that, or stays the edit's own."""
    factor: Tensor
    """Of the column, whichever it is."""

    @classmethod
    def replace(cls, count: int, factors: Mapping[int, float] | None = None) -> "WordEdit":
        """Every token takes the map of the source's token at the same place; `factors` of some places."""
        return cls(torch.arange(count), torch.ones(count, dtype=torch.bool), factors_of(count, factors or {}))

    @classmethod
    def refine(
        cls, count: int, source: Sequence[Token], edited: Sequence[Token], factors: Mapping[int, float] | None = None
    ) -> "WordEdit":
        """Tokens that both prompts share take the source's maps, new ones keep their own.

        `source` and `edited` are the texts' tokens. The token after the text, which ends it, is shared; so is padding where both
        prompts have it. (The published code also lets padding take the map of a word that stands there in a longer source.)
        """
        counterpart, shared = torch.arange(count), torch.ones(count, dtype=torch.bool)
        ends = [tokens[-1].position + 1 if tokens else 1 for tokens in (source, edited)]
        shared[[token.position for token in source]] = False
        for token, place in zip(edited, aligned([t.text for t in source], [t.text for t in edited]), strict=True):
            shared[token.position] = place is not None
            counterpart[token.position] = token.position if place is None else source[place].position
        if max(ends) < count:
            counterpart[ends[1]], shared[ends[1]] = ends[0], True
        return cls(counterpart, shared, factors_of(count, factors or {}))

    def on(self, device: torch.device) -> "WordEdit":
        return WordEdit(*(values.to(device) for values in self))

    def repeated(self, times: int) -> "WordEdit":
        """The same for prompts that stand so many times in a row, as the host lengthens them to batch them with a longer one."""
        places = [self.counterpart + number * len(self.counterpart) for number in range(times)]
        return WordEdit(torch.cat(places), self.shared.repeat(times), self.factor.repeat(times))

    def apply(self, source: Tensor, edited: Tensor) -> Tensor:
        """The edit's maps (..., tokens) after the source's were written to them."""
        times = edited.shape[-1] // len(self.counterpart)
        counterpart, shared, factor = self if times == 1 else self.repeated(times)
        return torch.where(shared, source[..., counterpart], edited) * factor


def factors_of(count: int, factors: Mapping[int, float]) -> Tensor:
    """Factors by place among `count` tokens, 1 elsewhere."""
    return torch.tensor([factors.get(place, 1.0) for place in range(count)])


class LocalBlend:
    """Where an edit belongs: the cross-attention of chosen words in source and edit, summed over the steps so far.

    Prompt-to-Prompt's: mean over layers and heads, the greatest of each 3x3, in the latent's size by nearest neighbours, above
    `threshold` times its greatest value in either of the two. The edit's maps are those after the source's were written to them.
    """

    def __init__(self, words: Mapping[str, Sequence[int]], threshold: float = 0.3):
        self.words = words
        """The places of the words' tokens, by the name of the side."""
        self.threshold = threshold
        self.seen: dict[str, Tensor] = {}

    def look(self, side: str, probabilities: Tensor) -> None:
        """Adds the maps (B, heads, h, w, tokens) of one layer to what was seen of `side`."""
        places = self.words[side]
        if places:
            seen = probabilities[..., places].sum(-1).mean(1)
            self.seen[side] = self.seen[side] + seen if side in self.seen else seen

    def mask(self, size: tuple[int, int]) -> Tensor:
        """(B, 1, H, W) of zeros and ones. Raises ValueError before anything was seen."""
        if not self.seen:
            raise ValueError("no map of the words was seen")
        return torch.stack([self.of(seen, size) for seen in self.seen.values()]).amax(0)

    def of(self, seen: Tensor, size: tuple[int, int]) -> Tensor:
        maps = F.interpolate(F.max_pool2d(seen.unsqueeze(1), 3, 1, 1), size)
        return (maps > self.threshold * maps.amax((2, 3), keepdim=True)).to(seen)
