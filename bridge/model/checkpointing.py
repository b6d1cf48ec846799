"""Blocks that keep copies of their inputs alone and run once more in the backward pass.

torch.utils.checkpoint is silently wrong where a block writes in place to what autograd saved in its second run (FLUX's do), keeps
the graph of a run that is given up, and has no place for putting the weights of the first run back.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def copied(value: Any, copy: Callable[[Tensor], Tensor]) -> Any:
    """`value` with copies of its tensors, also in lists and tuples, and of its dicts: the model goes on to write to them."""
    if isinstance(value, Tensor):
        return copy(value)
    if type(value) is dict:
        return dict(value)
    if type(value) in (list, tuple):
        return type(value)(copied(item, copy) for item in value)
    return value


def leaf_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


class Repeatable:
    """One run of a block: what autograd saves in it is computed again when the first of it is asked for.

    Autograd gets the number of each tensor in place of the tensor. The second run happens on copies without a graph, so nothing
    refers to itself, and a run that is given up is freed. `again()` is the context of the second run.
    """

    def __init__(self, run: Callable[..., Any], again: Callable[[], AbstractContextManager], copies: bool):
        self.run = run
        self.again = again
        self.copies = copies
        self.args: list = []
        self.kwargs: list[tuple[str, Any]] = []
        self.saved = 0
        self.values: dict[int, Tensor] = {}

    def __call__(self, *args, **kwargs) -> Any:
        self.args = copied([*args], leaf_copy)
        self.kwargs = copied([*kwargs.items()], leaf_copy)
        with saved_tensors_hooks(self.number, self.value):
            return self.run(*args, **kwargs)

    def number(self, tensor: Tensor) -> int:
        self.saved += 1
        return self.saved - 1

    def value(self, number: int) -> Tensor:
        if number not in self.values:
            self.values = self.repeat(self.copies)
        return self.values.pop(number)

    def repeat(self, copies: bool) -> dict[int, Tensor]:
        """What the run saved, by number; with `copies`, as it was then, whatever the block wrote to it since."""
        kept: list[tuple[Tensor, int]] = []

        def keep(tensor: Tensor) -> None:
            tensor = tensor.detach().clone() if copies else tensor.detach()
            kept.append((tensor, tensor._version))

        with self.again(), torch.enable_grad():
            # Not the kept copies, which must not be written to; nor leaves, which may not.
            args, kwargs = copied(self.args, Tensor.clone), copied(self.kwargs, Tensor.clone)
            with saved_tensors_hooks(keep, lambda nothing: nothing):
                self.run(*args, **dict(kwargs))
        if len(kept) != self.saved:
            raise RuntimeError(f"a block of the model saved {self.saved} tensors in its first run and {len(kept)} in its second")
        if any(tensor._version != version for tensor, version in kept):
            return self.repeat(copies=True)
        return {number: tensor for number, (tensor, _) in enumerate(kept)}


def as_checkpoint(
    block: nn.Module, again: Callable[[], Callable[[], AbstractContextManager]], copies: bool
) -> Callable[..., Any]:
    """The forward of `block` as a `Repeatable`. `again()` is asked at the first run for the context of the second."""
    original = block.forward

    def forward(*args, **kwargs) -> Any:
        inputs = (*args, *kwargs.values())
        if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            return Repeatable(original, again(), copies)(*args, **kwargs)
        return original(*args, **kwargs)

    return forward
