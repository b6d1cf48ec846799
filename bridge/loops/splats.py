"""The core's CDS on what the host's VAE sees of splats."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ...zerocon_core.methods.cds import TIMESTEPS, Gradient, Parameters, cds_optimize_rendered
from ...zerocon_core.splats.gaussians import Splats
from ...zerocon_core.splats.training import Trained, Training
from ..model.autograd import GradientRegion
from ..model.noising import levels_at
from ..splats import Cameras, splat_device
from .cds import CDSSettings, check_repeatable, scorer
from .hosted import Run, guider_of, run_hosted

BACKGROUND = 0.5
"""Behind the splats: grey, which edits of neither colour nor brightness favour."""
ROOM = 0.5
"""Share of the free memory that views may take."""
ENCODER_MEMORY = 3
"""Memory of an encoder's pass with a gradient, in units of what the host expects of one without: an estimate of ours."""
PREVIEW_SIDE = 512


@dataclass(frozen=True)
class Prompts:
    """CONDITIONINGs."""

    source: list
    target: list
    negative: list


def background(splats: Splats) -> Tensor:
    return torch.full((3,), BACKGROUND).to(splats.colors)


def room() -> float:
    """How many bytes the views of splats may take where they are drawn."""
    return ROOM * comfy.model_management.get_free_memory(splat_device())


class Encoder:
    """The host's VAE where gradients flow through its encoder, beside the models of a run. Made once a run, in its loop."""

    def __init__(self, vae: comfy.sd.VAE, run: Run, size: int):
        self.vae, self.network, self.like = vae, vae.first_stage_model, run.latent
        self.process_in = run.model.process_latent_in
        memory = ENCODER_MEMORY * vae.memory_used_encode((1, 3, size, size), vae.vae_dtype)
        models = comfy.model_management.loaded_models(only_currently_used=True)
        comfy.model_management.load_models_gpu([*models, vae.patcher], memory_required=memory)
        self.recording = GradientRegion([self.network]).recording

    def __call__(self, picture: Tensor) -> Tensor:
        """The latent (1, C, h, w), in the model's space, of a picture (H, W, 3)."""
        pixels = self.vae.process_input(picture.movedim(-1, 0)[None])
        z = self.network.encode(pixels.to(self.vae.device, self.vae.vae_dtype))
        return self.process_in(z.float().to(self.like.device))


def edit(run: Run, vae: comfy.sd.VAE, training: Training, settings: CDSSettings, batches: list[list[int]]):
    """The parameters of `training` after the edit, and the loss of each iteration."""
    encode = Encoder(vae, run, training.views.cameras[0].height)
    score = partial(scorer, run, layers=settings.compared, differentiable=bool(settings.weights.w_cut))
    check_repeatable(run, score("source"))
    bar, losses, shown = comfy.utils.ProgressBar(len(batches)), [], []

    def render(parameters: Parameters, view: int) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        picture = training.picture(parameters, view)
        shown[:] = [picture.detach()]
        return encode(picture)

    def report(iteration: int, states: list[Parameters], gradients: list[Gradient]) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        losses.append(gradients[0].loss)
        bar.update_absolute(iteration + 1, len(batches), preview(shown[0]))

    parameters = cds_optimize_rendered(
        run.noising,
        render,
        training.parameters,
        batches,
        score("source"),
        score("target"),
        run.sigmas,
        training.update,
        weights=settings.weights,
        seed=settings.seed,
        recording=run.recording(settings.checkpointing),
        rendering=encode.recording,
        callback=report,
    )
    return parameters, losses


def preview(picture: Tensor) -> tuple[str, Image.Image, int]:
    """A picture (H, W, 3) as the page shows it while a node runs."""
    return "JPEG", Image.fromarray((picture.clamp(0, 1) * 255).byte().cpu().numpy()), PREVIEW_SIDE


def optimize_splats(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    splats: Splats,
    cameras: Cameras,
    prompts: Prompts,
    settings: CDSSettings,
    trained: Trained,
    batches: list[list[int]],
    region: Tensor | None = None,
) -> tuple[Splats, list[float]]:
    """The edit of splats as `cameras` see them, and its losses. `settings.step_size` is the learning rate of the colours.

    `batches` says which cameras look at each iteration. Splats outside of `region` (N,) keep their bits.
    """
    side = cameras.size // vae.spacial_compression_encode()
    latent = torch.zeros(len(batches[0]), vae.latent_channels, side, side)

    def loop(run: Run) -> tuple[Splats, list[float]]:
        pinholes = cameras.pinholes()
        training = Training(splats, pinholes, background(splats), trained, settings.step_size, region, room())
        parameters, losses = edit(run, vae, training, settings, batches)
        return training.trained(parameters), losses

    return run_hosted(
        guider_of(model, settings.cfg, source=prompts.source, target=prompts.target, negative=prompts.negative),
        loop,
        latent,
        levels_at(model, (settings.timesteps.double() / (TIMESTEPS - 1)).tolist()),
        backward=bool(settings.weights.w_cut),
        checkpointing=settings.checkpointing,
    )


def draw_views(steps: int, per_step: int, count: int, generator: torch.Generator) -> list[list[int]]:
    """Which of `count` views each iteration looks at: all in random order before any comes again, so none is seen more often."""
    rounds = -(-steps * per_step // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])
    return order[: steps * per_step].view(steps, per_step).tolist()


def pictures_of(splats: Splats, views: Sequence) -> Tensor:
    """What the views show of the splats, (views, H, W, 3) in [0, 1], on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.stack([view.render(splats.colors, background(splats)).clamp(0, 1).cpu() for view in views])
