"""Phrases in the scripts that captions are written in."""

import pytest

from zerocon_core.language.directions import phrases
from zerocon_core.language.prompts import gap_at
from zerocon_core.language.text import find_phrase, listed


@pytest.mark.parametrize(
    "text, phrase, at",
    [
        ("a red cat on a mat", "cat", 6),
        ("a red Cat.", "cat", 6),
        ("concatenate a cat", "cat", 14),
        ("a café by the sea", "caf", None),
        ("een kat’s mand", "kat", 4),
        ("一只红色的猫在垫子上", "猫", 5),
        ("赤い猫がマットの上にいる", "猫", 2),
        ("赤い猫がマットの上にいる", "マット", 4),
        ("빨간 고양이가 매트 위에 있다", "고양이", 3),
        ("一只cat在垫子上", "cat", 2),
        ("a 猫 on a mat", "猫", 2),
        ("แมวสีแดงบนเสื่อ", "แมว", 0),
        ("a red cat", "dog", None),
        ("100% wool", "100%", 0),
    ],
)
def test_a_phrase_is_found_whole(text, phrase, at):
    found = find_phrase(text, phrase)
    assert (None if found is None else found.start()) == at


@pytest.mark.parametrize(
    "text",
    ["cat, wooden  door,mat", "cat，wooden door、mat", "cat\nwooden door\n\nmat", "cat；wooden door; mat,"],
)
def test_lists_of_any_script(text):
    assert listed(text) == ["cat", "wooden door", "mat"]


def test_an_edit_in_chinese_removes_its_word_and_fills_its_gap():
    assert phrases("一只红色的猫", "红色的", "") == ("一只红色的猫", "一只猫")
    assert gap_at("一只红色的猫", "猫").filled("狗") == "一只红色的狗"
