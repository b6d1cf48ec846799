import json
from dataclasses import replace

from tools.demo import SCENE, WORKFLOW
from zerocon_core.toyworld.scene import HELD_OUT_SEED, scene_from_seed


def test_the_demo_measures_against_the_scene_that_its_workflow_draws():
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    [drawn] = [node["inputs"] for node in graph.values() if node["class_type"] == "ZeroConToyScene"]
    assert drawn["shape"] == drawn["pattern"] == "random"
    assert replace(scene_from_seed(HELD_OUT_SEED + drawn["seed"]), colour=drawn["colour"]) == SCENE
