"""Edit masks in the host's executor: against plain loops, and what is refused."""

import pytest
import torch
from tiny import conditioning, randn, tiny_unet

PROMPTS = [conditioning(i) for i in (1, 2, 3, 4)]


class TestPrompts:
    """Hands the conditionings in `prompts` to the graph as a list, as CLIP Text Encode does with a list of texts."""

    prompts: list = []
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("CONDITIONING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "get"
    CATEGORY = "tests"
    IS_CHANGED = classmethod(lambda cls: float("nan"))

    def get(self):
        return (self.prompts,)


@pytest.fixture
def run_mask(run_graph, monkeypatch):
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestPrompts", TestPrompts)

    def run(model, latent, prompts=PROMPTS, source=None, **settings):
        monkeypatch.setattr(TestPrompts, "prompts", prompts)
        inputs = dict(
            model=["model", 0], image_latent=["latent", 0], prompts=["prompts", 0], strength=0.5, draws=2, threshold=0.5,
            clamp=3.0, smoothing=0.0, seed=0,
        )  # fmt: skip
        if source is not None:
            inputs["source"] = ["source", 0]
        graph = {
            "prompts": {"class_type": "TestPrompts", "inputs": {}},
            "mask": {"class_type": "ZeroConEditMask", "inputs": inputs | settings},
            "mask_out": {"class_type": "TestCapture", "inputs": {"value": ["mask", 0]}},
            "heat_out": {"class_type": "TestCapture", "inputs": {"value": ["mask", 1]}},
        }
        values = {"model": model, "latent": latent, "source": source}
        for name in values:
            graph[name] = {"class_type": "TestValue", "inputs": {"key": name}}
        return run_graph(graph, values)

    return run


def test_it_runs(run_mask):
    with torch.inference_mode():
        model = tiny_unet()
    run = run_mask(model, {"samples": randn(2, 4, 8, 6)})
    assert run.success, run.error
    assert run.captured["mask_out"].shape == (2, 64, 48)
    assert run.captured["heat_out"].shape == (2, 64, 48, 3)
