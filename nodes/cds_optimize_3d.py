import torch
from comfy_api.latest import io

from ..bridge.loops.cds import CDSSettings
from ..bridge.loops.splats import Prompts, draw_views, optimize_splats, pictures_of, room
from ..bridge.model.attention import hooked_layers
from ..bridge.model.facts import decoder_self_attention
from ..bridge.model.noising import is_flow
from ..bridge.splats import Cameras, splat_with
from ..zerocon_core.methods.cds import CDSWeights, draw_timesteps, timestep_range
from ..zerocon_core.methods.patchnce import PatchNCE
from ..zerocon_core.splats.training import TRAINED
from ..zerocon_core.splats.views import Views
from .shared import types
from .shared.checks import check_conditionings, same_text
from .shared.inputs import checkpointing_input, parse_sizes, patchnce_inputs
from .shared.models import check_image_model
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases
from .shared.splats import region_of, seen_splats


class CDSOptimize3D(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConCDSOptimize3D",
            display_name="CDS Optimize 3D",
            category="ZeroCon/3D",
            **search_aliases("contrastive denoising score", "gaussian splat", "edit 3D by text", "score distillation"),
            description="Edits a Gaussian splat by Contrastive Denoising Score: renders it, encodes the picture, and moves the "
            "splat along the difference of two prompts while the picture's patches stay those of the source. With w_cut 0 it is "
            "Delta Denoising Score.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD1.x, SD2.x or SDXL. With Attention Hooked U-Net before it, its self-attention layers are "
                    "compared; without, those of the decoder.",
                ),
                io.Vae.Input("vae", tooltip="The model's own, through whose encoder the splat is seen."),
                io.Splat.Input("splat", tooltip="One splat."),
                types.Cameras.Input("cameras", tooltip="Of Splat Views: from where the splat is seen, and how large."),
                io.Conditioning.Input("source", tooltip="What the views show."),
                io.Conditioning.Input("target", tooltip="What they shall show."),
                io.Conditioning.Input("negative", tooltip="What CFG pushes away from: usually an empty prompt."),
                io.Float.Input("cfg", default=7.5, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="CFG scale (papers: 7.5)."),
                io.Int.Input("steps", default=600, min=1, max=100000, tooltip="Iterations. More edit more."),
                io.Int.Input("views_per_step", default=1, min=1, max=64, tooltip="Cameras that look at each iteration."),
                io.Float.Input(
                    "learning_rate", default=0.01, min=0.0, max=1.0, step=0.001, round=0.00001,
                    tooltip="Adam's step on colours from 0 to 1. The rates of what else is trained follow it, as in PDS.",
                ),
                io.Combo.Input(
                    "train", options=list(TRAINED), default="colors",
                    tooltip="colors: the shape stays, and views are fast. everything: places, sizes and rotations too.",
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
                io.Float.Input(
                    "min_timestep", default=0.05, min=0.0, max=1.0, step=0.01, round=0.001,
                    tooltip="Least noise of an iteration, as a share of the schedule (papers: timestep 50 of 1000).",
                ),
                io.Float.Input(
                    "max_timestep", default=0.948, min=0.0, max=1.0, step=0.01, round=0.001,
                    tooltip="Most noise of an iteration, as a share of the schedule (papers: timestep 948 of 1000). Less keeps "
                    "more of the layout.",
                ),
                io.Combo.Input(
                    "timestep_order", options=["random", "descending"], default="random",
                    tooltip="random: as in the papers. descending: from much noise to little, coarse changes first.",
                ),
                checkpointing_input(),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="For noise, the order of the views, and places.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="What may change, one mask for each image of Splat Views. Without masks the backdrop changes too.",
                ),
            ],
            outputs=[
                io.Splat.Output("edited_splat", display_name="edited_splat", tooltip="For Render Splat and Save."),
                io.Image.Output("renders", display_name="renders", tooltip="The edited splat, seen by the cameras."),
                io.Custom("LOSS_MAP").Output(
                    "loss", display_name="loss",
                    tooltip="Weighted size of the score difference plus the weighted contrastive loss at each iteration.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(
        cls, model, vae, splat, cameras, source, target, negative, cfg, steps, views_per_step, learning_rate, train, w_dds, w_cut,
        temperature, patches, patch_sizes, contrast, min_timestep, max_timestep, timestep_order, checkpointing, seed, mask=None,
    ) -> io.NodeOutput:  # fmt: skip
        prompts = Prompts(source, target, negative)
        check(model, vae, cameras, prompts, views_per_step)
        first, last = timestep_range(min_timestep, max_timestep)
        weights = CDSWeights(w_dds, w_cut, PatchNCE(temperature, patches, parse_sizes(patch_sizes), contrast))
        layers = hooked_layers(model) or decoder_self_attention(model.get_model_object("diffusion_model"))
        if w_cut and not layers.self_attention:
            raise ValueError(
                f"w_cut is {w_cut:g}, but no self-attention layer of {type(model.model).__name__} is read; choose layers in "
                "Attention Hooked U-Net, use an SD1.x, SD2.x or SDXL model, or set w_cut to 0"
            )
        splats, views = seen_splats(cls, splat, cameras)
        inside = None if mask is None else region_of(mask, views, cameras)
        if mask is not None and inside is None:
            warn(cls, "the masks are 0 everywhere, so nothing was edited")
            return io.NodeOutput(splat, pictures_of(splats, views), {"loss": [0.0] * steps})
        del views

        draws = torch.Generator().manual_seed(seed)
        timesteps = draw_timesteps(steps, first, last, timestep_order, draws)
        batches = draw_views(steps, views_per_step, len(cameras), draws)
        settings = CDSSettings(timesteps, layers, weights, cfg, learning_rate, checkpointing=checkpointing, seed=seed)
        edited, losses = optimize_splats(model, vae, splats, cameras, prompts, settings, train, batches, inside)
        renders = pictures_of(edited, Views(edited, cameras.pinholes(), room()))
        return io.NodeOutput(splat_with(splat, splats, edited), renders, {"loss": losses})


def check(model, vae, cameras: Cameras, prompts: Prompts, views_per_step: int) -> None:
    check_image_model(model)
    if is_flow(model):
        raise ValueError("this is a flow model; it needs a model that predicts eps or v, such as SD1.x, SD2.x or SDXL")
    channels = model.get_model_object("latent_format").latent_channels
    if vae.latent_dim != 2 or vae.latent_channels != channels:
        raise ValueError(
            f"the VAE makes latents of {vae.latent_channels} channels and {vae.latent_dim} dimensions, and the model takes "
            f"images of {channels} channels; connect the model's own VAE"
        )
    side = vae.spacial_compression_encode()
    if cameras.size % side:
        raise ValueError(
            f"the cameras' pictures are {cameras.size} pixels wide; this VAE needs a multiple of {side}, so set size in Splat "
            f"Views to {max(1, round(cameras.size / side)) * side}"
        )
    if views_per_step > len(cameras):
        raise ValueError(f"views_per_step is {views_per_step} and there are {len(cameras)} cameras; it needs at most as many")
    check_conditionings(model, None, source=prompts.source, negative=prompts.negative, target=prompts.target)
    if same_text(prompts.source, prompts.target):
        raise ValueError("source and target are the same prompt, so there is nothing to change; say in target what is different")
