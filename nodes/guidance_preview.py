from comfy_api.latest import io, ui

from ..bridge.curves import loss_curve
from ..bridge.loops.guidance import ZeroConGuider
from ..zerocon_core.drawing import Panel, plot
from ..zerocon_core.methods.guidance import GuidedStep
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases

NOTHING = GuidedStep(sigma=0.0, xa=0.0, cut=0.0, weighted_xa=0.0, weighted_cut=0.0, move=0.0)


class GuidancePreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConGuidancePreview",
            display_name="Guidance Preview",
            category="ZeroCon",
            **search_aliases("loss curve", "guidance loss"),
            description="Shows what PatchNCE Guidance did while it sampled: both losses and the size of its moves, step by step.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Guider.Input("guider", tooltip="The guider of PatchNCE Guidance that the sampler has."),
                io.Latent.Input(
                    "sampled", tooltip="The output of that sampler. It is not changed; it makes this node wait for the sampler."
                ),
            ],
            outputs=[
                io.Custom("LOSS_MAP").Output(
                    "loss", display_name="loss", tooltip="For Plot Loss Graph: the sum of both weighted losses at each step."
                ),
                io.Image.Output(
                    "curves", display_name="curves",
                    tooltip="Both losses, both times their weights, and the moves, over the noise levels.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(cls, guider, sampled) -> io.NodeOutput:
        if not isinstance(guider, ZeroConGuider):
            raise ValueError(f"this is a {type(guider).__name__}; it needs the guider of PatchNCE Guidance")
        steps = guider.history(sampled["samples"])
        if not steps:
            warn(
                cls,
                "no step was guided; raise lambda_xa or lambda_cut, or widen start_percent and end_percent, in PatchNCE Guidance",
            )
            steps = [NOTHING]
        curves = plot(panels(steps), [f"{step.sigma:.3g}" for step in steps], "sigma").unsqueeze(0)
        return io.NodeOutput(loss_curve([step.loss for step in steps]), curves, ui=ui.PreviewImage(curves))


def panels(steps: list[GuidedStep]) -> list[Panel]:
    weighted = {
        "cross-attention": [step.weighted_xa for step in steps],
        "contrastive": [step.weighted_cut for step in steps],
        "sum": [step.loss for step in steps],
    }
    return [
        Panel("Cross-attention loss L_xa", {"L_xa": [step.xa for step in steps]}),
        Panel("Contrastive loss L_cut", {"L_cut": [step.cut for step in steps]}),
        Panel("Weighted losses", weighted),
        Panel("Length of the move, % of the latent", {"move": [100 * step.move for step in steps]}),
    ]
