"""The toy world in the host: its own classes, its own sampler, and pictures that show what their captions say."""

import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import pytest
import torch
from nodes import common_ksampler
from zerocon_pack.bridge import toyworld
from zerocon_pack.zerocon_core.toyworld import classifier, scene, weights


@pytest.fixture(scope="module")
def world():
    with torch.inference_mode():
        return toyworld.load_toy_world()


def test_every_class_is_the_hosts(world):
    model, clip, vae = world
    assert isinstance(model, comfy.model_patcher.ModelPatcher)
    assert type(model.model.diffusion_model) is comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
    assert type(clip) is comfy.sd.CLIP and type(clip.cond_stage_model) is comfy.sd1_clip.SD1ClipModel
    assert type(vae) is comfy.sd.VAE and type(vae.first_stage_model) is comfy.ldm.models.autoencoder.AutoencoderKL


def test_the_autoencoder_returns_the_picture(world):
    _, _, vae = world
    images = torch.stack([torch.from_numpy(scene.render(s)) for s in scene.held_out_scenes(16)])
    with torch.inference_mode():
        latent = vae.encode(images)
        error = (vae.decode(latent) - images).square().mean(dim=(1, 2, 3))
    assert latent.shape == (16, 4, 16, 16)
    assert (-10 * error.log10()).mean() >= 28


def test_latents_have_unit_variance_in_the_model(world):
    model, _, vae = world
    images = torch.stack([torch.from_numpy(scene.render(s)) for s in scene.held_out_scenes(64)])
    with torch.inference_mode():
        assert model.model.process_latent_in(vae.encode(images)).std() == pytest.approx(1.0, abs=0.1)


def test_words_that_training_never_saw_are_all_the_same_to_it(world):
    _, clip, _ = world
    with torch.inference_mode():
        one, other = (clip.encode_from_tokens(clip.tokenize(f"{word} red circle")) for word in ("gloomy", "sunny"))
    assert torch.equal(one, other)


def test_the_stock_sampler_draws_what_the_caption_says(world):
    model, clip, vae = world
    with torch.inference_mode():
        encoded = [
            clip.encode_from_tokens_scheduled(clip.tokenize(f"a {c} circle on a plain background"))[0] for c in scene.COLOURS
        ]
        positive = [[torch.cat([context for context, _ in encoded]), encoded[0][1]]]
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        empty = {"samples": torch.zeros(len(encoded), 4, 16, 16)}
        (latent,) = common_ksampler(model, 1, 20, 5.0, "euler", "normal", positive, negative, empty)
        read = classifier.classify(vae.decode(latent["samples"]))
    assert read.colour == list(scene.COLOURS)


def test_both_nodes_run(run_graph):
    run = run_graph(
        {
            "world": {"class_type": "ZeroConToyWorld", "inputs": {}},
            "scene": {
                "class_type": "ZeroConToyScene",
                "inputs": {"seed": 3, "colour": "red", "shape": "random", "pattern": "striped", "size": 64},
            },
            "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["scene", 0], "vae": ["world", 2]}},
            "latent": {"class_type": "TestCapture", "inputs": {"value": ["encode", 0]}},
            "caption": {"class_type": "TestCapture", "inputs": {"value": ["scene", 1]}},
            "mask": {"class_type": "TestCapture", "inputs": {"value": ["scene", 2]}},
        }
    )
    assert run.success, run.error
    assert run.captured["latent"]["samples"].shape == (1, 4, 16, 16)
    assert run.captured["mask"].shape == (1, 64, 64)
    shape = scene.scene_from_seed(scene.HELD_OUT_SEED + 3).shape
    assert run.captured["caption"] == f"a red {shape} on a striped background"


@pytest.mark.parametrize("name", ["vae", "unet", "text_encoder"])
def test_a_missing_file_is_named_with_its_remedy(monkeypatch, tmp_path, name):
    for file in weights.FOLDER.glob("*.safetensors"):
        if file.stem != name:
            (tmp_path / file.name).symlink_to(file)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(weights.WeightsError, match=f"{name}.safetensors is missing: restore it with `git checkout"):
        toyworld.load_toy_world()


def test_inversion_and_resampling_give_the_reconstruction_back(run_graph):
    """Stock sampling at CFG 1 under the source caption returns to what the autoencoder alone makes of the picture."""
    run = run_graph(
        {
            "world": {"class_type": "ZeroConToyWorld", "inputs": {}},
            "scene": {
                "class_type": "ZeroConToyScene",
                "inputs": {"seed": 4, "colour": "random", "shape": "random", "pattern": "random", "size": 64},
            },
            "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["scene", 0], "vae": ["world", 2]}},
            "text": {"class_type": "CLIPTextEncode", "inputs": {"text": ["scene", 1], "clip": ["world", 1]}},
            "invert": {
                "class_type": "ZeroConDDIMInvert",
                "inputs": {
                    "model": ["world", 0], "image_latent": ["encode", 0], "conditioning": ["text", 0], "steps": 50,
                    "lambda_ac": 0.0, "lambda_kl": 0.0, "regularization_steps": 5, "rolls": 5, "refinements": 0, "seed": 0,
                },
            },
            "noise": {"class_type": "DisableNoise", "inputs": {}},
            "guider": {"class_type": "BasicGuider", "inputs": {"model": ["world", 0], "conditioning": ["text", 0]}},
            "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
            "sample": {
                "class_type": "SamplerCustomAdvanced",
                "inputs": {
                    "noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["invert", 2],
                    "latent_image": ["invert", 0],
                },
            },
            "again": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["world", 2]}},
            "alone": {"class_type": "VAEDecode", "inputs": {"samples": ["encode", 0], "vae": ["world", 2]}},
            "again out": {"class_type": "TestCapture", "inputs": {"value": ["again", 0]}},
            "alone out": {"class_type": "TestCapture", "inputs": {"value": ["alone", 0]}},
        }
    )  # fmt: skip
    assert run.success, run.error
    error = (run.captured["again out"] - run.captured["alone out"]).square().mean()
    assert -10 * error.log10() >= 30


def test_training_pictures_are_not_those_of_toy_scene(run_graph):
    run = run_graph(
        {
            "set": {"class_type": "ZeroConToyTrainingSet", "inputs": {"first": 5, "count": 3}},
            "images": {"class_type": "TestCapture", "inputs": {"value": ["set", 0]}},
            "caption": {"class_type": "TestCapture", "inputs": {"value": ["set", 1]}},
        }
    )
    expected = [scene.scene_from_seed(5 + number) for number in range(3)]
    assert torch.equal(run.captured["images"], torch.stack([torch.from_numpy(scene.render(s)) for s in expected]))
    assert run.captured["caption"] == scene.caption(expected[-1]), "the captions must come as a list, one node run each"
    assert not set(expected) & set(scene.held_out_scenes(20))
