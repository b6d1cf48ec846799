"""The pack as the host's registry sees it, and the harness of this tier."""

import nodes
import pytest
import torch

PACK = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith("zerocon_pack.")}


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
    assert seconds < 0.5
    assert packages == {"zerocon_pack"}


def test_every_node_id_carries_the_packs_prefix():
    assert PACK and all(name.startswith("ZeroCon") for name in PACK)


@pytest.mark.parametrize("node", PACK.values(), ids=PACK.keys())
def test_schema_is_valid_on_this_host(node):
    schema = node.GET_SCHEMA()
    schema.validate()
    assert schema.category.startswith("ZeroCon") and schema.description
    assert len({output.id for output in schema.outputs}) == len(schema.outputs)
