"""Text through the host's CLIP, and edit directions on the host's CONDITIONING."""

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...zerocon_core.language.directions import EditDirection, shift_tokens
from ...zerocon_core.language.tokens import Token, spelled

EMBEDDING = "embedding</w>"


class SentenceEncoder:
    """Encodes one sentence after another in a single window of the text encoder, with progress and cancel.

    `cut` collects what did not fit: averaging needs embeddings of one length.
    """

    def __init__(self, clip):
        self.clip = clip
        self.cut: list[str] = []
        self.progress: comfy.utils.ProgressBar | None = None

    def expect(self, sentences: int) -> None:
        self.progress = comfy.utils.ProgressBar(sentences)

    def __call__(self, sentence: str) -> tuple[Tensor, Tensor | None]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        tokens = self.clip.tokenize(sentence)
        for name, windows in tokens.items():
            if len(windows) > 1:
                self.cut.append(self.text(name, windows[1:]))
                tokens[name] = windows[:1]
        embedding, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)
        if self.progress is not None:
            self.progress.update(1)
        return embedding, pooled

    def text(self, name: str, windows: list) -> str:
        return spelled(token.text for token in text_tokens(self.clip, name, windows))


def text_tokens(clip, name: str, windows: list) -> list[Token]:
    """The tokens in `windows` of the text encoder `name` that stand for text: no start, end or padding."""
    tokenizer = getattr(clip.tokenizer, f"clip_{name}", None) or getattr(clip.tokenizer, name)
    special = {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token}
    tokens = [token for window in windows for token, *_ in window]
    return [
        # What is no number is an embedding of the user's, which has no text.
        Token(position, EMBEDDING if isinstance(token, Tensor) else tokenizer.inv_vocab[token])
        for position, token in enumerate(tokens)
        if isinstance(token, Tensor) or token not in special
    ]


def prompt_tokens(clip, prompt: str) -> list[Token]:
    """The tokens of a prompt of any length, with their places in the CONDITIONING that the host makes of it."""
    name, windows = next(iter(clip.tokenize(prompt).items()))  # several text encoders stand side by side, not in a row
    return text_tokens(clip, name, windows)


def pieces_of(clip, phrase: str) -> list[str]:
    """The tokenizer's texts of the tokens of a phrase."""
    return [token.text for token in prompt_tokens(clip, phrase)]


def encode_caption(clip, caption: str) -> list:
    """CONDITIONING of a caption of any length, as the host's own text node makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(caption))


def encode_captions(clip, captions: list[str]) -> list:
    """CONDITIONING of a batch of images, each with its own caption. Of one caption it is the host's own.

    Raises ValueError for captions that the text encoder makes different numbers of tokens of.
    """
    conditionings = [encode_caption(clip, caption) for caption in captions]
    return stack_conditionings(conditionings) if len(conditionings) > 1 else conditionings[0]


def stack_conditionings(conditionings: list[list]) -> list:
    """CONDITIONINGs of one image each as one of a batch, entry by entry. Raises ValueError for different numbers of tokens."""
    stacked = []
    for entries in zip(*conditionings, strict=True):
        tokens, options = zip(*entries, strict=True)
        counts = [embedding.shape[1] for embedding in tokens]
        if len(set(counts)) > 1:
            longest = counts.index(max(counts))
            raise ValueError(
                f"caption {longest + 1} takes {counts[longest]} tokens and another {min(counts)}, and a batch takes captions of "
                "one length; shorten it, or put Rebatch Images with a batch_size of 1 before, which takes image by image"
            )
        batched = {
            name: torch.cat([option[name] for option in options])
            for name, value in options[0].items()
            if isinstance(value, Tensor)
        }
        stacked.append([torch.cat(tokens), options[0] | batched])
    return stacked


def shift_conditioning(conditioning: list, direction: EditDirection, strength: float) -> list:
    """Every entry of `conditioning` moved by strength * direction; all other options of the entries are kept.

    Raises ValueError if the direction is of another text encoder, or of another batch of captions.
    """
    shifted = []
    for tokens, options in conditioning:
        if tokens.shape[-1] != direction.tokens.shape[-1]:
            raise ValueError(
                f"the direction has embeddings of width {direction.tokens.shape[-1]}, this CLIP gives "
                f"{tokens.shape[-1]}; use a direction that was found with the same model family"
            )
        if direction.tokens.shape[0] not in (1, tokens.shape[0]):
            raise ValueError(
                f"the direction is of {direction.tokens.shape[0]} captions, and there are {tokens.shape[0]}; use it with the "
                "captions that it was found from"
            )
        options = options.copy()
        if options.get("pooled_output") is not None and direction.pooled is not None:
            options["pooled_output"] = options["pooled_output"] + strength * direction.pooled.to(options["pooled_output"])
        shifted.append([shift_tokens(tokens, direction.tokens, strength), options])
    return shifted


def check_cover(cond: list[dict], x: Tensor, levels: Tensor) -> None:
    """Raises ValueError where none of the processed entries of `cond` acts on a part of x (B, C, H, W) at noise `levels` (B,).

    The host answers 0 there, as if the model had denoised to nothing.
    """
    if any("default" in entry for entry in cond):  # acts wherever no other entry does
        return
    covered = x.new_zeros(x.shape, dtype=torch.bool)
    for entry in cond:
        part = comfy.samplers.get_area_and_mult(entry, x, levels)
        if part is None:
            continue
        here = covered
        if part.area is not None:
            dims = len(part.area) // 2
            for dim, (size, start) in enumerate(zip(part.area[:dims], part.area[dims:], strict=True), 2):
                here = here.narrow(dim, start, size)
        here |= part.mult != 0
    if not covered.all():
        raise ValueError(
            f"the conditioning says nothing about {1 - float(covered.float().mean()):.0%} of the image at sigma "
            f"{float(levels[0]):.4g}; give it no timestep range, and cover the image with its areas and masks"
        )
