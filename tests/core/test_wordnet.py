"""A miniature database in WordNet's own format: related words by hand, and its entries as nltk reads them."""

import warnings
from pathlib import Path

import nltk
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from wordnet_files import write_wordnet

from zerocon_core.language.wordnet import FILES, WordNet

INSTALLED = Path("/usr/share/wordnet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_wordnet(tmp_path_factory.mktemp("nltk_data") / "corpora" / "wordnet")


@pytest.fixture(scope="module")
def wordnet(folder) -> WordNet:
    return WordNet(folder)


@pytest.fixture
def reader(folder, monkeypatch) -> WordNetCorpusReader:
    """nltk reads only below its own data path."""
    monkeypatch.setattr(nltk.data, "path", [str(folder.parents[1])])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions are not available")
        return WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None)


# Each by hand from the table of entries: synonyms, antonyms, then co-hyponyms by their tagged uses.
RELATED = {
    ("dog", 1, False): ["dog", "domestic dog", "fox", "wolf", "hyena"],  # no name, no slur
    ("dog", 2, False): ["dog", "domestic dog", "frump", "fox", "wolf", "hyena", "woman", "man", "child"],
    ("dogs", 1, False): ["dogs", "domestic dogs", "foxes", "wolves", "hyenas"],
    ("children", 1, False): ["children", "small fries", "frumps", "women", "men"],
    ("woman", 1, False): ["woman", "man", "frump", "child"],  # the antonym before the others
    ("car", 1, True): ["car", "auto", "fire engine", "truck"],  # no number
    ("Fire engine", 1, False): ["fire engine", "car", "truck"],
    ("red", 1, False): ["red", "redness"],
    ("red", 1, True): ["red", "scarlet", "blue", "chromatic", "ruddy"],  # not aglow, which stands behind its noun
    ("black", 1, True): ["black", "inky", "white"],
    ("inky", 1, True): ["black", "inky", "chromatic"],  # antonyms belong to a word, not to its synset
    ("unheard", 1, False): [],
}


@pytest.mark.parametrize(("word", "senses", "before_noun"), RELATED)
def test_related_words(wordnet, word, senses, before_noun):
    assert wordnet.related(word, senses, before_noun) == RELATED[word, senses, before_noun]


def test_nouns_adjectives_and_plurals_are_known(wordnet):
    assert all(map(wordnet.knows, ["dog", "Dog", "dogs", "children", "red", "fire engine", "fire engines"]))
    assert not any(map(wordnet.knows, ["sits", "do", "og", "domestic", ""]))


def test_uses_are_summed_over_senses_and_satellites_are_adjectives(wordnet):
    assert wordnet.uses("dog", "noun") == 30 + 2
    assert (wordnet.uses("red", "noun"), wordnet.uses("red", "adj")) == (7, 60)
    assert wordnet.uses("white", "adj") == 0


@pytest.mark.parametrize(("pos", "letter"), [("noun", "n"), ("adj", "a")])
def test_every_entry_is_as_nltk_reads_it(wordnet, reader, pos, letter):
    lemmas = list(reader.all_lemma_names(letter))
    assert len(lemmas) >= 9
    for lemma in lemmas:
        ours, theirs = wordnet.senses(lemma, pos), reader.synsets(lemma, letter)
        assert [s.offset for s in ours] == [s.offset() for s in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert [w.split("(")[0] for w in mine.words] == [name.replace("_", " ") for name in other.lemma_names()]
            assert mine.gloss.strip() == other.definition() or mine.gloss.strip().startswith("(")
            (here,) = [found for found in other.lemmas() if found.name().lower() == lemma]
            assert list(wordnet._antonyms(mine, lemma)) == [found.name() for found in here.antonyms()]
            around = [near for up in other.hypernyms() for near in up.hyponyms()]
            around += [near for up in other.similar_tos() for near in (up, *up.similar_tos())]
            assert {s.offset for s in wordnet._co_hyponyms(mine)} == {s.offset() for s in around} - {other.offset()}


def test_singulars_are_as_nltk_finds_them(wordnet, reader):
    for plural in ("dogs", "foxes", "women", "children", "wolves", "fire engines", "mutts", "trucks"):
        assert wordnet.singulars(plural) == [reader.morphy(plural.replace(" ", "_"), "n").replace("_", " ")]
        assert wordnet.plural(*wordnet.singulars(plural)) == plural


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(folder, tmp_path, missing):
    for file in FILES:
        if file != missing:
            (tmp_path / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(OSError, match=f"{missing} missing") as error:
        WordNet(tmp_path)
    assert str(tmp_path) in str(error.value)


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def moved(data: bytes) -> bytes:
    return b" " + data


def scrambled(data: bytes) -> bytes:
    return data.replace(b" 0", b" x")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("data.noun", cut_short),
        ("data.noun", moved),
        ("data.noun", scrambled),
        ("index.noun", scrambled),
        ("cntlist.rev", cut_short),
    ],
)
def test_a_damaged_file_is_named(folder, tmp_path, file, damage):
    for name in FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / file).write_bytes(damage((folder / file).read_bytes()))
    wordnet = WordNet(tmp_path)
    with pytest.raises(OSError) as error:
        wordnet.related("dog", 2)
    assert str(error.value) == f"the WordNet database in {tmp_path} is damaged: {file} holds an entry of another form"


def test_bytes_that_are_no_text_are_damage(folder, tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "cntlist.rev").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OSError, match=r"cntlist\.rev"):
        WordNet(tmp_path).related("dog", 1)


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="the package wordnet-base is not installed")
def test_the_real_database():
    wordnet = WordNet(INSTALLED)
    assert {"automobile", "truck", "motorcycle"} <= set(wordnet.related("car", 1))
    assert {"scarlet", "blue", "green"} <= set(wordnet.related("red", 1, before_noun=True))
    assert "young" in wordnet.related("old", 1, before_noun=True)
    assert {"foxes", "wolves"} <= set(wordnet.related("dogs", 1))
