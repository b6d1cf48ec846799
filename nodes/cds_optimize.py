import torch
from comfy_api.latest import io

from ..bridge.loops.cds import CDSSettings, mask_for, optimize
from ..bridge.model.attention import hooked_layers
from ..bridge.model.facts import decoder_self_attention
from ..bridge.model.noising import is_flow
from ..zerocon_core.methods.cds import PAPER_STEP_SIZE, CDSWeights, authors_step_size, draw_timesteps
from ..zerocon_core.methods.patchnce import PatchNCE
from .shared.checks import check_conditionings, check_latent, check_mask, item_by_item, same_text
from .shared.inputs import checkpointing_input, parse_sizes, patchnce_inputs
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases


class CDSOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConCDSOptimize",
            display_name="CDS Optimize",
            category="ZeroCon",
            **search_aliases("contrastive denoising score", "delta denoising score", "DDS", "score distillation"),
            description="Edits a latent by Contrastive Denoising Score: moves it along the difference of two prompts while its "
            "patches stay those of the source. No inversion. With w_cut 0 it is Delta Denoising Score.",
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD1.x, SD2.x or SDXL. With Attention Hooked U-Net before it, its self-attention layers are "
                    "compared; without, those of the decoder.",
                ),
                io.Latent.Input("image_latent", tooltip="The encoded source image. A noise mask on it is honoured."),
                io.Conditioning.Input("source", tooltip="What the image shows."),
                io.Conditioning.Input(
                    "target",
                    tooltip="What the result shall show. A list of several gives a list of results, and what they need to know "
                    "of the source is computed once.",
                ),
                io.Conditioning.Input("negative", tooltip="What CFG pushes away from: usually an empty prompt."),
                io.Float.Input("cfg", default=7.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="CFG scale (papers: 7.5)."),
                io.Int.Input("steps", default=200, min=1, max=10000, tooltip="Iterations (papers: 200). More change more."),
                io.Float.Input(
                    "step_size", default=round(PAPER_STEP_SIZE, 4), min=0.0, max=10.0, step=0.005, round=0.0001,
                    tooltip="How far one iteration moves the latent. Halve it for a gentler edit.",
                ),
                io.Combo.Input(
                    "step_rule", options=["fixed", "authors"], default="fixed",
                    tooltip="fixed: the same step at every image size. authors: as in the published code, where larger images "
                    "take smaller steps. Both are the same at 512x512 with SD.",
                ),
                io.Float.Input(
                    "w_dds", default=1.0, min=0.0, max=100.0, step=0.05, round=0.0001,
                    tooltip="Weight of the move towards the target (papers: 1).",
                ),
                io.Float.Input(
                    "w_cut", default=3.0, min=0.0, max=1000.0, step=0.1, round=0.0001,
                    tooltip="Weight of staying like the source, patch by patch (CDS: 3). 0 is DDS, and faster.",
                ),
                *patchnce_inputs(),
                io.Int.Input(
                    "min_timestep", default=50, min=0, max=999, tooltip="Least noise of an iteration (papers: 50)."
                ),
                io.Int.Input(
                    "max_timestep", default=948, min=0, max=999,
                    tooltip="Most noise of an iteration (papers: 948). Less keeps more of the layout.",
                ),
                io.Combo.Input(
                    "timestep_order", options=["random", "descending"], default="random",
                    tooltip="random: as in the papers. descending: from much noise to little, coarse changes first.",
                ),
                io.Int.Input(
                    "ids_steps", default=0, min=0, max=10,
                    tooltip="Refines the noise of each iteration so that the model recognises the source better (IDS: 3). Each "
                    "costs about as much as an iteration. 0 is off.",
                ),
                checkpointing_input(),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="For timesteps, noise and places.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the edit may act. The rest stays the source's, exactly."),
            ],
            outputs=[
                io.Latent.Output(
                    "edited_latent", display_name="edited_latent", is_output_list=True,
                    tooltip="For VAE Decode. One latent a target.",
                ),
                io.Custom("LOSS_MAP").Output(
                    "loss", display_name="loss", is_output_list=True,
                    tooltip="Weighted size of the score difference plus the weighted contrastive loss at each iteration.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    @item_by_item(whole="target")
    def execute(
        cls, model, image_latent, source, target, negative, cfg, steps, step_size, step_rule, w_dds, w_cut, temperature, patches,
        patch_sizes, contrast, min_timestep, max_timestep, timestep_order, ids_steps, checkpointing, seed, mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        samples = image_latent["samples"]
        check(model, samples, source, target, negative, min_timestep, max_timestep)
        weights = CDSWeights(w_dds, w_cut, PatchNCE(temperature, patches, parse_sizes(patch_sizes), contrast))
        layers = hooked_layers(model) or decoder_self_attention(model.get_model_object("diffusion_model"))
        if w_cut and not layers.self_attention:
            raise ValueError(
                f"w_cut is {w_cut:g}, but no self-attention layer of {type(model.model).__name__} is read; choose layers in "
                "Attention Hooked U-Net, use an SD1.x, SD2.x or SDXL model, or set w_cut to 0"
            )
        masks = [given for given in (mask, image_latent.get("noise_mask")) if given is not None]
        for given in masks:
            check_mask(given)
        mask = mask_for(samples, masks)
        if mask is not None and not mask.any():
            warn(cls, "the mask is 0 everywhere, so nothing was edited")
            return io.NodeOutput([image_latent] * len(target), [{"loss": [0.0] * steps}] * len(target))

        if step_rule == "authors":
            step_size *= authors_step_size(*samples.shape[-2:]) / PAPER_STEP_SIZE
        timesteps = draw_timesteps(steps, min_timestep, max_timestep, timestep_order, torch.Generator().manual_seed(seed))
        settings = CDSSettings(timesteps, layers, weights, cfg, step_size, ids_steps, checkpointing, seed)
        edited, losses = optimize(model, samples, source, target, negative, settings, mask)
        return io.NodeOutput([image_latent | {"samples": z} for z in edited], [{"loss": values} for values in losses])


def check(model, samples: torch.Tensor, source: list, targets: list[list], negative: list, low: int, high: int) -> None:
    if is_flow(model):
        raise ValueError("this is a flow model; it needs a model that predicts eps or v, such as SD1.x, SD2.x or SDXL")
    check_latent(samples, model)
    if low > high:
        raise ValueError(f"the range of timesteps is empty, {low} to {high}; min_timestep must not be above max_timestep")
    for target in targets:
        check_conditionings(model, samples, source=source, negative=negative, target=target)
    if any(same_text(source, target) for target in targets):
        raise ValueError("source and target are the same prompt, so there is nothing to change; say in target what is different")
