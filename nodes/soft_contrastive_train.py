from collections.abc import Sequence
from functools import partial

import torch
from comfy_api.latest import io

from ..bridge.loops.training import Draws, Embeddings, Training, model_latents, train
from ..bridge.model.adapters import apply_lora, loaded_adapters, lora_state, new_adapters
from ..bridge.model.conditioning import SentenceEncoder
from ..bridge.model.facts import transformer_layers
from ..bridge.model.noising import is_flow
from ..bridge.status import say
from ..zerocon_core.language.text import lines, listed
from ..zerocon_core.methods.finetune import Objective, Targets, draw_batches, exploded, word_variations
from .shared.checks import check_conditionings, single_but
from .shared.models import check_image_model
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases

SOFT, HARD = "Soft-CL", "CL"


class SoftContrastiveTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConSoftContrastiveTrain",
            display_name="Soft Contrastive Train",
            category="ZeroCon",
            **search_aliases("train LoRA", "contrastive learning", "Soft-CL"),
            description="Trains a LoRA on captioned images so that changing one word changes what that word is about and leaves "
            "the rest of the image alone.",
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="A U-Net: SD1.x, SD2.x or SDXL. It is not changed."),
                io.Clip.Input("clip", tooltip="The text encoder of the model. It is not trained."),
                io.Latent.Input("latents", tooltip="The encoded images: a batch, or a list as from Make Training Dataset."),
                io.String.Input(
                    "captions", multiline=True,
                    tooltip="What each image shows, in the same order: one caption a line, or a list from Auto Caption or a data "
                    "set node.",
                ),
                io.String.Input(
                    "words", default="", multiline=True,
                    tooltip="Words that may replace one another in the captions, a group a line, such as: red, green, blue. Not "
                    "used with target_prompts connected.",
                ),
                io.Int.Input(
                    "target_count", default=4, min=2, max=64,
                    tooltip="K: target prompts that are compared for an image in a step (4 is ours). Each costs one more sample "
                    "in the pass.",
                ),
                io.Combo.Input(
                    "contrast", options=[SOFT, HARD], default=SOFT,
                    tooltip="Soft-CL: prompts that mean nearly the same need not look different. CL: all pairs weigh the same.",
                ),
                io.Boolean.Input(
                    "soft_augmentation", default=True,
                    tooltip="Soft-PA: picks target prompts at spread-out distances from the caption instead of at random.",
                ),
                io.Float.Input(
                    "lambda_contrast", default=1.0, min=0.0, max=100.0, step=0.05, round=0.0001,
                    tooltip="Weight of the contrastive loss (paper: 1). 0 is plain LoRA training on the captions.",
                ),
                io.Float.Input(
                    "mask_threshold", default=0.2, min=0.0, max=1.0, step=0.05,
                    tooltip="Where the predictions differ by more than this share of their largest difference, the image is to "
                    "be edited. Lower takes more (0.2 is ours: 0.5 missed most of the toy world's objects).",
                ),
                io.Float.Input(
                    "margin", default=1.0, min=0.0, max=100.0, step=0.05,
                    tooltip="Mean square distance inside the mask beyond which predictions are not pushed further apart (ours).",
                ),
                io.Int.Input(
                    "rank", default=8, min=1, max=128, tooltip="Rank of the LoRA. Not used with existing_lora connected."
                ),
                io.Float.Input(
                    "learning_rate", default=0.0001, min=0.0000001, max=1.0, step=0.0000001, tooltip="Learning rate of AdamW."
                ),
                io.Int.Input("steps", default=200, min=1, max=100_000, tooltip="Steps of the optimiser."),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Images in one pass, all of one size."),
                io.Int.Input(
                    "accumulation", default=1, min=1, max=1024, tooltip="Passes in each step: larger batches without more memory."
                ),
                io.Boolean.Input(
                    "gradient_checkpointing", default=True,
                    tooltip="Computes each block again in the backward pass: less memory, slower, the same result.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="For the first weights, images, prompts, timesteps and noise.",
                ),
                io.String.Input(
                    "target_prompts", optional=True, force_input=True,
                    tooltip="The prompts of Prompt Augment, as many for each caption, at least target_count.",
                ),
                io.LoraModel.Input("existing_lora", optional=True, tooltip="A LoRA of this node to train on."),
            ],
            outputs=[
                io.Model.Output("trained_model", display_name="trained_model", tooltip="The model with the LoRA on it."),
                io.LoraModel.Output("lora", display_name="lora", tooltip="For Save LoRA Weights and Load LoRA Model."),
                io.LossMap.Output("loss_map", display_name="loss_map", tooltip="The loss of each step, for Plot Loss Graph."),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    @single_but("latents", "captions", "words", "target_prompts")
    def execute(
        cls, model, clip, latents, captions, words, target_count, contrast, soft_augmentation, lambda_contrast, mask_threshold,
        margin, rank, learning_rate, steps, batch_size, accumulation, gradient_checkpointing, seed, target_prompts=(),
        existing_lora=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_model(model)
        images = model_latents(model, image_latents(latents))
        captions = caption_list(captions, len(images))
        variations = None
        if lambda_contrast:
            variations = target_variations(captions, words, target_prompts)
            check_variations(captions, variations, target_count)

        report = partial(say, cls.hidden.unique_id)
        report("encoding prompts")
        encoder = SentenceEncoder(clip)
        embeddings = Embeddings(encoder)
        check_conditionings(model, None, captions=[[embeddings[captions[0]][0], {}]])
        choice = Targets(target_count, soft_loss=contrast == SOFT, soft_choice=soft_augmentation)
        batches = Draws(
            partial(
                draw_batches, images, captions, variations, steps * accumulation, batch_size, choice, embeddings.__getitem__, seed
            )
        )
        embeddings.encode(batches)
        for text in encoder.cut:
            warn(cls, f'a prompt is longer than the text encoder reads; cut off: "{text}"')

        adapters = new_adapters(model, rank, seed) if existing_lora is None else loaded_adapters(model, existing_lora)
        objective = Objective(lambda_contrast, mask_threshold, margin)
        samples = min(batch_size, len(images)) * (1 + target_count if variations else 1)
        training = Training(
            batches, steps, samples, embeddings, objective, learning_rate, accumulation, seed, gradient_checkpointing
        )
        history = train(model, training, adapters, report)
        if exploded(history):
            warn(
                cls,
                f"the loss rose from {history[0].total:.3g} to {history[-1].total:.3g}, so the LoRA is hardly of use; lower "
                f"learning_rate ({learning_rate:g})",
            )
        lora = lora_state(adapters)
        return io.NodeOutput(apply_lora(model, lora), lora, {"loss": [step.total for step in history]})


def check_model(model) -> None:
    check_image_model(model)
    if not transformer_layers(model.get_model_object("diffusion_model")) or is_flow(model):
        raise ValueError(
            f"{type(model.model).__name__} is no U-Net that predicts eps or v; it needs a model of the SD1.x, SD2.x or SDXL "
            "family. For others use the host's Train LoRA"
        )


def image_latents(latents: list[dict]) -> list[torch.Tensor]:
    """The images of a batch or a list of LATENTs, (1, C, H, W) each."""
    images = []
    for latent in latents:
        samples = latent["samples"]
        if samples.ndim != 4:
            raise ValueError(f"a latent is {tuple(samples.shape)}; it needs image latents (B, C, H, W)")
        images += [samples[i : i + 1] for i in range(len(samples))]
    for number, image in enumerate(images, 1):
        if not torch.isfinite(image).all():
            raise ValueError(f"latent {number} holds NaN or infinite values; check the image and the VAE that encoded it")
        if not image.any():
            raise ValueError(f"latent {number} is empty; encode images with VAE Encode instead of Empty Latent Image")
    if not images:
        raise ValueError("there are no latents; encode images with VAE Encode")
    return images


def caption_list(texts: list[str], images: int) -> list[str]:
    """The items of a list with one an image, or the lines of its texts, as Auto Caption gives them for batches."""
    if len(texts) == images > 1:
        return [" ".join(text.split()) for text in texts]
    captions = [line for text in texts for line in lines(text)]
    if len(captions) != images:
        raise ValueError(f"there are {images} images and {len(captions)} captions; it needs one an image, in the same order")
    return captions


def target_variations(captions: list[str], words: list[str], target_prompts: Sequence[str]) -> list[list[list[str]]]:
    """The prompts that replace a word, for each word of each caption."""
    if target_prompts:
        each, rest = divmod(len(target_prompts), len(captions))
        if rest:
            raise ValueError(
                f"there are {len(target_prompts)} target prompts for {len(captions)} captions; it needs as many for each, as "
                "Prompt Augment makes them from the same list of captions"
            )
        return [[list(dict.fromkeys(target_prompts[i * each : (i + 1) * each]))] for i in range(len(captions))]
    groups = [listed(line) for text in words for line in lines(text)]
    if not groups:
        raise ValueError(
            "there are no words to replace in the captions; write groups of words into words, connect target_prompts, or set "
            "lambda_contrast to 0"
        )
    return [word_variations(caption, groups) for caption in captions]


def check_variations(captions: list[str], variations: list[list[list[str]]], count: int) -> None:
    if count < 2:
        raise ValueError(f"target_count is {count}; it needs at least 2 target prompts to compare")
    for caption, prompts in zip(captions, variations, strict=True):
        most = max(map(len, prompts), default=0)
        if not most:
            raise ValueError(f'no word of the caption "{caption}" is in words; add a group that holds one of its words')
        if most < count:
            raise ValueError(
                f'target_count is {count}, but the caption "{caption}" has at most {most} target prompts; lower it or add words'
            )
