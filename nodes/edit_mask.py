import torch
from comfy_api.latest import io

from ..bridge.loops.differences import prompt_differences
from ..bridge.model.facts import pixels_per_position
from ..bridge.status import say
from ..zerocon_core.maps.differences import edit_mask, heat_map
from .shared.checks import check_conditionings, check_latent, same_text, single_but
from .shared.models import check_image_model
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases

FEW, MOST = 0.005, 0.95
"""Shares of the image below and above which a mask is hardly meant."""


class EditMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConEditMask",
            display_name="Edit Mask",
            category="ZeroCon",
            **search_aliases("DiffEdit", "automatic mask", "prompt mask"),
            description="Finds the place of an edit: where the model's predictions differ between prompts. With the prompts of "
            "Prompt Augment it is the mask of that paper, with a source and a target prompt it is DiffEdit's.",
            is_input_list=True,  # the prompts of a list are compared with each other in one run
            hidden=[io.Hidden.unique_id],
            # Defaults: DiffEdit's, but for more noise and some smoothing, which were better in benchmarks/quality/edit_masks.py.
            inputs=[
                io.Model.Input("model", tooltip="The model that will edit."),
                io.Latent.Input("image_latent", tooltip="The encoded source image. A batch gives a batch of masks."),
                io.Conditioning.Input(
                    "prompts",
                    tooltip="The prompts to compare: a list, such as Prompt Augment through CLIP Text Encode, or one prompt.",
                ),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="One more prompt to compare with. For DiffEdit's mask connect the source prompt here and the target "
                    "prompt above.",
                ),
                io.Float.Input(
                    "strength", default=0.65, min=0.01, max=1.0, step=0.05, round=0.001,
                    tooltip="How much noise the image gets before the prompts are compared, as the denoise of a sampler. "
                    "DiffEdit: 0.5.",
                ),
                io.Int.Input(
                    "draws", default=10, min=1, max=100,
                    tooltip="Noises to average over. Each costs one pass of the model for every prompt. DiffEdit: 10.",
                ),
                io.Float.Input(
                    "threshold", default=0.5, min=0.0, max=1.0, step=0.01, round=0.001,
                    tooltip="Heat above which a place belongs to the mask: lower makes the mask larger. DiffEdit: 0.5.",
                ),
                io.Float.Input(
                    "clamp", default=3.0, min=0.0, max=100.0, step=0.5, round=0.01,
                    tooltip="Cuts heat above this multiple of its mean, so that single outliers do not set the scale. 0 is off.",
                ),
                io.Float.Input(
                    "smoothing", default=1.0, min=0.0, max=20.0, step=0.25, round=0.01,
                    tooltip="Blur of the heat before the threshold, in latent positions (8 pixels on most models). 0 is off.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip="For the noises."
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "mask", display_name="mask",
                    tooltip="1 where to edit, in the size of the image. For PatchNCE Guidance, Set Latent Noise Mask and others.",
                ),
                io.Image.Output(
                    "heat_map", display_name="heat_map",
                    tooltip="How much the predictions differ, from black (least) to white (most).",
                ),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    @single_but("prompts", "source")
    def execute(
        cls, model, image_latent, prompts, strength, draws, threshold, clamp, smoothing, seed, source=()
    ) -> io.NodeOutput:  # fmt: skip
        samples, conditionings = image_latent["samples"], [*source, *prompts]
        check(model, samples, conditionings)
        differences = prompt_differences(model, samples, conditionings, strength, draws, seed)
        if not torch.isfinite(differences).all():
            raise ValueError("the predictions are not finite; load the model in float32")
        try:
            heat = heat_map(differences, clamp, smoothing)
        except ValueError as error:
            raise ValueError(f"{error}; use prompts that say different things about the image") from error
        mask = edit_mask(heat, threshold)
        tell_coverage(cls, mask, threshold)
        scale = pixels_per_position(model)
        # Squares, not a blur: resized to the latent again, as samplers do, the mask is what it was.
        mask, heat = (maps.repeat_interleave(scale, 1).repeat_interleave(scale, 2) for maps in (mask, heat))
        return io.NodeOutput(mask, heat.unsqueeze(-1).expand(-1, -1, -1, 3))


def check(model, samples: torch.Tensor, conditionings: list) -> None:
    check_image_model(model)
    check_latent(samples, model)
    for conditioning in conditionings:
        check_conditionings(model, samples, prompts=conditioning)
    if len(conditionings) < 2:
        raise ValueError(
            "there is one prompt and nothing to compare it with; connect source, or a list of prompts such as that of "
            "Prompt Augment"
        )
    if all(same_text(conditioning, conditionings[0]) for conditioning in conditionings[1:]):
        raise ValueError(
            f"the {len(conditionings)} prompts are the same to the text encoder, so they differ nowhere; use other words"
        )


def tell_coverage(cls: type[io.ComfyNode], mask: torch.Tensor, threshold: float) -> None:
    """Shows the share of each image that the mask covers; as a warning if that is hardly meant."""
    shares = mask.mean((1, 2))
    text = "mask: " + ", ".join(f"{share:.1%}" for share in shares.tolist()) + " of the image"
    few, most = bool((shares < FEW).any()), bool((shares > MOST).any())
    if few or most:
        advice = "lower" if few else "raise"
        warn(cls, f"{text}; {advice} threshold ({threshold:g}), or compare prompts that differ in one thing")
    else:
        say(cls.hidden.unique_id, text)
