"""Low-rank adapters trained through the host's model, and handed back as the host's own LoRA."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...zerocon_core.language.directions import Embedding
from ...zerocon_core.methods.finetune import Example, Losses, LowRank, Objective, losses, training_steps
from ..model.attention import differentiable_options
from ..model.autograd import autograd_region, replaced_forwards, reserve_for_backward
from ..model.facts import attention_projections
from .inversion import ConditionalGuider

log = logging.getLogger(__name__)

CHECKPOINTED = 0.3
"""Share of autograd's memory that is left with checkpointing (benchmarks/training_memory.py: 0.27 for SD1.5, 0.2 for SDXL)."""


def new_adapters(model: ModelPatcher, rank: int, seed: int) -> dict[str, LowRank]:
    """Adapters of all attention projections, by name, that change nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):
        return {
            name: LowRank.neutral(layer.in_features, layer.out_features, rank, generator)
            for name, layer in attention_projections(model.model).items()
        }


def loaded_adapters(model: ModelPatcher, lora: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Adapters that continue `lora`. Raises ValueError unless it is a plain LoRA of exactly the attention projections."""
    adapters, read = {}, set()
    for name, layer in attention_projections(model.model).items():
        alpha = lora.get(f"{name}.alpha")
        loaded = LoRAAdapter.load(name, lora, None if alpha is None else float(alpha), lora.get(f"{name}.dora_scale"), read)
        if loaded is None:
            raise ValueError(f"the LoRA to continue has nothing for {name}")
        up, down, alpha, *others = loaded.weights
        if any(other is not None for other in others) or (up.shape[0], down.shape[1]) != (layer.out_features, layer.in_features):
            raise ValueError(f"the LoRA to continue is of another kind or size at {name}")
        with torch.inference_mode(False):
            adapters[name] = LowRank(down, up, float(len(down)) if alpha is None else alpha)
        read.add(f"{name}.alpha")
    if unknown := lora.keys() - read:
        raise ValueError(f"the LoRA to continue also changes {sorted(unknown)[0]}, which is not trained here")
    return adapters


def lora_state(adapters: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The host's LORA_MODEL: what its SaveLoRA writes and its loaders read."""
    state = {}
    for name, adapter in adapters.items():
        state[f"{name}.lora_up.weight"] = adapter.up.detach().to("cpu", copy=True)
        state[f"{name}.lora_down.weight"] = adapter.down.detach().to("cpu", copy=True)
        state[f"{name}.alpha"] = torch.tensor(adapter.alpha)
    return state


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
        """Makes all that the examples need, so that the text encoder is not needed while the U-Net trains."""
        for prompt in {prompt: None for batch in batches for example in batch for prompt in example.prompts}:
            self[prompt]


def adapted(layer: nn.Module, adapter: LowRank) -> Callable[[Tensor], Tensor]:
    """The forward of `layer` with the adapter's output added."""
    original = layer.forward
    return lambda x: original(x) + adapter(x)


def trainable(model: BaseModel, adapters: Mapping[str, LowRank]) -> AbstractContextManager:
    """Gradients to the adapters while the context is open, within the `autograd_region` of the model."""
    of = {layer: adapters[name] for name, layer in attention_projections(model).items()}
    return replaced_forwards(of, lambda layer: adapted(layer, of[layer]))


@dataclass(frozen=True)
class Training:
    """What to train on and how."""

    batches: Sequence[Sequence[Example]]
    """The examples of each pass, steps x accumulation of them."""
    embeddings: Mapping[str, Embedding]
    """Of every caption and target prompt."""
    objective: Objective
    learning_rate: float
    accumulation: int
    seed: int
    checkpointing: bool

    @property
    def steps(self) -> int:
        return len(self.batches) // self.accumulation

    @property
    def samples(self) -> int:
        """The most that one pass puts through the model."""
        return max(sum(len(example.prompts) for example in batch) for batch in self.batches)


class TrainingSampler(comfy.samplers.Sampler):
    """Trains where a sampler would denoise, so that the host loads and frees the model as it always does.

    A cancel and a loss that is not finite end the training, not the prompt: what was trained until then stays.
    """

    def __init__(self, training: Training, adapters: Mapping[str, LowRank], report: Callable[[str], None]):
        self.training = training
        self.adapters = adapters
        self.report = report
        self.history: list[Losses] = []

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        model, training = model_wrap.inner_model, self.training
        roots = [model, *(extra.model for extra in model_wrap.loaded_models)]
        half = (model.manual_cast_dtype or model.get_dtype()) == torch.float16
        with autograd_region(roots, checkpointing=training.checkpointing), trainable(model, self.adapters):
            adapters = nn.ModuleList(self.adapters.values()).to(noise.device)
            loss = batch_losses(model, training, extra_args["model_options"], noise.device)
            self.follow(
                training_steps(
                    list(adapters.parameters()), loss, training.steps, training.learning_rate, training.accumulation, half
                )
            )
        return latent_image

    def follow(self, steps: Iterator[Losses]) -> None:
        """Takes the steps with progress, and ends well where they end early."""
        total = self.training.steps
        progress = comfy.utils.ProgressBar(total)
        try:
            for losses in steps:
                self.history.append(losses)
                self.report(f"step {len(self.history)} of {total}, loss {losses.total:.4g}")
                progress.update(1)
                comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException:
            if not self.history:
                raise
            self.stopped("cancelled")
        except FloatingPointError as error:
            why = f"{error} at step {len(self.history) + 1}"
            if not self.history:
                raise ValueError(f"{why}; check the latents, lower learning_rate, or load the model in float32") from error
            self.stopped(why)

    def stopped(self, why: str) -> None:
        text = f"{why}; this is the LoRA of step {len(self.history)} of {self.training.steps}"
        log.warning("SoftContrastiveTrain: %s", text)
        self.report(text)


def batch_losses(model: BaseModel, training: Training, model_options: dict, device: torch.device) -> Callable[[], Losses]:
    """The losses of one batch after the other, under noise and at timesteps drawn from the seed."""
    generator = torch.Generator().manual_seed(training.seed)
    levels = model.model_sampling.sigmas.float().to(device)
    batches = iter(training.batches)
    options = differentiable_options(model_options)

    def predict(x: Tensor, sigma: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens, pooled = zip(*(training.embeddings[prompt] for prompt in prompts), strict=True)
        entry = [torch.cat(tokens), {} if pooled[0] is None else {"pooled_output": torch.cat(pooled)}]
        cond = comfy.sampler_helpers.convert_cond([entry])
        cond = comfy.samplers.process_conds(model, x, {"positive": cond}, device)["positive"]
        return comfy.samplers.calc_cond_batch(model, [cond], x, sigma, options)[0].float()

    def loss() -> Losses:
        batch = next(batches)
        shape = (len(batch), *batch[0].image.shape[1:])
        sigma = levels[torch.randint(len(levels), shape[:1], generator=generator).to(device)]
        noise = torch.randn(shape, generator=generator).to(device)
        return losses(predict, batch, noise, sigma, training.objective)

    return loss


def train(
    model: ModelPatcher, training: Training, adapters: Mapping[str, LowRank], report: Callable[[str], None]
) -> list[Losses]:
    """Trains `adapters` in place and returns the losses of each step; `report` gets a line after each.

    Raises ValueError if already the first step is not finite.
    """
    first = training.batches[0][0]
    guider = ConditionalGuider(model, [[training.embeddings[first.caption][0], {}]])
    guider.model_options = create_model_options_clone(guider.model_options)
    reserve_for_backward(guider.model_options)
    sampler = TrainingSampler(training, adapters, report)
    samples = math.ceil(training.samples * (CHECKPOINTED if training.checkpointing else 1))
    nothing = torch.zeros(samples, *first.image.shape[1:])  # its shape tells the host how much memory to free
    guider.sample(nothing, nothing, sampler, torch.zeros(1), disable_pbar=True)
    return sampler.history


def apply_lora(model: ModelPatcher, lora: dict[str, Tensor]) -> ModelPatcher:
    """`model` with the LoRA on it, by the host's own loader."""
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]
