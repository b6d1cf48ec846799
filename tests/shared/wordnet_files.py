"""A miniature WordNet, written in the file format of the real one (wndb(5WN), senseidx(5WN))."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """`pointers` are (symbol, name of the entry, number of the word here, number of the word there)."""

    kind: str  # n, a (head of a cluster) or s (satellite)
    words: str
    pointers: tuple[tuple[str, str, int, int], ...] = ()
    gloss: str = "a gloss"


def below(*names: str) -> tuple[tuple[str, str, int, int], ...]:
    return tuple(("~", name, 0, 0) for name in names)


def above(name: str) -> tuple[tuple[str, str, int, int], ...]:
    return (("@", name, 0, 0),)


def near(*names: str) -> tuple[tuple[str, str, int, int], ...]:
    return tuple(("&", name, 0, 0) for name in names)


ENTRIES = {
    "canine": Entry("n", "canine canid", below("dog", "wolf", "fox", "mutt", "hyena")),
    "dog": Entry("n", "dog domestic_dog Canis_familiaris", above("canine")),
    "wolf": Entry("n", "wolf", above("canine")),
    "fox": Entry("n", "fox", above("canine")),
    "hyena": Entry("n", "Hyaena hyena", above("canine")),
    "mutt": Entry("n", "mutt", above("canine"), "(ethnic slur) made up for the test"),
    "person": Entry("n", "person", below("frump", "woman", "man", "child")),
    "frump": Entry("n", "frump dog", above("person")),
    "woman": Entry("n", "woman", above("person") + (("!", "man", 1, 1),)),
    "man": Entry("n", "man", above("person") + (("!", "woman", 1, 1),)),
    "child": Entry("n", "child small_fry", above("person")),
    "vehicle": Entry("n", "vehicle", below("car", "truck", "fire engine", "4-wheel")),
    "car": Entry("n", "car auto", above("vehicle")),
    "truck": Entry("n", "truck", above("vehicle")),
    "fire engine": Entry("n", "fire_engine", above("vehicle")),
    "4-wheel": Entry("n", "4-wheel_drive", above("vehicle")),
    "redness": Entry("n", "red redness"),
    "chromatic": Entry("a", "chromatic", near("red", "blue", "ruddy") + (("!", "black", 1, 1),)),
    "red": Entry("s", "red scarlet", near("chromatic")),
    "blue": Entry("s", "blue", near("chromatic")),
    "ruddy": Entry("s", "aglow(p) ruddy(a)", near("chromatic")),
    "black": Entry("a", "black inky", (("!", "white", 1, 1), ("!", "chromatic", 2, 1))),
    "white": Entry("a", "white", (("!", "black", 1, 1),)),
}
USES = {
    "dog": ("dog", 30), "frump": ("dog", 2), "wolf": ("wolf", 5), "fox": ("fox", 9), "car": ("car", 70), "truck": ("truck", 4),
    "fire engine": ("fire_engine", 6), "redness": ("red", 7), "red": ("red", 60), "blue": ("blue", 50),
}  # fmt: skip
"""Tagged uses of one word of an entry."""
LEXNAMES = "".join(f"{i:02}\tnames.{i}\t1\n" for i in range(45))
LICENCE = "  1 Made for a test in the form of WordNet 3.0 Copyright nobody.  \n"
FILE_OF = {"n": "noun", "a": "adj", "s": "adj"}
TYPE_OF = {"n": 1, "a": 3, "s": 5}


def data_line(entry: Entry, offset: int, offsets: dict[str, int]) -> str:
    words = entry.words.split()
    pointers = [
        f"{symbol} {offsets[name]:08} {ENTRIES[name].kind.replace('s', 'a')} {source:02x}{target:02x}"
        for symbol, name, source, target in entry.pointers
    ]
    fields = [f"{offset:08} 05 {entry.kind} {len(words):02x}", *(f"{word} 0" for word in words), f"{len(pointers):03}", *pointers]
    return f"{' '.join(fields)} | {entry.gloss}  \n"


def write_wordnet(folder: Path) -> Path:
    """Every file that nltk's reader asks for."""
    offsets, ends = dict.fromkeys(ENTRIES, 0), dict.fromkeys(("noun", "adj"), len(LICENCE))
    for name, entry in ENTRIES.items():
        offsets[name] = ends[FILE_OF[entry.kind]]
        ends[FILE_OF[entry.kind]] += len(data_line(entry, 0, offsets))
    files = {f"{kind}.{pos}": LICENCE for kind in ("data", "index") for pos in ("noun", "adj", "verb", "adv")}
    files |= {
        "noun.exc": "children child\nmen_of_letters man_of_letters\nwolves wolf\n",
        "adj.exc": "",
        "verb.exc": "",
        "adv.exc": "",
    }
    senses: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, entry in ENTRIES.items():
        files[f"data.{FILE_OF[entry.kind]}"] += data_line(entry, offsets[name], offsets)
        for word in entry.words.split():
            senses[word.split("(")[0].lower(), FILE_OF[entry.kind]].append(name)
    files |= {"lexnames": LEXNAMES, "index.sense": "", "cntlist.rev": ""}
    for (lemma, pos), names in sorted(senses.items()):
        symbols = sorted({pointer[0] for name in names for pointer in ENTRIES[name].pointers})
        count = f"{len(names)} {len(symbols)} {' '.join(symbols)} {len(names)} 0".replace("  ", " ")
        files[f"index.{pos}"] += f"{lemma} {pos[0]} {count} {' '.join(f'{offsets[name]:08}' for name in names)}  \n"
    for name, (lemma, uses) in USES.items():
        kind, _, pointers, _ = ENTRIES[name]
        head = f"{pointers[0][1]}:00" if kind == "s" else ":"
        files["cntlist.rev"] += f"{lemma}%{TYPE_OF[kind]}:05:00:{head} 1 {uses}\n"
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder
