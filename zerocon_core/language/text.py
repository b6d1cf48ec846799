"""Finding and splitting phrases in any script (ours)."""

import re

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese, Japanese
    "\uac00-\ud7af"  # Korean, whose particles are part of the word
)
"""Scripts in which words touch."""
LETTER = rf"[^\W{UNSPACED}]"
SEPARATOR = re.compile(r"[,\uff0c\u3001\uff64;\uff1b\n]")
"""Between the items of a list: commas and semicolons, full-width ones and the ideographic comma too, and lines."""


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Matches `phrase`, whatever the case: whole words, in scripts that set words apart."""
    before = rf"(?<!{LETTER})" if re.match(LETTER, phrase) else ""
    after = rf"(?!{LETTER})" if re.search(rf"{LETTER}$", phrase) else ""
    return re.compile(before + re.escape(phrase) + after, re.IGNORECASE)


def find_phrase(text: str, phrase: str) -> re.Match[str] | None:
    """The first place of `phrase` in `text`."""
    return phrase_pattern(phrase).search(text)


def lines(text: str) -> list[str]:
    """The lines of a text, such as captions, an image each; without empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def listed(text: str) -> list[str]:
    """The items of a list such as "cat, wooden door", without empty ones and with single spaces."""
    return [item for item in (" ".join(part.split()) for part in SEPARATOR.split(text)) if item]
