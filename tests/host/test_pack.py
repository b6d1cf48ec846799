"""The pack as the host's registry sees it, and the harness of this tier."""

import json
import re
from dataclasses import fields
from pathlib import Path

import nodes
import pytest
import torch
from comfy_api.latest import io

PACK = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith("zerocon_pack.")}
ROOT = Path(__file__).parents[2]
LOCALES = sorted((ROOT / "locales").glob("*/nodeDefs.json"))
HELP = ROOT / "web" / "docs"
NEEDS_SPLATS = set() if hasattr(io, "Splat") else {"ZeroConSplatViews", "ZeroConViewsToSplat", "ZeroConCDSOptimize3D"}
"""Nodes that this host cannot have."""


def test_a_graph_runs_and_hands_back_its_values(run_graph):
    latent = {"samples": torch.ones(1, 4, 8, 8)}
    run = run_graph(
        {
            "in": {"class_type": "TestValue", "inputs": {"key": "latent"}},
            "flip": {"class_type": "LatentFlip", "inputs": {"samples": ["in", 0], "flip_method": "x-axis: vertically"}},
            "out": {"class_type": "TestCapture", "inputs": {"value": ["flip", 0]}},
        },
        {"latent": latent},
    )
    assert run.success and run.error is None
    assert torch.equal(run.captured["out"]["samples"], latent["samples"])


def test_a_failing_graph_says_why(run_graph):
    graph = {
        "in": {"class_type": "TestValue", "inputs": {"key": "missing"}},
        "out": {"class_type": "TestCapture", "inputs": {"value": ["in", 0]}},
    }
    run = run_graph(graph)
    assert not run.success and "missing" in run.error


def test_importing_the_pack_does_not_hold_up_the_start(import_cost):
    seconds, packages = import_cost
    assert seconds < 1.0  # a quarter of it on a quiet machine
    assert packages == {"zerocon_pack"}


def test_every_node_id_carries_the_packs_prefix():
    assert PACK and all(name.startswith("ZeroCon") for name in PACK)


@pytest.mark.parametrize("node", PACK.values(), ids=PACK.keys())
def test_schema_is_valid_on_this_host(node):
    schema = node.GET_SCHEMA()
    schema.validate()
    assert schema.category.startswith("ZeroCon") and schema.description
    assert len({output.id for output in schema.outputs}) == len(schema.outputs)


def test_search_finds_every_node_by_other_words_where_the_host_has_them():
    schemas = [node.GET_SCHEMA() for node in PACK.values()]
    if "search_aliases" in {field.name for field in fields(io.Schema)}:
        assert all(schema.get_v1_info(None).search_aliases for schema in schemas)
    else:
        assert not any(hasattr(schema, "search_aliases") for schema in schemas)


def test_the_languages_are_there():
    assert [path.parent.name for path in LOCALES] == ["ja", "ko", "zh"]


@pytest.mark.parametrize("path", LOCALES, ids=lambda path: path.parent.name)
def test_every_node_input_and_output_is_translated(path):
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert entries.keys() == PACK.keys() | NEEDS_SPLATS
    for name, entry in ((name, entry) for name, entry in entries.items() if name in PACK):
        schema = PACK[name].GET_SCHEMA()
        inputs, outputs = entry.get("inputs", {}), entry.get("outputs", {})
        assert entry.keys() <= {"display_name", "description", "inputs", "outputs"}, name
        assert inputs.keys() == {i.id for i in schema.inputs}, name
        assert list(outputs) == [str(index) for index in range(len(schema.outputs))], name  # the page counts outputs
        texts = [entry["display_name"], entry["description"]]
        for sockets in (inputs, outputs):
            assert all(both.keys() == {"name", "tooltip"} for both in sockets.values()), name
            assert len({both["name"] for both in sockets.values()}) == len(sockets), name
            texts += [text for both in sockets.values() for text in both.values()]
        assert all(texts), name
        # The page takes braces, @ and | for its own syntax.
        assert not set("{}@|") & set("".join(texts).replace("{'{}'}", "")), name


@pytest.mark.parametrize("name", PACK)
def test_help_page_says_it_all(name):
    page, schema = (HELP / f"{name}.md").read_text(encoding="utf-8"), PACK[name].GET_SCHEMA()
    assert page.startswith(f"# {schema.display_name}\n")
    inputs, outputs = ({socket.id for socket in sockets} for sockets in (schema.inputs, schema.outputs))
    rows = re.findall(r"^- (`.+?`): ", page, re.MULTILINE)
    explained = {socket for row in rows for socket in re.findall("`(.+?)`", row)}
    assert inputs <= explained <= inputs | outputs
    assert re.search(r"^\*.*(et al\.|ours?\b).*\*$", page, re.MULTILINE)  # the paper, or that it is ours


@pytest.mark.parametrize("name", PACK)
def test_help_page_shows_the_node(name):
    pictures = re.findall(r'!\[[^]"]+\]\((.+?)\)', (HELP / f"{name}.md").read_text(encoding="utf-8"))
    assert f"images/{name}.webp" in pictures  # relative: the page reads it from the pack's folder, whatever its name
    assert all((HELP / picture).is_file() for picture in pictures)


def test_pictures_are_small_and_used():
    pictures = list((HELP / "images").iterdir())
    assert {picture.stem for picture in pictures} == PACK.keys() | NEEDS_SPLATS
    assert max(picture.stat().st_size for picture in pictures) < 60e3
