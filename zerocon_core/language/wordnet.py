"""Words that are related to a noun or an adjective, from a WordNet database (Miller 1995) in its own file format, wndb(5WN).

A reader of our own: nltk's needs files that not every distribution of WordNet holds, and refuses folders outside its data path.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from .english import WORD, regular_plural

Pos = Literal["noun", "adj"]
TYPES: dict[str, Pos] = {"1": "noun", "3": "adj", "5": "adj"}
"""Parts of speech by their number in sense keys. 5 are satellites: adjectives that gather around one of type 3."""
FILES = ("index.noun", "data.noun", "noun.exc", "index.adj", "data.adj", "cntlist.rev")
PLURALS = (("ches", "ch"), ("shes", "sh"), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ies", "y"), ("men", "man"), ("s", ""))
"""Endings of plurals with what they stand for, from WordNet's own rules, morphy(7WN)."""
PHRASE = re.compile(rf"{WORD.pattern}(?: {WORD.pattern})*")
SLUR = re.compile(r"slur|disparag|derogat|obscen|vulgar|offensive (?:\w+ )?(?:term|name|word)")
"""How WordNet's glosses warn of a word."""


class Pointer(NamedTuple):
    """To the synset at `offset`. `source` and `target` count the words of the two synsets from 1."""

    symbol: str
    offset: int
    source: int
    target: int


class Synset(NamedTuple):
    """Words of one meaning, and where it is in the file data.`pos`."""

    pos: Pos
    offset: int
    words: tuple[str, ...]
    pointers: tuple[Pointer, ...]
    gloss: str


class WordNet:
    """The database in `folder`. Raises OSError if that is missing or damaged, now or when the damaged entry is read."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        missing = [name for name in FILES if not (self.folder / name).is_file()]
        if missing:
            raise OSError(f"{self.folder} holds no complete WordNet database: {', '.join(missing)} missing")
        self.files = {name: (self.folder / name).read_bytes() for name in FILES}

    def knows(self, word: str) -> bool:
        """Whether the word, or what it is a plural of, is a noun or an adjective."""
        return bool(self._listed_forms(word, "noun"))

    def related(self, word: str, senses: int, before_noun: bool = False) -> list[str]:
        """Synonyms, antonyms, then co-hyponyms, those that WordNet's tagged texts use most first. Plurals for a plural.

        The word is an adjective if it can be one and stands `before_noun`, else a noun if it can be one; its `senses` commonest
        meanings count. Co-hyponyms of a noun are the other hyponyms of its hypernyms; of an adjective, which has none, the others
        of its cluster of similar adjectives. Each gives its first usable word: no name, no slur, and no adjective that never
        stands before a noun. (Ours, but for the three relations.)
        """
        close: list[str] = []
        siblings: list[tuple[int, str]] = []
        for pos, lemma, inflect in self._listed_forms(word, "adj" if before_noun else "noun"):
            for synset in self.senses(lemma, pos)[:senses]:
                close += map(inflect, [*_usable(synset), *self._antonyms(synset, lemma)])
                for sibling in self._co_hyponyms(synset):
                    siblings += [(self.uses(w, pos), inflect(w)) for w in _usable(sibling)[:1]]
        by_use = sorted(siblings, key=lambda sibling: sibling[0], reverse=True)
        return list(dict.fromkeys([*close, *(w for _, w in by_use)]))

    def senses(self, lemma: str, pos: Pos) -> list[Synset]:
        """Synsets of a word in the form that the index lists, the commonest first."""
        entry = self._index_entry(lemma, pos)
        if entry is None:
            return []
        with self._reading(f"index.{pos}"):
            fields = entry.split()
            return [self._synset(pos, int(offset)) for offset in fields[-int(fields[2]) :]]

    def uses(self, lemma: str, pos: Pos) -> int:
        """How often WordNet's tagged texts use the word as this part of speech."""
        return self._tagged_uses[_key(lemma), pos]

    def singulars(self, plural: str) -> list[str]:
        """Nouns of the database that this is a plural of."""
        plural = plural.lower()
        found = [noun for form, *nouns in self._irregular_plurals if form == plural for noun in nouns]
        found += [plural.removesuffix(ending) + stem for ending, stem in PLURALS if plural.endswith(ending)]
        return [noun for noun in dict.fromkeys(found) if self._index_entry(noun, "noun") is not None]

    def plural(self, noun: str) -> str:
        *first, last = noun.split(" ")
        form = next((form for form, *nouns in self._irregular_plurals if last in nouns), regular_plural(last))
        return " ".join([*first, form])

    def _listed_forms(self, word: str, preferred: Pos) -> list[tuple[Pos, str, Callable[[str], str]]]:
        """(part of speech, form that the index lists, how to inflect what replaces it): as is, else as a plural."""
        for pos in (preferred, *get_args(Pos)):
            if self._index_entry(word, pos) is not None:
                return [(pos, word, str)]
        return [("noun", singular, self.plural) for singular in self.singulars(word)]

    def _index_entry(self, lemma: str, pos: Pos) -> str | None:
        index = self.files[f"index.{pos}"]
        start = index.find(f"\n{_key(lemma)} ".encode())  # the licence stands above the first entry
        return None if start < 0 else index[start + 1 : index.find(b"\n", start + 1)].decode()

    def _synset(self, pos: Pos, offset: int) -> Synset:
        with self._reading(f"data.{pos}"):
            data = self.files[f"data.{pos}"]
            entry, gloss = data[offset : data.index(b"\n", offset)].decode().split("|", 1)
            fields = iter(entry.split())
            start, _lexicographer_file, _type, count = islice(fields, 4)
            if int(start) != offset:
                raise ValueError("no synset begins here")
            words = tuple(_word(fields) for _ in range(int(count, 16)))
            pointers = tuple(_pointer(fields) for _ in range(int(next(fields))))
            return Synset(pos, offset, words, pointers, gloss)

    def _antonyms(self, synset: Synset, lemma: str) -> Iterator[str]:
        with self._reading(f"data.{synset.pos}"):
            place = 1 + [_key(_bare(word)) for word in synset.words].index(_key(lemma))
            for pointer in synset.pointers:
                if pointer.symbol == "!" and pointer.source == place:
                    opposite = self._synset(synset.pos, pointer.offset)
                    yield from _usable(opposite._replace(words=opposite.words[pointer.target - 1 : pointer.target]))

    def _co_hyponyms(self, synset: Synset) -> Iterator[Synset]:
        up, down = ("@", "~") if synset.pos == "noun" else ("&", "&")
        for above in self._follow(synset, up):
            if synset.pos == "adj":
                yield above
            yield from (sibling for sibling in self._follow(above, down) if sibling.offset != synset.offset)

    def _follow(self, synset: Synset, symbol: str) -> Iterator[Synset]:
        return (self._synset(synset.pos, pointer.offset) for pointer in synset.pointers if pointer.symbol == symbol)

    @cached_property
    def _irregular_plurals(self) -> list[list[str]]:
        """Each followed by its singulars."""
        with self._reading("noun.exc"):
            lines = self.files["noun.exc"].decode().splitlines()
        return [[form.replace("_", " ") for form in line.split()] for line in lines]

    @cached_property
    def _tagged_uses(self) -> dict[tuple[str, Pos], int]:
        uses: dict[tuple[str, Pos], int] = defaultdict(int)
        with self._reading("cntlist.rev"):
            for line in self.files["cntlist.rev"].decode().splitlines():
                sense_key, _, count = line.split()
                lemma, sense = sense_key.split("%")
                if sense[0] in TYPES:
                    uses[lemma, TYPES[sense[0]]] += int(count)
        return uses

    @contextmanager
    def _reading(self, file: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, IndexError, StopIteration) as error:
            raise OSError(f"the WordNet database in {self.folder} is damaged: {file} holds an entry of another form") from error


def _key(lemma: str) -> str:
    """As the index and the sense keys write it."""
    return lemma.lower().replace(" ", "_")


def _bare(word: str) -> str:
    """Without the marker of where an adjective may stand: (a) before a noun, (ip) right behind it, (p) in a predicate."""
    return word.split("(")[0]


def _usable(synset: Synset) -> list[str]:
    """Its words that can stand in a prompt."""
    if SLUR.search(synset.gloss):
        return []
    return [_bare(word) for word in synset.words if not word.endswith("p)") and word.islower() and PHRASE.fullmatch(_bare(word))]


def _word(fields: Iterator[str]) -> str:
    word, _lexical_id = islice(fields, 2)
    return word.replace("_", " ")


def _pointer(fields: Iterator[str]) -> Pointer:
    """The numbers of the two words are hexadecimal and have two digits each."""
    symbol, offset, _pos, source_target = islice(fields, 4)
    return Pointer(symbol, int(offset), int(source_target[:2], 16), int(source_target[2:], 16))
