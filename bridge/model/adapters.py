"""Low-rank adapters of a model's attention: made new or from a LoRA, put on its layers, handed back as the host's own LoRA."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import comfy.sd
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...zerocon_core.methods.finetune import LowRank
from .autograd import replaced_forwards
from .facts import attention_projections


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
        fits = up.ndim == down.ndim == 2 and (len(up), down.shape[1]) == (layer.out_features, layer.in_features)
        if not fits or any(other is not None for other in others):
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


def adapted(layer: nn.Module, adapter: LowRank) -> Callable[[Tensor], Tensor]:
    """The forward of `layer` with the adapter's output added."""
    original = layer.forward
    return lambda x: original(x) + adapter(x)


def trainable(model: BaseModel, adapters: Mapping[str, LowRank]) -> AbstractContextManager:
    """Gradients to the adapters while the context is open, within the `GradientRegion` of the model."""
    of = {layer: adapters[name] for name, layer in attention_projections(model).items()}
    return replaced_forwards(of, lambda layer: adapted(layer, of[layer]))


def apply_lora(model: ModelPatcher, lora: dict[str, Tensor]) -> ModelPatcher:
    """`model` with the LoRA on it, by the host's own loader."""
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]
