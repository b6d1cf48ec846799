"""A network on the host's device, in the host's books."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import nn


@contextmanager
def on_device(network: nn.Module) -> Iterator[None]:
    """Where the host computes text encoders, which it makes room for. Afterwards the network is the host's to unload."""
    patcher = ModelPatcher(
        nn.ModuleList([network]),  # the patcher sets its model's `device`, which transformers' models forbid
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
    comfy.model_management.load_models_gpu([patcher])
    yield
