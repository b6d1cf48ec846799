from comfy_api.latest import io

from ..bridge.loops.guidance import ZeroConGuider
from ..bridge.model.attention import hooked_layers
from ..zerocon_core.methods.guidance import GuidanceWeights
from ..zerocon_core.methods.patchnce import PatchNCE
from .shared.checks import check_conditionings, check_mask
from .shared.inputs import checkpointing_input, parse_sizes, patchnce_inputs
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases
from .shared.types import Trajectory


class PatchNCEGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConPatchNCEGuidance",
            display_name="PatchNCE Guidance",
            category="ZeroCon",
            **search_aliases("pix2pix-zero", "zerocon", "contrastive guidance", "image to image"),
            description="Holds an edit to its source while it is sampled: pix2pix-zero's cross-attention guidance and the "
            "patch-wise contrastive guidance of pix2pix-zeroCon.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "hooked_model", tooltip="The output of Attention Hooked U-Net. With both lambdas at 0 any model will do."
                ),
                io.Conditioning.Input("source", tooltip="What the source image shows; the condition it was inverted with."),
                io.Conditioning.Input("edited", tooltip="What the result shall show: the edited output of Edit Direction."),
                io.Conditioning.Input(
                    "negative", tooltip="What CFG pushes away from. pix2pix-zero uses the caption of the source here."
                ),
                Trajectory.Input("trajectory", tooltip="The trajectory output of DDIM Invert."),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where the edit is free: the guidance holds what is outside. Without it, everything is held.",
                ),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="CFG scale (papers: 5)."),
                io.Float.Input(
                    "lambda_xa", default=0.1, min=0.0, max=100.0, step=0.01, round=0.0001,
                    tooltip="How strongly the cross-attention maps are held to the source: more keeps more layout and edits "
                    "less. pix2pix-zero uses 0.1 for photos, 0.15 for generated images. 0 is off.",
                ),
                io.Float.Input(
                    "lambda_cut", default=0.5, min=0.0, max=100.0, step=0.05, round=0.0001,
                    tooltip="How strongly patches are held to the same place of the source. 0 is off: plain pix2pix-zero.",
                ),
                io.Combo.Input(
                    "weighting", options=["relative", "absolute"], default="relative",
                    tooltip="relative: lambda_cut is the length of the contrastive move as a share of the cross-attention "
                    "move, the same on every model. absolute: it is the factor on the loss.",
                ),
                *patchnce_inputs(),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Where guidance starts, as a share of the sampling.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Where guidance ends, as a share of the sampling. Ending early is faster and frees the details.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="For the choice of patches. No effect where a map has no more places than patches.",
                ),
                io.Combo.Input(
                    "outside", options=["guided", "inverted"], default="guided", optional=True,
                    tooltip="guided: outside the mask the edit is held by both losses. inverted: each step also puts the "
                    "inverted source back there; with both lambdas at 0 this is DiffEdit.",
                ),
                checkpointing_input(optional=True),
            ],
            outputs=[
                io.Guider.Output(
                    "guider", display_name="guider", tooltip="For SamplerCustomAdvanced, with euler or ddim as sampler."
                )
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(
        cls, hooked_model, source, edited, negative, trajectory, cfg, lambda_xa, lambda_cut, weighting, temperature, patches,
        patch_sizes, contrast, start_percent, end_percent, seed, mask=None, outside="guided",
        checkpointing=False,
    ) -> io.NodeOutput:  # fmt: skip
        patchnce = PatchNCE(temperature, patches, parse_sizes(patch_sizes), contrast)
        weights = GuidanceWeights(lambda_xa, lambda_cut, weighting == "relative", patchnce)
        check(hooked_model, source, edited, weights)
        check_conditionings(hooked_model, trajectory.latents[0], source=source, edited=edited, negative=negative)
        if mask is not None:
            check_mask(mask)
        if outside == "inverted" and mask is None:
            raise ValueError("outside is inverted, but there is no mask; connect one, such as that of Edit Mask")
        if outside == "inverted" and not mask.any():
            warn(cls, "the mask is 0 everywhere and outside is inverted: the result will be the source")
        guider = ZeroConGuider(
            hooked_model, trajectory, weights, start_percent, end_percent, seed, mask, outside == "inverted", checkpointing
        )
        guider.inner_set_conds({"positive": edited, "negative": negative, "source": source})
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


def check(hooked_model, source: list, edited: list, weights: GuidanceWeights) -> None:
    if not (weights.lambda_xa or weights.lambda_cut):
        return
    layers = hooked_layers(hooked_model)
    if layers is None:
        raise ValueError("the model has no hooks; put an Attention Hooked U-Net node before it")
    if weights.lambda_xa and not layers.cross_attention:
        raise ValueError(
            "lambda_xa is above 0, but no cross-attention layer is hooked; choose layers in Attention Hooked "
            "U-Net or set lambda_xa to 0"
        )
    if weights.lambda_cut and not layers.self_attention:
        raise ValueError(
            "lambda_cut is above 0, but no self-attention layer is hooked; choose layers in Attention Hooked "
            "U-Net or set lambda_cut to 0"
        )
    if weights.lambda_cut and weights.relative and not weights.lambda_xa:
        raise ValueError("lambda_cut is relative to the cross-attention move, but lambda_xa is 0; set weighting to absolute")
    if len(source) != len(edited) or any(s[0].shape[1:] != e[0].shape[1:] for s, e in zip(source, edited, strict=False)):
        raise ValueError(
            "source and edited conditioning differ in entries or tokens "
            f"({[tuple(c[0].shape) for c in source]} and {[tuple(c[0].shape) for c in edited]}); take both from one "
            "Edit Direction"
        )
