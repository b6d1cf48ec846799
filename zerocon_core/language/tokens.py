"""The tokens of a prompt as text, in any script (CLIP's byte-level pieces, Radford et al. 2021)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from .text import phrase_pattern

WORD_END = "</w>"
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTES = {chr(byte): byte for byte in PRINTABLE} | {
    chr(256 + number): byte for number, byte in enumerate(byte for byte in range(256) if byte not in PRINTABLE)
}
"""What the vocabulary's letters stand for: GPT-2's tokenizer writes bytes that have no picture as letters from U+0100 on."""


class Token(NamedTuple):
    """A token of a prompt: its place in the prompt's embedding, and the tokenizer's text of it ("circle</w>")."""

    position: int
    text: str


class Span(NamedTuple):
    """Where the text of a token stands in that of the prompt. A token may hold a part of a character: then it is that one."""

    token: Token
    start: int
    end: int


def piece_bytes(piece: str) -> bytes:
    """UTF-8 of one piece of the vocabulary; the end of a word is a space. Pieces that are no bytes stand for themselves."""
    letters, end = piece.removesuffix(WORD_END), b" " if piece.endswith(WORD_END) else b""
    known = all(letter in BYTES for letter in letters)
    return (bytes(BYTES[letter] for letter in letters) if known else letters.encode()) + end


def spelled(pieces: Iterable[str]) -> str:
    """The tokenizer's texts of tokens as one text."""
    return b"".join(map(piece_bytes, pieces)).decode(errors="replace").strip()


def spans(tokens: Sequence[Token]) -> tuple[str, list[Span]]:
    """The text of a prompt, and where each of its tokens stands there."""
    parts = [piece_bytes(token.text) for token in tokens]
    whole = b"".join(parts)
    # A byte belongs to the character that it starts or continues (10xxxxxx).
    character, number = [], -1
    for byte in whole:
        number += byte & 0xC0 != 0x80
        character.append(max(number, 0))
    found, start = [], 0
    for token, part in zip(tokens, parts, strict=True):
        text = part.removesuffix(b" ")
        if text:
            found.append(Span(token, character[start], character[start + len(text) - 1] + 1))
        start += len(part)
    return whole.decode(errors="replace"), found


def places_of(phrase: str, tokens: Sequence[Token]) -> Iterator[int]:
    """The places of the tokens of all occurrences of `phrase`, spelled as the tokenizer spells it, in a prompt."""
    text, spanned = spans(tokens)
    for found in phrase_pattern(phrase).finditer(text):
        yield from (span.token.position for span in spanned if span.start < found.end() and span.end > found.start())
