"""Contrastive fine-tuning under a patch: the LoRA of two runs, and the gradient to its weights."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from zerocon_pack.bridge.loops.hosted import Run, guider_of, run_hosted
from zerocon_pack.bridge.loops.training import Embeddings, Training, batch_losses
from zerocon_pack.bridge.model.adapters import new_adapters, trainable
from zerocon_pack.bridge.model.conditioning import SentenceEncoder
from zerocon_pack.nodes.soft_contrastive_train import SoftContrastiveTrain
from zerocon_pack.zerocon_core.methods.finetune import Example, Objective

from .reference import gradient_error
from .subject import Subject, execute

WORDS = "red, green, blue, yellow, white, black\ncircle, square, triangle, star"


def lora(subject: Subject, checkpointing: bool) -> Tensor:
    """All weights of a LoRA of two steps, as one vector."""
    settings = dict(
        model=subject.model, clip=subject.clip, latents=subject.latent, captions=subject.caption, words=WORDS, target_count=2,
        contrast="Soft-CL", soft_augmentation=True, lambda_contrast=1.0, mask_threshold=0.2, margin=1.0, rank=2,
        learning_rate=0.001, steps=2, batch_size=1, accumulation=1, gradient_checkpointing=checkpointing, seed=0,
    )  # fmt: skip
    _, state, _ = execute(SoftContrastiveTrain, **{name: [value] for name, value in settings.items()})
    return torch.cat([state[name].flatten() for name in sorted(state)])


def gradient_to_adapters(subject: Subject, bound: float) -> float:
    """How far the gradient of L_LDM to the weights of fresh adapters is from central differences."""
    image = subject.model.model.process_latent_in(subject.latent["samples"].clone())
    embeddings = Embeddings(SentenceEncoder(subject.clip))
    job = Training([[Example(image, subject.caption)]], 1, 1, embeddings, Objective(), 1e-3, 1, 0, False)
    adapters = new_adapters(subject.model, 2, 0)
    parameters = list(nn.ModuleList(adapters.values()).parameters())

    def measure(run: Run) -> float:
        with run.recording()(), trainable(run.model, adapters):

            def total(weights: Tensor) -> Tensor:
                vector_to_parameters(weights, parameters)
                return batch_losses(run.model, job, run.options, weights.device)().total

            start = parameters_to_vector(parameters).detach().clone()
            gradient = torch.autograd.grad(total(start), parameters, allow_unused=True)
            known = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=True)]
            with torch.no_grad():
                return gradient_error(lambda weights: float(total(weights)), start, parameters_to_vector(known), bound)

    guider = guider_of(subject.model, positive=embeddings.conditioning([subject.caption]))
    return run_hosted(guider, measure, torch.zeros_like(image), torch.zeros(1), backward=True)
