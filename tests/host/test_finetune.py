"""Contrastive fine-tuning through the host's model, and the LoRA it gives."""

import os
import re
from dataclasses import replace

import comfy.model_management
import comfy.model_sampling
import comfy.utils
import folder_paths
import nodes
import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import attention_pytorch
from tiny import FAMILIES, WIDTH, fingerprint, randn, tiny_unet
from zerocon_pack.bridge.loops import training as finetune
from zerocon_pack.bridge.model.adapters import loaded_adapters, lora_state, new_adapters, trainable
from zerocon_pack.bridge.model.autograd import GradientRegion
from zerocon_pack.bridge.toyworld import load_toy_world
from zerocon_pack.zerocon_core.methods.finetune import Example, Losses, Objective
from zerocon_pack.zerocon_core.toyworld.scene import caption, render, scene_from_seed

SCENES = [scene_from_seed(seed) for seed in range(4)]
CAPTIONS = "\n".join(map(caption, SCENES))
WORDS = "red, green, blue, yellow, white, black\ncircle, square, triangle, star"
SAVE = "SaveLoRA" if "SaveLoRA" in nodes.NODE_CLASS_MAPPINGS else "SaveLoRANode"


@pytest.fixture(scope="module")
def toy() -> dict:
    model, clip, vae = load_toy_world()
    with torch.inference_mode():
        latents = vae.encode(torch.stack([torch.from_numpy(render(scene)) for scene in SCENES]))
    return {"model": model, "clip": clip, "latents": {"samples": latents}}


def graph(**inputs) -> dict:
    """A training of the toy model with its three outputs captured as trained, lora and losses."""
    settings = dict(
        captions=CAPTIONS, words=WORDS, target_count=2, contrast="Soft-CL", soft_augmentation=True, lambda_contrast=1.0,
        mask_threshold=0.2, margin=1.0, rank=4, learning_rate=0.01, steps=2, batch_size=1, accumulation=1,
        gradient_checkpointing=False, seed=0,
    )  # fmt: skip
    links = {name: ["value_" + name, 0] for name in ("model", "clip", "latents")}
    values = {"value_" + name: {"class_type": "TestValue", "inputs": {"key": name}} for name in links}
    train = {"train": {"class_type": "ZeroConSoftContrastiveTrain", "inputs": settings | links | inputs}}
    captured = {
        name: {"class_type": "TestCapture", "inputs": {"value": ["train", slot]}}
        for slot, name in enumerate(("trained", "lora", "losses"))
    }
    return values | train | captured


def same(lora: dict, other: dict) -> bool:
    return lora.keys() == other.keys() and all(torch.equal(lora[key], other[key]) for key in lora)


def sample(patcher, toy: dict) -> torch.Tensor:
    """Two steps of the stock KSampler on one latent."""
    with torch.inference_mode():
        (positive,) = nodes.CLIPTextEncode().encode(toy["clip"], "a red star on a plain background")
        latent = {"samples": toy["latents"]["samples"][:1]}
        (latent,) = nodes.KSampler().sample(patcher, 5, 2, 3.0, "euler", "normal", positive, positive, latent, 0.8)
    return latent["samples"]


# The LoRA


def test_saved_and_loaded_lora_gives_the_same_picture(toy, run_graph):
    save = {"class_type": SAVE, "inputs": {"lora": ["train", 1], "prefix": "loras/zerocon"}}
    plot = {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 2], "filename_prefix": "loss"}}
    os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)  # the plot of 0.3.64 expects it
    run = run_graph(graph() | {"save": save, "plot": plot}, toy)
    assert run.success, run.error
    # As the host's main.py does when it starts.
    folder_paths.add_model_folder_path("loras", os.path.join(folder_paths.get_output_directory(), "loras"))
    (saved,) = (name for name in folder_paths.get_filename_list("loras") if name.startswith("zerocon"))
    (from_file,) = nodes.LoraLoaderModelOnly().load_lora_model_only(toy["model"], saved, 1.0)
    trained = sample(run.captured["trained"], toy)
    assert torch.equal(trained, sample(from_file, toy))
    assert not torch.equal(trained, sample(toy["model"], toy)), "the LoRA must matter"
    assert len(run.captured["losses"]["loss"]) == 2


def test_same_seed_same_bits_and_checkpointing_changes_none(toy, run_graph):
    loras = [
        run_graph(graph(**inputs), toy).captured["lora"]
        for inputs in ({}, {"gradient_checkpointing": True}, {"seed": 1}, {"soft_augmentation": False}, {"contrast": "CL"})
    ]
    assert same(loras[0], loras[1])
    assert not any(same(loras[0], other) for other in loras[2:])
    again = graph() | {"trained": {"class_type": "TestCapture", "inputs": {"value": ["train", 1]}}}
    assert same(loras[0], run_graph(again, toy).captured["trained"])


@pytest.mark.parametrize("steps", [1, 3])
def test_cancel_ends_the_training_and_not_the_prompt(toy, run_graph, monkeypatch, steps):
    update = comfy.utils.ProgressBar.update

    def cancel(bar, value):
        update(bar, value)
        if bar.total == 5 and bar.current == steps:
            comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(comfy.utils.ProgressBar, "update", cancel)
        run = run_graph(graph(steps=5), toy)
    assert run.success, run.error
    assert len(run.captured["losses"]["loss"]) == steps
    assert same(run.captured["lora"], run_graph(graph(steps=steps), toy).captured["lora"])
    assert not comfy.model_management.processing_interrupted(), "the cancel must be used up"


def test_a_loss_that_is_not_finite_keeps_the_last_good_lora(toy, run_graph, monkeypatch, caplog):
    losses, calls = finetune.losses, []

    def spoiled(*args):
        calls.append(None)
        return losses(*args) if len(calls) < 3 else Losses(*[torch.tensor(float("nan"), requires_grad=True)] * 4)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "losses", spoiled)
        run = run_graph(graph(steps=5), toy)
    assert run.success and "the loss is nan at step 3; this is the LoRA of step 2 of 5" in caplog.text
    assert same(run.captured["lora"], run_graph(graph(), toy).captured["lora"])


class TestList:
    """Hands the list `items[key]` to the graph, as data set nodes do."""

    items: dict[str, list] = {}
    INPUT_TYPES = classmethod(lambda cls: {"required": {"key": ("STRING", {})}})
    RETURN_TYPES = nodes.NODE_CLASS_MAPPINGS["TestValue"].RETURN_TYPES
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "get"
    CATEGORY = "tests"
    IS_CHANGED = classmethod(lambda cls, key: float("nan"))

    def get(self, key: str) -> tuple[list]:
        return (self.items[key],)


@pytest.fixture
def run_list(run_graph, monkeypatch, toy):
    """A training whose inputs in `lists` come as lists."""
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestList", TestList)

    def run(lists: dict[str, list], **inputs):
        monkeypatch.setattr(TestList, "items", lists)
        givers = {"list_" + key: {"class_type": "TestList", "inputs": {"key": key}} for key in lists}
        return run_graph(givers | graph(**inputs | {key: ["list_" + key, 0] for key in lists}), toy)

    return run


def test_lists_of_images_in_two_sizes_with_several_passes_a_step(toy, run_list):
    latents = toy["latents"]["samples"]
    pieces = [{"samples": latents[:1]}, {"samples": latents[1:3]}, {"samples": latents[3:, :, :8]}]
    prompts = [line.replace(" on a ", f" on a {word} ") for line in CAPTIONS.splitlines() for word in ("red", "grey", "old")]
    captions = [line.replace(" on ", "\non ") for line in CAPTIONS.splitlines()]
    lists = {"latents": pieces, "captions": captions, "target_prompts": prompts}
    run = run_list(lists, words="", batch_size=2, accumulation=2)
    assert run.success, run.error
    assert len(run.captured["losses"]["loss"]) == 2


NAN = torch.full((4, 4, 16, 16), float("nan"))


@pytest.mark.parametrize(
    ("inputs", "lists", "message"),
    [
        ({"captions": "a red star"}, {}, "there are 4 images and 1 captions"),
        ({"words": "cat, dog"}, {}, "is in words; add a group that holds one of its words"),
        ({"words": ""}, {}, "there are no words to replace in the captions"),
        ({"target_count": 6}, {}, "target_count is 6, but the caption .* has at most 5 target prompts"),
        ({}, {"target_count": [1]}, "target_count is 1; it needs at least 2"),
        ({}, {"target_count": [2, 3]}, "target_count came as a list of 2"),
        ({}, {"target_prompts": ["a", "b", "c"]}, "there are 3 target prompts for 4 captions"),
        ({}, {"latents": [{"samples": torch.zeros(4, 4, 16, 16)}]}, "latent 1 is empty"),
        ({}, {"latents": [{"samples": NAN}]}, "latent 1 holds NaN"),
        ({}, {"latents": [{"samples": NAN[None]}]}, "it needs image latents"),
        ({}, {"latents": [{"samples": NAN[:0]}]}, "there are no latents"),
        ({}, {"latents": [{"samples": torch.ones(4, 16, 8, 8)}]}, "have 16 channels and the model 4"),
        ({"learning_rate": 1.0, "steps": 1}, {"latents": [{"samples": torch.full((4, 4, 16, 16), 1e30)}]}, "at step 1; check"),
        ({}, {"existing_lora": [{}]}, "nothing for diffusion_model"),
    ],
)
def test_refusals(run_list, inputs, lists, message):
    run = run_list(lists, **inputs)
    assert not run.success and re.match(f"Soft Contrastive Train: .*{message}", run.error), run.error


def test_other_models_are_refused(toy, run_graph):
    flow = toy["model"].clone()
    kind = type("Flow", (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST), {})
    flow.add_object_patch("model_sampling", kind())
    other = toy["model"].clone()
    other.add_object_patch("diffusion_model", torch.nn.Identity())
    for model in (flow, other):
        run = run_graph(graph(), toy | {"model": model})
        assert "is no U-Net that predicts eps or v" in run.error


# Gradients, on small models with prompts that have embeddings of their own


PROMPTS = ("caption", "first", "second", "third")


def tiny_training(steps: int = 1, **changes) -> finetune.Training:
    """Two images a step, three target prompts each."""
    images = randn(2, 4, 8, 6, seed=1).split(1)
    batch = [Example(image, PROMPTS[0], PROMPTS[1:], torch.tensor([0.5, 1.0, 0.8])) for image in images]
    embeddings = {prompt: (randn(1, 7, WIDTH, seed=seed), randn(1, WIDTH, seed=seed)) for seed, prompt in enumerate(PROMPTS)}
    embeddings = finetune.Embeddings(embeddings.__getitem__)
    training = finetune.Training([batch] * steps, steps, 8, embeddings, Objective(), 0.01, 1, seed=0, checkpointing=False)
    return replace(training, **changes)


def tiny_adapters(patcher) -> dict:
    adapters = new_adapters(patcher, 2, seed=0)
    for seed, adapter in enumerate(adapters.values()):
        adapter.up.data.copy_(randn(*adapter.up.shape, seed=seed) * 0.1)
    return adapters


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_finite_differences(family):
    """Along the gradient, the loss rises by the square of its length."""
    with torch.inference_mode():
        patcher = tiny_unet(family=family)
        training = tiny_training(objective=Objective(threshold=0.5))
        adapters = tiny_adapters(patcher)
        model, parameters = patcher.model, [p for adapter in adapters.values() for p in adapter.parameters()]

        def loss() -> torch.Tensor:
            return finetune.batch_losses(model, training, patcher.model_options, torch.device("cpu"))().total

        patcher.pre_run()
        with GradientRegion([model.diffusion_model]).recording(), trainable(model, adapters):
            gradients = torch.autograd.grad(loss(), parameters)
            length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
            values = []
            for step in (0.01, -0.01):
                with torch.no_grad():
                    for p, g in zip(parameters, gradients, strict=True):
                        p.add_(g / length, alpha=step)
                    values.append(float(loss()))
                    for p, g in zip(parameters, gradients, strict=True):
                        p.sub_(g / length, alpha=step)
        patcher.cleanup()
    assert (values[0] - values[1]) / 0.02 == pytest.approx(float(length), rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(family):
    """SDXL's text has a pooled part, which the host asks for before the first step too."""
    with torch.inference_mode():
        patcher = tiny_unet(family=family)
        adapters = tiny_adapters(patcher)
        before = lora_state(adapters)
        assert len(finetune.train(patcher, tiny_training(2), adapters, report=lambda line: None)) == 2
    assert not same(lora_state(adapters), before)


def test_drawing_can_be_cancelled_and_is_repeated_from_its_seed():
    batches = finetune.Draws(lambda: ([Example(randn(1, 4, 8, 6), f"caption {number}")] for number in range(3)))
    captions = [[example.caption for batch in batches for example in batch] for _ in range(2)]
    assert captions[0] == captions[1] == ["caption 0", "caption 1", "caption 2"]
    embeddings = finetune.Embeddings(lambda prompt: (randn(1, 7, WIDTH), None))
    embeddings.encode(batches)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        embeddings.encode(batches)  # with nothing left to encode


def test_a_loss_that_explodes_is_said(toy, run_graph, caplog):
    assert run_graph(graph(steps=2), toy).success and "lower learning_rate" not in caplog.text
    assert run_graph(graph(steps=6, learning_rate=1.0), toy).success
    assert re.search(r"Soft Contrastive Train: the loss rose from .* to .*; lower learning_rate \(1\)", caplog.text)


PLAIN_ATTENTION = {"optimized_attention_override": lambda func, *args, **kwargs: attention_pytorch(*args, **kwargs)}


def plain_lora_training(patcher, training: finetune.Training, adapters: dict) -> None:
    """The loop that every LoRA trainer runs, by autograd alone; right only for float32 weights made outside inference mode."""
    model, generator = patcher.model, torch.Generator().manual_seed(training.seed)
    parameters = [p for adapter in adapters.values() for p in (adapter.down, adapter.up)]
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate)
    for name, adapter in adapters.items():
        layer = model.get_submodule(name)
        layer.forward = lambda x, layer=layer, adapter=adapter: (
            F.linear(x, layer.weight, layer.bias) + F.linear(F.linear(x, adapter.down), adapter.up) * (adapter.alpha / 2)
        )
    for batch in training.batches:
        image = torch.cat([example.image for example in batch])
        sigma = model.model_sampling.sigmas[torch.randint(1000, (len(batch),), generator=generator)].view(-1, 1, 1, 1)
        noise = torch.randn(image.shape, generator=generator)
        x, text = image + sigma * noise, torch.cat([training.embeddings[example.caption][0] for example in batch])
        denoised = model.apply_model(x, sigma.flatten(), c_crossattn=text, transformer_options=PLAIN_ATTENTION)
        optimizer.zero_grad()
        F.mse_loss((x - denoised) / sigma, noise).backward(inputs=parameters)
        optimizer.step()


def test_weight_0_is_plain_lora_training():
    alone = [[Example(example.image, example.caption) for example in batch] for batch in tiny_training(3).batches]
    training = tiny_training(3, batches=alone)
    with torch.inference_mode():
        patcher = tiny_unet()
        trained = tiny_adapters(patcher)
        finetune.train(patcher, training, trained, report=lambda line: None)
    plain_model = tiny_unet()
    plain = tiny_adapters(plain_model)
    with torch.enable_grad():
        plain_lora_training(plain_model, training, plain)
    assert same(lora_state(trained), lora_state(plain))
    assert not same(lora_state(trained), lora_state(tiny_adapters(plain_model)))


def test_continuing_is_training_on_with_a_new_optimiser():
    with torch.inference_mode():
        patcher = tiny_unet()
        whole = tiny_adapters(patcher)
        finetune.train(patcher, tiny_training(2), whole, report=lambda line: None)
        resumed = loaded_adapters(patcher, lora_state(whole))
        assert same(lora_state(resumed), lora_state(whole))
        for adapters in (whole, resumed):
            finetune.train(patcher, tiny_training(2, seed=1), adapters, report=lambda line: None)
        assert same(lora_state(resumed), lora_state(whole))


@pytest.mark.parametrize("failure", [None, RuntimeError, comfy.model_management.InterruptProcessingException])
def test_the_model_is_as_before(failure):
    with torch.inference_mode():
        patcher = tiny_unet()
        adapters, before = tiny_adapters(patcher), fingerprint(patcher)
        start = lora_state(adapters)

        def report(line: str) -> None:
            if failure is not None and line.startswith("step 2"):
                raise failure()

        try:
            finetune.train(patcher, tiny_training(3, checkpointing=True), adapters, report)
        except RuntimeError as error:
            assert failure is RuntimeError and isinstance(error, failure)
        after = lora_state(adapters)
        assert not any(torch.equal(start[key], after[key]) for key in start if not key.endswith("alpha"))
        comfy.model_management.unload_all_models()
        assert fingerprint(patcher) == before
