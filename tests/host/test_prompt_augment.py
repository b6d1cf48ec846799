"""Prompts that a graph makes of a caption: their way through stock nodes, their sources in the host's folders, refusals."""

import logging
import sys
from pathlib import Path

import folder_paths
import nodes
import numpy as np
import pytest
import torch
from bert_files import WORDS, write_bert
from wordnet_files import write_wordnet
from zerocon_pack.bridge import toyworld
from zerocon_pack.bridge.files import downloads, networks
from zerocon_pack.bridge.files import wordnet as databases
from zerocon_pack.nodes.prompt_augment import PromptAugment

CAPTION = "a red circle on a striped background"
COLOURS = {"green", "blue", "yellow", "white", "black"}
DEFAULTS = dict(
    caption=CAPTION, word="", count=4, selection="soft", wordnet="off", senses=1, bert="off", words="", toy_words=False, pool=20,
    include_caption=False, seed=0,
)  # fmt: skip


class TestCollect:
    """Keeps the whole list that arrives, in one run."""

    lists: dict[str, list] = {}
    INPUT_IS_LIST = True
    INPUT_TYPES = classmethod(lambda cls: {"required": {"key": ("STRING", {}), "value": ("*", {})}})
    VALIDATE_INPUTS = classmethod(lambda cls, input_types: True)
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "put"
    CATEGORY = "tests"

    def put(self, key: list[str], value: list) -> dict:
        self.lists[key[0]] = value
        return {}


nodes.NODE_CLASS_MAPPINGS["TestCollect"] = TestCollect


def graph(with_clip: bool = True, **changes) -> dict:
    """Prompt Augment, each of its outputs collected, and its prompts through the stock text node."""
    inputs = DEFAULTS | changes | ({"clip": ["world", 1]} if with_clip else {})
    texts = {
        "world": {"class_type": "ZeroConToyWorld", "inputs": {}},
        "augment": {"class_type": "ZeroConPromptAugment", "inputs": inputs},
        "encode": {"class_type": "CLIPTextEncode", "inputs": {"text": ["augment", 0], "clip": ["world", 1]}},
    }
    outputs = {"prompts": ["augment", 0], "replaced": ["augment", 1], "new_words": ["augment", 2], "table": ["augment", 3]}
    for key, value in (outputs | {"conditionings": ["encode", 0]}).items():
        texts[f"collect {key}"] = {"class_type": "TestCollect", "inputs": {"key": key, "value": value}}
    return texts


def collected(run_graph, **changes) -> dict[str, list]:
    TestCollect.lists = {}
    run = run_graph(graph(**changes))
    assert run.success, run.error
    assert run.outputs["augment"]["text"] == TestCollect.lists["table"]
    return TestCollect.lists


@pytest.fixture(scope="module")
def clip():
    with torch.inference_mode():
        return toyworld.load_toy_world()[1]


@pytest.fixture(scope="module", autouse=True)
def folders():
    """A WordNet and a BERT where users put theirs."""
    wordnet, bert = (Path(folder_paths.get_folder_paths(kind)[0]) for kind in (databases.WORDNETS, networks.FILL_MASKS))
    write_wordnet(wordnet / "small")
    write_bert(bert / "tiny")
    for folder in (wordnet / "empty", bert / "empty", wordnet / "damaged"):
        folder.mkdir(exist_ok=True)
    for file in (wordnet / "small").iterdir():
        text = file.read_text()
        (wordnet / "damaged" / file.name).write_text(text[:300] if file.name == "data.adj" else text)
    return wordnet, bert


def test_prompts_fan_out_through_the_stock_text_node(run_graph, clip):
    found = collected(run_graph, toy_words=True, word="red")
    assert len(found["prompts"]) == len(found["conditionings"]) == 4
    assert set(found["new_words"]) < COLOURS and found["replaced"] == ["red"]
    assert found["prompts"] == [f"a {word} circle on a striped background" for word in found["new_words"]]
    with torch.inference_mode():
        for prompt, conditioning in zip(found["prompts"], found["conditionings"], strict=True):
            ((expected, _),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            assert torch.equal(conditioning[0][0], expected)


def test_soft_selection_measures_with_the_graphs_clip(run_graph, clip):
    found = collected(run_graph, toy_words=True, word="red", count=2, include_caption=True)

    def embedding(text: str) -> np.ndarray:
        with torch.inference_mode():
            return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1][0].numpy().astype(np.float64)

    source = embedding(CAPTION)
    distances = {}
    for word in COLOURS:
        other = embedding(CAPTION.replace("red", word))
        distances[word] = 1 - source @ other / np.sqrt((source @ source) * (other @ other))
    in_order = sorted(COLOURS, key=distances.get)
    assert found["new_words"] == ["red", in_order[1], in_order[3]]  # of five, those at quantiles 1/4 and 3/4
    assert found["prompts"][0] == CAPTION
    lines = [f"{distances.get(word, 0):.4f}  {word}  {CAPTION.replace('red', word)}" for word in found["new_words"]]
    assert found["table"] == ["\n".join(lines)]


def test_random_selection_needs_no_clip(run_graph):
    found = collected(run_graph, with_clip=False, selection="random", toy_words=True, word="red", count=5)
    assert set(found["new_words"]) == COLOURS
    assert found["table"] == ["\n".join(f"{word}  {CAPTION.replace('red', word)}" for word in found["new_words"])]


def test_same_seed_same_prompts(run_graph):
    chosen = dict(selection="random", toy_words=True, count=2)
    tables = [collected(run_graph, **chosen, seed=seed)["table"][0] for seed in range(8)]
    assert len(set(tables)) > 4
    torch.manual_seed(7)
    assert collected(run_graph, **chosen, seed=0)["table"][0] == tables[0]


def test_an_unchanged_graph_is_not_run_again(run_graph, monkeypatch):
    first = run_graph(graph(toy_words=True))
    assert first.success, first.error
    again = run_graph(graph(toy_words=True))
    cached = [data["nodes"] for event, data in again.messages if event == "execution_cached"]
    assert any("augment" in found for found in cached)
    assert again.outputs["augment"] == first.outputs["augment"]


def test_each_caption_of_a_list_is_augmented(run_graph):
    scene = {"seed": 3, "colour": "red", "pattern": "plain", "size": 64}
    texts = graph(word="red", toy_words=True, count=2, caption=["caption", 0])
    for shape in ("circle", "square"):
        texts[shape] = {"class_type": "ZeroConToyScene", "inputs": scene | {"shape": shape}}
    texts["both"] = {"class_type": "ImageBatch", "inputs": {"image1": ["circle", 0], "image2": ["square", 0]}}
    texts["each"] = {"class_type": "RebatchImages", "inputs": {"images": ["both", 0], "batch_size": 1}}
    texts["caption"] = {
        "class_type": "ZeroConAutoCaption", "inputs": {"image": ["each", 0], "captioner": networks.TOY_CAPTIONER, "prefix": ""}
    }  # fmt: skip
    run = run_graph(texts)
    assert run.success, run.error
    shapes = [prompt.split()[2] for prompt in TestCollect.lists["prompts"]]
    assert shapes == ["circle", "circle", "square", "square"] and len(TestCollect.lists["conditionings"]) == 4


def test_wordnet_from_a_folder(run_graph):
    found = collected(run_graph, wordnet="small", caption="a dog in a car", word="dog", selection="random", count=4)
    assert set(found["new_words"]) == {"domestic dog", "fox", "wolf", "hyena"}
    assert "nltk" not in sys.modules


def test_wordnet_of_the_machine(run_graph, monkeypatch, folders):
    monkeypatch.setattr(databases, "INSTALLED_WORDNETS", ("/nowhere", str(folders[0] / "small")))
    found = collected(run_graph, wordnet="installed", caption="the dogs", selection="random", count=4)
    assert set(found["prompts"]) == {"the domestic dogs", "the foxes", "the wolves", "the hyenas"}


def test_bert_from_a_folder(run_graph):
    found = collected(run_graph, bert="tiny", caption="a red cat", word="red", selection="random", count=3, pool=3)
    assert len(set(found["new_words"])) == 3 and set(found["new_words"]) <= set(WORDS) - {"red", "a", "the", "on"}


def test_sources_are_joined(run_graph):
    chosen = dict(words="deep  purple, Blue\n3d,", toy_words=True, wordnet="small", pool=2)
    found = collected(run_graph, word="red", selection="random", count=4, **chosen)
    assert set(found["new_words"]) == {"deep purple", "Blue", "green", "scarlet"}  # two each, blue but once


REFUSALS = {
    "empty caption": (dict(caption=" \n"), ["caption is empty", "Auto Caption"]),
    "no source": (dict(toy_words=False), ["no source of words", "wordnet", "toy_words"]),
    "only separators": (dict(toy_words=False, words=" , \n"), ["no source of words"]),
    "word not in the caption": (dict(word="blue"), [CAPTION, '"blue"', "does not contain"]),
    "part of a word": (dict(word="strip"), ["does not contain"]),
    "nothing to replace": (dict(caption="a photo of a cat"), ["no word of the caption", "a photo of a cat"]),
    "too many": (dict(count=6, word="red"), ["6 prompts", "5 words", '"red"']),
    "too many for any word": (dict(count=9), ["9 prompts", "5 words", '"red"']),
    "soft without a CLIP": (dict(with_clip=False), ["soft", "CLIP", "random"]),
    "empty WordNet folder": (dict(wordnet="empty"), ["index.noun", "missing"]),
    "damaged WordNet": (dict(wordnet="damaged", word="red"), ["damaged", "data.adj"]),
    "empty BERT folder": (dict(bert="empty"), ["config.json is missing"]),
    "cut off by BERT": (dict(bert="tiny", caption="a cat " * 8 + "red", word="red"), ["12 tokens"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_are_one_sentence(run_graph, changes, words):
    run = run_graph(graph(**{"toy_words": True} | changes))
    assert not run.success
    assert run.error.startswith("Prompt Augment: ") and all(word in run.error for word in words), run.error
    assert "\n" not in run.error.strip() and run.error.count("Prompt Augment") == 1


def test_a_machine_without_wordnet_says_how_to_get_one(run_graph, monkeypatch, folders):
    monkeypatch.setattr(databases, "INSTALLED_WORDNETS", ("/nowhere",))
    run = run_graph(graph(wordnet="installed"))
    assert not run.success
    assert run.error.startswith("Prompt Augment: ") and "wordnet-base" in run.error and str(folders[0]) in run.error


def test_a_failed_download_says_what_else_to_do(run_graph, monkeypatch, folders):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(downloads, "snapshot_download", offline)
    run = run_graph(graph(bert=networks.HUB_FILL_MASKS[0]))
    assert not run.success
    assert run.error.startswith("Prompt Augment: google-bert") and run.error.count("Prompt Augment") == 1
    assert "no network" in run.error and str(folders[1]) in run.error


def test_no_folder_outside_the_hosts_is_read():
    for name in ("../../../..", "gone"):
        with pytest.raises(FileNotFoundError):
            databases.wordnet_folder(name)
        with pytest.raises(FileNotFoundError):
            networks.fill_mask_folder(name)


def test_nothing_is_downloaded_before_it_is_run(monkeypatch):
    monkeypatch.setattr(downloads, "snapshot_download", lambda *a, **k: pytest.fail("downloaded"))
    PromptAugment.define_schema()
    assert set(networks.HUB_FILL_MASKS) <= set(networks.fill_mask_names())


def test_what_the_text_encoder_cannot_read_is_told(run_graph, caplog):
    with caplog.at_level(logging.WARNING):
        collected(run_graph, toy_words=True, caption=CAPTION + " word" * 80, word="red")
    (told,) = [record.getMessage() for record in caplog.records if "Prompt Augment" in record.getMessage()]
    assert "longer than the text encoder reads" in told
