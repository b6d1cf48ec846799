"""Contrastive fine-tuning, hosted: adapters trained through the host's model."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...zerocon_core.language.directions import Embedding
from ...zerocon_core.methods.finetune import Example, Losses, LossValues, LowRank, Objective, losses, training_steps
from ..model.adapters import trainable
from ..model.attention import differentiable_options
from ..model.noising import noising_of
from .hosted import Run, guider_of, run_hosted

log = logging.getLogger(__name__)


def model_latents(model: ModelPatcher, images: Iterable[Tensor]) -> list[Tensor]:
    """LATENT samples (1, C, H, W) in the model's own latent space. Raises ValueError for those of another VAE."""
    channels = model.model.latent_format.latent_channels
    for image in images:
        if image.shape[1] != channels:
            raise ValueError(f"the latents have {image.shape[1]} channels and the model {channels}; encode with the model's VAE")
    return [model.model.process_latent_in(image.float()) for image in images]


class Embeddings(dict[str, Embedding]):
    """Token and pooled embedding of each prompt, made when it is first asked for."""

    def __init__(self, encoder: Callable[[str], Embedding]):
        super().__init__()
        self.encoder = encoder

    def __missing__(self, prompt: str) -> Embedding:
        self[prompt] = self.encoder(prompt)
        return self[prompt]

    def encode(self, batches: Iterable[Iterable[Example]]) -> None:
        """Makes all that the examples need, so that the text encoder is not needed while the U-Net trains. Can be cancelled."""
        for batch in batches:
            comfy.model_management.throw_exception_if_processing_interrupted()
            for prompt in chain.from_iterable(example.prompts for example in batch):
                self[prompt]

    def conditioning(self, prompts: Sequence[str]) -> list:
        """The CONDITIONING of a batch in which each sample has its own prompt."""
        tokens, pooled = zip(*(self[prompt] for prompt in prompts), strict=True)
        return [[torch.cat(tokens), {} if pooled[0] is None else {"pooled_output": torch.cat(pooled)}]]


@dataclass(frozen=True)
class Draws:
    """The examples of one pass after the other, drawn when they are asked for, and the same each time."""

    draw: Callable[[], Iterator[list[Example]]]

    def __iter__(self) -> Iterator[list[Example]]:
        return self.draw()


@dataclass(frozen=True)
class Training:
    """What to train on and how."""

    batches: Iterable[Sequence[Example]]
    """The examples of each pass, steps x accumulation of them, the same each time that they are asked for."""
    steps: int
    samples: int
    """The most that one pass puts through the model."""
    embeddings: Embeddings
    """Of every caption and target prompt."""
    objective: Objective
    learning_rate: float
    accumulation: int
    seed: int
    checkpointing: bool


def follow(steps: Iterator[LossValues], total: int, report: Callable[[str], None]) -> list[LossValues]:
    """Takes the steps with progress, and ends well where they end early: what was trained until then stays.

    A cancel and a loss that is not finite end the training, not the prompt, unless there is nothing to keep yet.
    """
    history: list[LossValues] = []
    progress = comfy.utils.ProgressBar(total)

    def stopped(why: str) -> None:
        text = f"{why}; this is the LoRA of step {len(history)} of {total}"
        log.warning("%s", text)
        report(text)

    try:
        for losses in steps:
            history.append(losses)
            report(f"step {len(history)} of {total}, loss {losses.total:.4g}")
            progress.update(1)
            comfy.model_management.throw_exception_if_processing_interrupted()
    except comfy.model_management.InterruptProcessingException:
        if not history:
            raise
        stopped("cancelled")
    except FloatingPointError as error:
        why = f"{error} at step {len(history) + 1}"
        if not history:
            raise ValueError(f"{why}; check the latents, lower learning_rate, or load the model in float32") from error
        stopped(why)
    return history


def batch_losses(model: BaseModel, training: Training, model_options: dict, device: torch.device) -> Callable[[], Losses]:
    """The losses of one batch after the other, under noise and at timesteps drawn from the seed."""
    noising = noising_of(model.model_sampling)
    generator = torch.Generator().manual_seed(training.seed)
    levels = model.model_sampling.sigmas.float().to(device)
    batches = iter(training.batches)
    options = differentiable_options(model_options)

    def predict(x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        cond = comfy.sampler_helpers.convert_cond(training.embeddings.conditioning(prompts))
        # Inpaint models look at the shape of the image, and get an empty one: all of it is to be painted.
        cond = comfy.samplers.process_conds(model, x, {"positive": cond}, device, latent_image=x)["positive"]
        return comfy.samplers.calc_cond_batch(model, [cond], x, sigma, options)[0].float()

    def loss() -> Losses:
        batch = next(batches)
        shape = (len(batch), *batch[0].image.shape[1:])
        sigma = levels[torch.randint(len(levels), shape[:1], generator=generator).to(device)]
        noise = torch.randn(shape, generator=generator).to(device)
        return losses(noising, predict, batch, noise, sigma, training.objective)

    return loss


def train(
    model: ModelPatcher, training: Training, adapters: Mapping[str, LowRank], report: Callable[[str], None]
) -> list[LossValues]:
    """Trains `adapters` in place and returns the losses of each step; `report` gets a line after each.

    Raises ValueError if already the first step is not finite.
    """

    def steps(run: Run) -> list[LossValues]:
        half = (run.model.manual_cast_dtype or run.model.get_dtype()) == torch.float16
        with run.recording(training.checkpointing)(), trainable(run.model, adapters):
            parameters = list(nn.ModuleList(adapters.values()).to(run.latent.device).parameters())
            loss = batch_losses(run.model, training, run.options, run.latent.device)
            taken = training_steps(parameters, loss, training.steps, training.learning_rate, training.accumulation, half)
            return follow(taken, training.steps, report)

    first = next(iter(training.batches))[0]
    nothing = torch.zeros(training.samples, *first.image.shape[1:])  # its shape tells the host how much memory to free
    guider = guider_of(model, positive=training.embeddings.conditioning([first.caption]))
    return run_hosted(guider, steps, nothing, torch.zeros(1), backward=True, checkpointing=training.checkpointing)
