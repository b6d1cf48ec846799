import torch
from comfy_api.latest import io

from ..bridge.loops.inversion import default_sigmas, invert
from ..bridge.model.noising import is_flow
from ..bridge.status import say
from ..zerocon_core.methods.inversion import NoiseRegularization
from .shared.checks import check_conditionings, check_latent
from .shared.models import check_image_model
from .shared.refusals import refusing, warn
from .shared.schema import search_aliases
from .shared.types import Trajectory


class DDIMInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConDDIMInvert",
            display_name="DDIM Invert",
            category="ZeroCon",
            **search_aliases("inversion", "unsample", "image to noise"),
            description="Finds the noise that the model turns back into the image, and the way there.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to invert with: the one that will edit."),
                io.Latent.Input("image_latent", tooltip="The encoded source image."),
                io.Conditioning.Input("conditioning", tooltip="What the image shows: the source output of Edit Direction."),
                io.Sigmas.Input(
                    "schedule",
                    optional=True,
                    tooltip="Noise levels from a scheduler node. Without it, as many steps as below, from pure noise on.",
                ),
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="Steps of the inversion. Not used with a schedule connected."
                ),
                io.Float.Input(
                    "lambda_ac", default=0.0, min=0.0, max=100.0, step=0.1,
                    tooltip="Pull of the predicted noise towards being uncorrelated. pix2pix-zero uses 20; 0 is off: "
                    "plain DDIM inversion.",
                ),
                io.Float.Input(
                    "lambda_kl", default=0.0, min=0.0, max=100.0, step=0.1,
                    tooltip="Pull of the predicted noise towards unit variance. pix2pix-zero uses 20; 0 is off.",
                ),
                io.Int.Input(
                    "regularization_steps", default=5, min=1, max=50,
                    tooltip="Rounds of both pulls in each step (pix2pix-zero: 5). No effect with both at 0.",
                ),
                io.Int.Input(
                    "rolls", default=5, min=1, max=50,
                    tooltip="Random shifts in each round, at which the noise is compared with itself (pix2pix-zero: 5).",
                ),
                io.Int.Input(
                    "refinements", default=0, min=0, max=20,
                    tooltip="Further fixed-point iterations in each step. Each costs one more model pass and brings the "
                    "reconstruction closer; 0 is plain DDIM inversion.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="For the random shifts. No effect with lambda_ac at 0.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "noise_latent", display_name="noise_latent",
                    tooltip="For SamplerCustomAdvanced, with DisableNoise as its noise.",
                ),
                Trajectory.Output(
                    "trajectory", display_name="trajectory",
                    tooltip="For PatchNCE Guidance and Attention Injection: the source at every noise level.",
                ),
                io.Sigmas.Output("sigmas", display_name="sigmas", tooltip="The noise levels to sample over."),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(
        cls, model, image_latent, conditioning, steps, lambda_ac, lambda_kl, regularization_steps, rolls, refinements,
        seed, schedule=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_image_model(model)
        if is_flow(model):
            raise ValueError(
                "this is a flow model, whose path has no DDIM inversion; it needs a model that predicts eps or v, "
                "such as SD1.x, SD2.x or SDXL"
            )
        sigmas = default_sigmas(model, steps) if schedule is None else schedule
        check_sigmas(sigmas)
        samples = image_latent["samples"]
        check_latent(samples, model)
        check_conditionings(model, samples, source=conditioning)
        if "noise_mask" in image_latent:
            warn(
                cls,
                "the noise mask of the latent is dropped, because the whole image is inverted; connect the mask to PatchNCE "
                "Guidance",
            )
        regularization = None
        if lambda_ac > 0 or lambda_kl > 0:
            regularization = NoiseRegularization(lambda_ac, lambda_kl, regularization_steps, rolls)
        sampling = model.get_model_object("model_sampling")
        say(cls.hidden.unique_id, f"inverting to sigma {float(sigmas[0]):.4g} of {float(sampling.sigma_max):.4g}")
        noise, trajectory = invert(model, samples, conditioning, sigmas, regularization, refinements, seed)
        if not torch.isfinite(noise).all():
            raise ValueError(
                "the inversion gave values that are not finite; lower lambda_ac and lambda_kl, or load the model in float32"
            )
        latent = {key: value for key, value in image_latent.items() if key != "noise_mask"}
        return io.NodeOutput(latent | {"samples": noise}, trajectory, sigmas)


def check_sigmas(sigmas: torch.Tensor) -> None:
    if len(sigmas) < 2:
        raise ValueError(
            f"the schedule has {max(len(sigmas) - 1, 0)} steps; it needs at least 1. Check steps and denoise of the "
            "scheduler node"
        )
    if not (torch.isfinite(sigmas).all() and (sigmas.diff() < 0).all() and sigmas[-1] >= 0):
        raise ValueError("the schedule must fall from high to low noise, as scheduler nodes give it; do not flip it")
