"""Batches in the host's executor: one run, in which every image has its own caption."""

import pytest
import torch
from graphs import cds_graph
from test_nodes import VALUE, WordClip
from test_nodes import graph as pipeline
from tiny import conditioning, counted, randn, relative_error, tiny_unet
from zerocon_pack.bridge.model.conditioning import encode_captions
from zerocon_pack.nodes import auto_caption
from zerocon_pack.nodes.soft_contrastive_train import caption_list
from zerocon_pack.zerocon_core.toyworld.scene import caption, held_out_scenes, render

TOLERANCE = 1e-4
"""Of what an image of a batch may differ from its run alone: kernels of another batch size, in float32."""


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny_unet()


@pytest.fixture(scope="module")
def images():
    """Two pictures that the toy captioner describes differently, and what it says."""
    scenes = held_out_scenes(2)
    assert caption(scenes[0]) != caption(scenes[1])
    return torch.stack([torch.from_numpy(render(scene)) for scene in scenes]), [caption(scene) for scene in scenes]


def captioned(**changes) -> dict:
    """The pipeline with captions of the image, and a direction from the caption, so that every image has its own."""
    auto = dict(class_type="ZeroConAutoCaption", image=["image", 0], captioner="toy world", prefix="")
    changes = dict(guidance=dict(lambda_xa=0.5, negative=["direction", 0])) | changes
    return pipeline(
        caption=auto, image=VALUE | {"key": "image"},
        direction=dict(caption=["caption", 0], edit_from="", edit_to="a blue star"), **changes,
    )  # fmt: skip


def test_each_image_of_a_batch_has_its_own_caption_in_one_run(run_graph, model, images):
    latents = randn(2, 4, 8, 8)
    counting, passes = counted(model)

    def edited(which: slice) -> tuple[torch.Tensor, dict]:
        passes.clear()
        values = {"clip": WordClip(), "model": counting, "latent": {"samples": latents[which]}, "image": images[0][which]}
        run = run_graph(captioned(), values)
        assert run.success, run.error
        assert run.outputs["caption"]["text"] == images[1][which]
        return run.captured["result"]["samples"], dict(passes)

    both, of_both = edited(slice(2))
    alone = [edited(slice(i, i + 1)) for i in range(2)]
    assert of_both == {kind: 2 * count for kind, count in alone[0][1].items()}  # samples through the network: not more
    for one, (expected, _) in zip(both.split(1), alone, strict=True):
        assert relative_error(one, expected) < TOLERANCE
    assert relative_error(both[:1], alone[1][0]) > 0.1


def test_cds_takes_a_source_and_a_target_an_image(run_graph, model):
    sources, targets = ["a red cat", "two dogs"], ["a blue cat", "two cats"]
    latents = randn(2, 4, 8, 8)

    def edited(which: slice) -> torch.Tensor:
        texts = {"source": sources[which], "target": targets[which]}
        encode = {
            name: dict(class_type="ZeroConCaptionEncode", clip=["clip", 0], captions="\n".join(texts[name])) for name in texts
        }
        values = {"clip": WordClip(), "model": model, "latent": {"samples": latents[which]}, "negative": conditioning(3, 8)}
        run = run_graph(without_key(cds_graph(**encode, clip=VALUE | {"key": "clip"})), values)
        assert run.success, run.error
        return run.captured["result"]["samples"]

    both = edited(slice(2))
    for i in range(2):
        assert relative_error(both[i : i + 1], edited(slice(i, i + 1))) < TOLERANCE


def without_key(graph: dict) -> dict:
    """`source` and `target` were values of the test."""
    for name in ("source", "target"):
        graph[name]["inputs"].pop("key", None)
    return graph


def test_a_single_caption_is_what_the_hosts_node_makes_of_it(run_graph):
    text = "a red cat on a mat beside the very old door"
    nodes = {
        "clip": VALUE | {"inputs": {"key": "clip"}},
        "ours": {"class_type": "ZeroConCaptionEncode", "inputs": {"clip": ["clip", 0], "captions": text}},
        "host": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": text}},
    }
    nodes |= {f"of_{name}": {"class_type": "TestCapture", "inputs": {"value": [name, 0]}} for name in ("ours", "host")}
    run = run_graph(nodes, {"clip": WordClip()})
    assert run.success, run.error
    [(ours, options)], [(host, expected)] = run.captured["of_ours"], run.captured["of_host"]
    assert torch.equal(ours, host) and options.keys() == expected.keys()
    assert torch.equal(options["pooled_output"], expected["pooled_output"])


def test_stacked_captions_are_the_single_ones(run_graph):
    captions = ["a red cat", "two dogs"]
    [(tokens, options)] = encode_captions(WordClip(), captions)
    for i, text in enumerate(captions):
        [(alone, of_alone)] = encode_captions(WordClip(), [text])
        assert torch.equal(tokens[i : i + 1], alone) and options["kept"] == 1
        assert torch.equal(options["pooled_output"][i : i + 1], of_alone["pooled_output"])


def test_a_list_of_images_stays_a_list(run_graph, model, images):
    """The way out where batches are refused: the host runs what follows once an image."""
    nodes = captioned(result={"value": ["direction", 0]})
    nodes["single"] = {"class_type": "RebatchImages", "inputs": {"images": ["image", 0], "batch_size": 1}}
    nodes["caption"]["inputs"]["image"] = ["single", 0]
    run = run_graph(nodes, {"clip": WordClip(), "model": model, "latent": {"samples": randn(1, 4, 8, 8)}, "image": images[0]})
    assert run.success, run.error
    assert run.outputs["caption"]["text"] == images[1] and run.captured["result"][0][0].shape[0] == 1


def test_words_are_found_in_the_prompt_of_each_image(run_graph, model):
    prompts = ["a red cat on a mat", "two dogs beside the cat"]
    latents = randn(2, 4, 8, 8)

    def maps(which: slice) -> torch.Tensor:
        text = "\n".join(prompts[which])
        inputs = dict(
            model=["model", 0], image_latent=["latent", 0], conditioning=["prompt", 0], clip=["clip", 0], prompt=text,
            words="cat", tokens="0", strength=0.5, opacity=0.6, seed=0,
        )  # fmt: skip
        nodes = {name: {"class_type": "TestValue", "inputs": {"key": name}} for name in ("model", "latent", "clip")}
        nodes |= {
            "prompt": {"class_type": "ZeroConCaptionEncode", "inputs": {"clip": ["clip", 0], "captions": text}},
            "preview": {"class_type": "ZeroConAttentionMapPreview", "inputs": inputs},
            "maps": {"class_type": "TestCapture", "inputs": {"value": ["preview", 1]}},
        }
        run = run_graph(nodes, {"model": model, "latent": {"samples": latents[which]}, "clip": WordClip()})
        assert run.success, run.error
        return run.captured["maps"]

    both = maps(slice(2))
    assert len(both) == 4  # two words an image
    for i in range(2):
        torch.testing.assert_close(both[2 * i : 2 * i + 2], maps(slice(i, i + 1)), rtol=1e-3, atol=1e-4)


THREE = torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.ones(8, 8)])
CAPTIONS = "a red cat on a mat\ntwo red dogs\na red bird"
REFUSALS = {
    "three captions, one image": (dict(direction={"caption": CAPTIONS}), "batch of 3, the latent of 1"),
    "captions of two lengths": (
        dict(direction={"caption": CAPTIONS + " on the very old door of it"}),
        "caption 3 takes 16 tokens",
    ),
    "three masks, one latent": (
        dict(guidance={"mask": ["masks", 0]}, masks=VALUE | {"key": "masks"}),
        "3 masks for a batch of 1",
    ),
}


@pytest.mark.parametrize("changes, said", REFUSALS.values(), ids=REFUSALS.keys())
def test_numbers_that_do_not_match_are_refused(run_graph, model, changes, said):
    values = {"clip": WordClip(), "model": model, "latent": {"samples": randn(1, 4, 8, 8)}, "masks": THREE}
    run = run_graph(pipeline(**{name: dict(inputs) for name, inputs in changes.items()}), values)
    assert not run.success and said in run.error, run.error
    assert "\n" not in run.error.strip()


@pytest.mark.parametrize("where", ["mask", "noise_mask"])
def test_three_masks_for_one_latent_are_refused_by_cds(run_graph, model, where):
    latent = {"samples": randn(1, 4, 8, 8)} | ({"noise_mask": THREE} if where == "noise_mask" else {})
    changes = dict(cds={"mask": ["masks", 0]}, masks=VALUE | {"key": "masks"}) if where == "mask" else {}
    values = {"model": model, "latent": latent, "masks": THREE, "source": conditioning(1), "target": conditioning(2)}
    run = run_graph(cds_graph(**changes), values | {"negative": conditioning(3)})
    assert not run.success and "CDS Optimize: there are 3 masks for a batch of 1" in run.error, run.error


def test_a_batch_needs_words_for_every_image(run_graph, images, monkeypatch):
    monkeypatch.setattr(auto_caption, "caption", lambda *_: ["a cat", " "])
    nodes = {name: node for name, node in captioned().items() if name in ("caption", "image")}
    run = run_graph(nodes, {"image": images[0]})
    assert not run.success and "no words for image 2 of 2" in run.error, run.error


def test_prompt_augment_takes_one_caption(run_graph):
    inputs = dict(
        caption=CAPTIONS, word="red", count=2, selection="random", wordnet="off", senses=1, bert="off", words="blue, green",
        toy_words=False, pool=20, include_caption=False, seed=0,
    )  # fmt: skip
    run = run_graph({"augment": {"class_type": "ZeroConPromptAugment", "inputs": inputs}})
    assert not run.success and "3 captions" in run.error and "Rebatch Images" in run.error, run.error


def test_a_direction_of_each_image_is_not_saved(run_graph, model):
    nodes = pipeline(direction={"caption": CAPTIONS, "edit_from": ""})
    nodes = {name: nodes[name] for name in ("clip", "direction")}
    save = {"direction": ["direction", 2], "filename_prefix": "directions/three"}
    nodes["save"] = {"class_type": "ZeroConSaveEditDirection", "inputs": save}
    run = run_graph(nodes, {"clip": WordClip()})
    assert not run.success and "each of 3 captions" in run.error, run.error


def test_captions_of_training_are_an_image_each():
    assert caption_list(["a cat\na dog"], 2) == ["a cat", "a dog"]  # a batch through Auto Caption
    assert caption_list(["a cat\na dog", "a bird"], 3) == ["a cat", "a dog", "a bird"]  # a list of batches
    assert caption_list(["a cat\non a mat", "a dog"], 2) == ["a cat on a mat", "a dog"]  # a list of texts
