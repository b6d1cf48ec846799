"""Words in a gap, by a tiny BERT with random weights, against transformers' own pipeline."""

from pathlib import Path

import pytest
import torch
from bert_files import VOCABULARY, WORDS, write_bert
from transformers import pipeline

from zerocon_core.language.fill_mask import load_fill_mask, ranked_words
from zerocon_core.language.prompts import gap_at


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def bert(folder):
    return load_fill_mask(folder)


@pytest.mark.parametrize(("caption", "word"), [("a red cat on a mat", "red"), ("the dog", "dog"), ("blue", "blue")])
def test_words_are_ranked_as_the_pipeline_does(folder, bert, caption, word):
    pipe = pipeline("fill-mask", model=str(folder), dtype=torch.float32, device="cpu")
    gap = gap_at(caption, word)
    expected = [answer["token_str"] for answer in pipe(f"{gap.before}[MASK]{gap.after}", top_k=len(VOCABULARY))]
    assert len(expected) == len(VOCABULARY)
    whole = set(WORDS) - {"a", "x"}
    assert ranked_words(*bert, gap) == [token for token in expected if token in whole]


def test_both_sides_of_the_gap_count(bert):
    captions = ["a red cat", "a red hat", "the red cat"]
    assert len({tuple(ranked_words(*bert, gap_at(caption, "red"))) for caption in captions}) == 3


def test_model_is_ready_for_inference_in_float32(bert):
    model, _ = bert
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_gap_behind_what_the_model_reads_is_an_error(bert):
    with pytest.raises(ValueError, match='reads 12 tokens of the caption, and "red" comes later'):
        ranked_words(*bert, gap_at("a cat " * 8 + "red hat", "red"))


def test_a_vocabulary_without_word_pieces_is_an_error(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes().replace(b"##", b"--"))
    with pytest.raises(OSError, match="another kind of model than BERT"):
        load_fill_mask(tmp_path)
