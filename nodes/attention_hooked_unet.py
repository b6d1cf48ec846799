from comfy_api.latest import io

from ..bridge.model.attention import hook_layers
from ..bridge.model.facts import HookedLayers, transformer_layers
from .shared.models import check_image_model
from .shared.refusals import refusing
from .shared.schema import search_aliases

PARTS = {
    "decoder": {"output"},
    "encoder": {"input"},
    "middle": {"middle"},
    "all": {"input", "middle", "output"},
    "none": set(),
}


class AttentionHookedUNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConAttentionHookedUNet",
            display_name="Attention Hooked U-Net",
            category="ZeroCon",
            **search_aliases("attention hooks", "cross attention", "self attention"),
            description="Chooses the attention layers that ZeroCon's guidance reads. Changes nothing anywhere else.",
            inputs=[
                io.Model.Input("model", tooltip="A U-Net: SD1.x, SD2.x or SDXL, with any LoRA already applied."),
                io.Combo.Input(
                    "self_attention", options=list(PARTS), default="decoder",
                    tooltip="Layers whose outputs the patch-wise contrastive loss compares. CDS found the decoder best.",
                ),
                io.Combo.Input(
                    "cross_attention", options=list(PARTS), default="all",
                    tooltip="Layers whose attention maps are held to those of the source. pix2pix-zero reads all.",
                ),
                io.Int.Input(
                    "max_side", default=0, min=0, max=1024,
                    tooltip="Leaves out maps with more positions than this number squared, to save memory: 32 leaves out "
                    "the 64x64 maps of SD1.x at 512x512. 0 reads all.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "hooked_model", display_name="hooked_model", tooltip="The same model with the choice of layers on it."
                )
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls, model, self_attention, cross_attention, max_side) -> io.NodeOutput:
        check_image_model(model)
        layers = transformer_layers(model.get_model_object("diffusion_model"))
        if not layers:
            raise ValueError(
                f"{type(model.model).__name__} is not a U-Net with attention layers; it needs a model of "
                "the SD1.x, SD2.x or SDXL family"
            )
        chosen = HookedLayers(
            self_attention=frozenset(layer for layer in layers if layer.block in PARTS[self_attention]),
            cross_attention=frozenset(layer for layer in layers if layer.block in PARTS[cross_attention]),
            max_side=max_side,
        )
        return io.NodeOutput(hook_layers(model, chosen))
