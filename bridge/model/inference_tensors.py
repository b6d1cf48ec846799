"""Inference tensors, which autograd refuses to save: normal tensors over the same memory in their place."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

REFUSAL = "Inference tensors cannot be saved for backward"
"""How autograd's message begins."""


def plain_alias(tensor: Tensor) -> Tensor:
    """A normal tensor without a graph over the memory of `tensor`."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def savable(value: Any) -> Any:
    """`value`, or its alias if it is an inference tensor. Tensors of a class of their own stay as they are."""
    return plain_alias(value) if type(value) in (Tensor, nn.Parameter) and value.is_inference() else value


def all_savable(value: Any) -> Any:
    """`value` with every inference tensor in its lists, tuples and dicts replaced by an alias."""
    if type(value) is dict:
        return {key: all_savable(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(all_savable(item) for item in value)
    return savable(value)


class AliasInferenceTensors(TorchFunctionMode):
    """Aliases the arguments of every call: right wherever inference tensors come from, and a third slower than no mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {name: savable(value) for name, value in kwargs.items()} if kwargs else {}
        return func(*map(savable, args), **kwargs)
