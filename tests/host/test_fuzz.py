"""A part of the fuzz (tests/host/fuzz), what it found before, and that it sees what must not be."""

import time

import pytest
import torch
from fuzz import verdicts
from fuzz.graphs import trials, with_bad_values
from fuzz.sound import sound_graph, toy_values
from fuzz.verdicts import CANCELLED, DEAF, DEFECTS, FINE, HOST, REFUSED, SILENT, TRACEBACK, try_graph
from in_process import GraphRunner
from zerocon_pack.nodes import toy_world

EVERY = 29
"""Of the quick part: no multiple of the number of values of any input, so that all kinds of them occur."""
FOUND = {
    "ZeroConDDIMInvert.model": ["written: a text", "written: nothing"],
    "ZeroConDDIMInvert.conditioning": ["tokens: no dimensions", "area outside", "no mask"],
    "ZeroConPatchNCEGuidance.negative": ["tokens: no batch", "area of nothing"],
    "ZeroConPatchNCEGuidance.patch_sizes": ["long number"],
    "ZeroConAttentionMapPreview.image_latent": ["huge"],
    "ZeroConAttentionMapPreview.conditioning": ["no tokens", "tokens: one more"],
    "ZeroConAttentionMapPreview.words": ["2,000 sizes"],
    "ZeroConAttentionMapPreview.tokens": ["long number", "lines"],
    "ZeroConAttentionMapPreview.image": ["no dimensions", "0x64", "2 channels"],
    "ZeroConGuidancePreview.sampled": ["bfloat16"],
    "ZeroConCDSOptimize.image_latent": ["noise mask: one NaN"],
    "ZeroConCDSOptimize.model": ["a list of none"],
    "ZeroConSoftContrastiveTrain.model": ["SD1.x"],
    "ZeroConSoftContrastiveTrain.existing_lora": ["a row"],
    "ZeroConCaptionEncode.captions": ["embedding", "weights"],
    "ZeroConEditDirection.clip": ["written: nothing"],
    "ZeroConEditDirection.caption": ["half a pair", "embedding", "weights"],
    "ZeroConEditDirection.edit_to": ["half a pair", "weights"],
    "ZeroConSaveEditDirection.filename_prefix": ["400 words", "NUL", "path"],
}
"""Values that were tracebacks from inside, or came out as NaN without a word."""


@pytest.fixture(scope="module")
def values():
    return toy_values(GraphRunner())


@pytest.fixture(scope="module")
def runner():
    return GraphRunner()


def test_bad_values_do_no_harm_or_are_refused_in_a_sentence(runner, values):
    tried = [trial for number, trial in enumerate(trials(values)) if number % EVERY == 0]
    found = {str(trial): try_graph(runner, trial.graph, trial.values) for trial in tried}
    assert not {name: verdict for name, verdict in found.items() if verdict.kind in DEFECTS}
    assert len(found) >= 50 and {verdict.kind for verdict in found.values()} >= {FINE, REFUSED, HOST}


@pytest.mark.parametrize("place", FOUND)
def test_what_the_fuzz_found_is_refused_in_a_sentence(runner, values, place):
    node, name = place.split(".")
    tried = {trial.what: trial for trial in with_bad_values(values, [node]) if trial.place == name}
    found = {what: try_graph(runner, tried[what].graph, tried[what].values) for what in FOUND[place]}
    assert {what: verdict.kind for what, verdict in found.items()} == dict.fromkeys(FOUND[place], REFUSED), found


def test_an_error_from_inside_is_told_from_a_refusal(runner, values, monkeypatch):
    monkeypatch.setattr(toy_world, "scene_from_seed", lambda seed: {}[seed])
    assert try_graph(runner, sound_graph("ZeroConToyScene"), values).kind == TRACEBACK
    monkeypatch.setattr(toy_world, "scene_from_seed", lambda seed: int("a number"))  # a ValueError, but of Python
    assert try_graph(runner, sound_graph("ZeroConToyScene"), values).kind == TRACEBACK


def test_nan_without_a_word_is_seen(runner, values, monkeypatch):
    monkeypatch.setattr(toy_world, "_batch", lambda picture: torch.full((1, 64, 64, 3), torch.nan))
    assert try_graph(runner, sound_graph("ZeroConToyScene"), values).kind == SILENT


def test_what_runs_on_is_cancelled_and_what_is_deaf_is_seen(runner, values, monkeypatch):
    monkeypatch.setattr(verdicts, "PATIENCE", 0.2)
    monkeypatch.setattr(verdicts, "LIMIT", 0.6)

    def endless(seed):
        while True:
            time.process_time()

    monkeypatch.setattr(toy_world, "scene_from_seed", endless)
    assert try_graph(GraphRunner(), sound_graph("ZeroConToyScene"), values).kind == DEAF
    graph = sound_graph("ZeroConDDIMInvert")
    graph["node"]["inputs"]["steps"] = 1000
    assert try_graph(runner, graph, values).kind == CANCELLED
