"""The little English grammar that prompts need: rules with their common exceptions, no dictionary (ours)."""

import re

DETERMINERS = frozenset(
    "a an the this that these those my your his her its our their some any each every another no one two three four five six "
    "seven eight nine ten several many few".split()
)
FUNCTION_WORDS = DETERMINERS | frozenset(
    "i me you he him she it we us they them who which what there here and or but nor as if while than then so is are was were be "
    "been being am has have had having do does did can could will would may might must shall should not of in on at by for from "
    "to with without into onto out off over under up down near next above below behind before after between among across along "
    "around through against about beside besides inside outside toward towards upon like during when where very too also just "
    "only quite all both other more most much such own same".split()
)
"""Words that say nothing an edit could change, the determiners that nouns and adjectives follow among them."""

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
PARTICIPLE = re.compile(r"(?!(?:build|paint|draw|ceil|cloth|wedd|morn|even)ing).*[aeiouy].*ing$")
CONSONANT_SOUND = re.compile(r"eu|ewe|one(?!ir)|once|u(?:ni(?![dmn])|s[ae]|t[ei]|ra|bi|k)", re.IGNORECASE)
SILENT_H = re.compile(r"hour|hono|hone[^y]|heir", re.IGNORECASE)


def article(word: str) -> str:
    """The indefinite article by the sound that `word` begins with: an apple, a unicorn, an hour."""
    vowel = word[:1].lower() in "aeiou" and not CONSONANT_SOUND.match(word)
    return "an" if vowel or SILENT_H.match(word) else "a"


def regular_plural(noun: str) -> str:
    """Of a regular noun, or of one in -man."""
    if re.search(r"(?<!hu)(?<!sha)man$", noun):
        return noun[:-2] + "en"
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return noun + "es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", noun) + "s"


def same_word(one: str, other: str) -> bool:
    """Whether two words are one, but for case and a regular plural."""
    one, other = one.lower(), other.lower()
    return one == other or regular_plural(one) == other or one == regular_plural(other)


def in_case_of(pattern: str, word: str) -> str:
    """`word` with a capital letter, or in capitals, where `pattern` is."""
    if pattern.isupper() and len(pattern) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if pattern[:1].isupper() else word
