"""Edit directions in text-embedding space (Parmar et al. 2023, section 3.2; found from a caption as in Si et al. 2025).

A direction is mean(TE(target sentences)) - mean(TE(source sentences)) over paired sentences, token by token, where TE is the text
encoder of the diffusion model itself. Added to the embedding of the source caption it gives the condition of the edit.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .text import find_phrase

TEMPLATES = (
    "{}", "a photo of {}", "a photograph of {}", "a picture of {}", "an image of {}", "a painting of {}", "a drawing of {}",
    "a close-up photo of {}", "a cropped photo of {}", "a good photo of {}", "a bright photo of {}", "a dark photo of {}",
    "a clean photo of {}", "a detailed photo of {}", "a high resolution photo of {}", "a low resolution photo of {}",
    "a blurry photo of {}", "a black and white photo of {}", "a colour photo of {}", "a professional photo of {}",
    "an amateur photo of {}", "a studio photo of {}", "an outdoor photo of {}", "an indoor photo of {}", "a photo that shows {}",
    "a photo with {} in it", "a print of {}", "a still image of {}", "a simple picture of {}", "a sharp image of {}",
    "a wide view of {}", "{} and nothing else", "this is {}", "this is a photo of {}", "there is {} in the picture",
    "there is {} in the scene", "a scene with {}", "a view of {}", "a portrait of {}", "a snapshot of {}",
    "a picture that shows {}", "an image that shows {}", "a postcard of {}", "a poster of {}", "a sketch of {}",
    "an illustration of {}", "a rendering of {}", "a 3d render of {}", "a watercolour of {}", "an oil painting of {}",
    "{} in the middle of the picture", "{} on the left", "{} on the right", "{} in the foreground", "{} in the background",
    "{} in daylight", "{} at night", "{} at sunset", "{} in the morning", "{} seen from above", "{} seen from the side",
    "{} seen from far away", "{} seen up close", "{} in the city", "{} in nature", "{} in a room", "{} on a table",
    "{} on the ground", "{} under the sky", "{} in front of a wall",
)  # fmt: skip
"""Carriers that a phrase is put into on both sides, so that all but the phrase cancels out of the difference (ours)."""

Embedding = tuple[Tensor, Tensor | None]
"""Token embeddings (1, tokens, d) of one sentence, and its pooled embedding (1, d) where the model family has one."""


class EditDirection(NamedTuple):
    """Difference of mean embeddings: `tokens` (1, tokens, d), `pooled` (1, d) or None; (B, ...) where each image has its own."""

    tokens: Tensor
    pooled: Tensor | None


def paired_sentences(source: str, target: str, bank: Iterable[str] = TEMPLATES) -> tuple[list[str], list[str]]:
    """Source and target sentences from the lines of a bank: templates with {} or pairs "source => target".

    Empty lines are skipped. Raises ValueError for a line of neither form and for a bank without sentences.
    """
    sources, targets = [], []
    for line in filter(None, map(str.strip, bank)):
        if "=>" in line:
            left, right = (part.strip() for part in line.split("=>", 1))
        elif "{}" in line:
            left, right = line.replace("{}", source), line.replace("{}", target)
        else:
            raise ValueError(f'the sentence bank has the line "{line}", which holds neither {{}} nor =>')
        sources.append(left)
        targets.append(right)
    if not sources:
        raise ValueError("the sentence bank is empty")
    return sources, targets


def mean_embedding(encode: Callable[[str], Embedding], sentences: Sequence[str]) -> Embedding:
    """Mean of the embeddings of `sentences`, summed in float64 so that their order does not matter."""

    def mean(values: Sequence[Tensor]) -> Tensor:
        return (sum((value.double() for value in values), torch.zeros(())) / len(values)).float()

    embeddings = [encode(sentence) for sentence in sentences]
    pooled = [pooled for _, pooled in embeddings if pooled is not None]
    return mean([tokens for tokens, _ in embeddings]), mean(pooled) if len(pooled) == len(embeddings) else None


def edit_direction(encode: Callable[[str], Embedding], sources: Sequence[str], targets: Sequence[str]) -> EditDirection:
    """Delta c of pix2pix-zero: mean embedding of `targets` minus mean embedding of `sources`."""
    (source, source_pooled), (target, target_pooled) = mean_embedding(encode, sources), mean_embedding(encode, targets)
    pooled = None if source_pooled is None or target_pooled is None else target_pooled - source_pooled
    return EditDirection(target - source, pooled)


def edit_directions(encode: Callable[[str], Embedding], banks: Sequence[tuple[list[str], list[str]]]) -> EditDirection:
    """`edit_direction` between the sources and the targets of each bank: tokens (banks, tokens, d), pooled (banks, d) or None."""
    found = [edit_direction(encode, *bank) for bank in banks]
    pooled = [direction.pooled for direction in found if direction.pooled is not None]
    return EditDirection(torch.cat([direction.tokens for direction in found]), torch.cat(pooled) if pooled else None)


def phrases(caption: str, source: str, target: str) -> tuple[str, str]:
    """The two phrases a direction is taken between when one of them is left empty (ours).

    Without `source` the whole caption stands in for it. Without `target` the edit removes: it goes from the caption to what is
    left of it without the source phrase. Raises ValueError if that leaves nothing to do.
    """
    caption, source, target = caption.strip(), source.strip(), target.strip()
    if not source and not target:
        raise ValueError('both "from" and "to" are empty; write at least the phrase to edit to')
    if target:
        source = source or caption
        if not source:
            raise ValueError('"from" and the caption are both empty; write what the image shows')
    else:
        found = find_phrase(caption, source)
        if found is None:
            raise ValueError(f'"to" is empty, which removes "{source}", but the caption "{caption}" does not contain it')
        source, target = caption, " ".join((caption[: found.start()] + caption[found.end() :]).split())
    if source.lower() == target.lower():
        raise ValueError(f'"from" and "to" are both "{source}": the edit direction would be zero')
    return source, target


def shift_tokens(tokens: Tensor, direction: Tensor, strength: float) -> Tensor:
    """c + strength * delta c on the tokens both have: tokens (B, n, d), direction (1 or B, m, d).

    A caption longer than one text-encoder window has n > m; its later windows stay as they are.
    """
    if strength == 0:
        return tokens
    shifted = tokens.clone()
    count = min(tokens.shape[1], direction.shape[1])
    shifted[:, :count] += strength * direction[:, :count].to(tokens)
    return shifted
