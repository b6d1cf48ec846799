"""Exact gradients through the host's models.

The host executes nodes in inference mode, and its weights and conditionings may be inference tensors, which autograd refuses.
Here they are aliased: parameters once a run, inputs at the door of each network. Weights that the host may move, cast, patch or
swap before the backward pass are never saved (weighted_ops); the others run by plain autograd.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .checkpointing import as_checkpoint
from .facts import gated_gelus, is_unet, repeated_blocks
from .inference_tensors import REFUSAL, AliasInferenceTensors, all_savable, plain_alias
from .patches import chance_of_now
from .weighted_ops import as_gated_gelu, as_resident, as_weighted_op, is_resident, weighted_modules

BACKWARD_MEMORY, CHECKPOINTED_MEMORY = 12, 5
"""Memory of a guided step, without and with checkpointing, in units of what the host expects of a plain step under CFG.

Counted as live bytes on the meta device, in float16, with fused attention, both losses and the pass of the reference: 0.81 and
0.36 GiB for SD1.5 at 512x512 (5.1 and 2.3 times what the host expects), 5.1 and 2.1 GiB for SDXL at 1024x1024 (10.0 and 4.0), and
a fifth for what no count sees.
"""

MISSING = object()


@contextlib.contextmanager
def replaced(places: Iterable[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    """Each (dict, key, value) holds while the context is open. Quicker than setting attributes of a module, and as good."""
    previous: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for place, key, value in places:
            previous.append((place, key, place.get(key, MISSING)))
            place[key] = value
        yield
    finally:
        for place, key, value in reversed(previous):
            if value is MISSING:
                del place[key]
            else:
                place[key] = value


def replaced_forwards(modules: Iterable[nn.Module], wrap: Callable[[nn.Module], Callable]) -> AbstractContextManager[None]:
    """Each module runs `wrap(module)` in place of its forward while the context is open."""
    return replaced((module.__dict__, "forward", wrap(module)) for module in modules)


def aliases(root: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor, Tensor]]:
    """What of `root` autograd would refuse to save, or to leave without gradient: (dict, key, tensor, alias)."""
    for module in root.modules():
        if hasattr(module, "_v"):  # streamed by the host, which never computes with what the module holds
            continue
        for place, kind in ((module._parameters, partial(nn.Parameter, requires_grad=False)), (module._buffers, Tensor.detach)):
            for name, tensor in place.items():
                if type(tensor) in (Tensor, nn.Parameter) and (tensor.is_inference() or tensor.requires_grad):
                    yield place, name, tensor, kind(plain_alias(tensor))


class GradientRegion:
    """Where gradients flow through the host's models; made once a run, entered for each pass.

    `roots` are BaseModels, whose hook LoRAs are then put back for each backward pass, and networks beside them (ControlNets).
    `writes_in_place` keeps copies of what autograd saves: for models that go on to write to it (ControlNet and patches of other
    nodes may, and networks that are no U-Net do). `checkpointing` keeps the inputs of blocks alone and computes the rest again in
    the backward pass.
    """

    def __init__(self, roots: Sequence[nn.Module], checkpointing: bool = False, writes_in_place: bool = False):
        self.roots = roots
        self.networks = [root.diffusion_model if isinstance(root, BaseModel) else root for root in roots]
        self.checkpointing = checkpointing
        self.device = comfy.model_management.get_torch_device()
        self.copies = writes_in_place or not all(is_unet(network) for network in self.networks)
        self.meets_inference_tensors = False
        """Whether something that is no parameter, buffer or input is an inference tensor: other packs bring such."""
        self.prepare()

    def prepare(self) -> None:
        """Looks at where all weights are."""
        self.aliases, self.forwards, self.residents = [], [], []
        with torch.inference_mode(False):
            for root, network in zip(self.roots, self.networks, strict=True):
                self.aliases += aliases(root)
                patcher = getattr(root, "current_patcher", None)
                self.replace(network, patcher if patcher is not None and patcher.hook_patches else None)
        self.storages = {module.weight.untyped_storage().data_ptr() for module, *_ in self.residents}

    def replace(self, network: nn.Module, swapper: ModelPatcher | None) -> None:
        """Finds the forwards of `network` that are replaced while the region is open. Blocks last: they run replaced layers."""

        def put(modules: Iterable[nn.Module], wrap: Callable[[nn.Module], Callable]) -> None:
            self.forwards += [(module.__dict__, "forward", wrap(module)) for module in modules]

        for module in weighted_modules(network):
            if swapper is None and is_resident(module):
                self.residents.append((module, module.weight, module.weight.data_ptr()))
                put([module], as_resident)
            else:
                put([module], partial(as_weighted_op, swapper=swapper))
        put(gated_gelus(network), as_gated_gelu)
        if self.checkpointing:
            put(repeated_blocks(network), partial(as_checkpoint, again=partial(self.again, swapper), copies=self.copies))
        put([network], self.door)

    def again(self, swapper: ModelPatcher | None) -> Callable[[], AbstractContextManager]:
        """The context in which a block that runs now can run once more."""
        hooks = None if swapper is None else swapper.current_hooks
        chance = chance_of_now(self.device) if self.copies else contextlib.nullcontext  # patches may leave something to it

        @contextlib.contextmanager
        def context() -> Iterator[None]:
            if swapper is not None:
                swapper.apply_hooks(hooks)
            with chance(), AliasInferenceTensors() if self.meets_inference_tensors else contextlib.nullcontext():
                yield

        return context

    def door(self, network: nn.Module) -> Callable:
        """The forward of `network` on inputs that autograd can save."""
        original = network.forward

        def run(args: tuple, kwargs: Mapping[str, Any]) -> Any:
            options = {"transformer_options": kwargs["transformer_options"]} if "transformer_options" in kwargs else {}
            # The host's options stay the dict that they are: blocks and patches write to it.
            return original(*all_savable(args), **all_savable({**kwargs}) | options)

        def forward(*args, **kwargs) -> Any:
            if not torch.is_grad_enabled():
                return original(*args, **kwargs)
            if not self.meets_inference_tensors:
                try:
                    return run(args, kwargs)
                except RuntimeError as error:
                    if REFUSAL not in str(error):
                        raise
                self.meets_inference_tensors = True
            with AliasInferenceTensors():
                return run(args, kwargs)

        return forward

    def copied(self, tensor: Tensor) -> Tensor:
        """A copy of what autograd saves, but of weights, which nothing writes to."""
        return tensor if tensor.untyped_storage().data_ptr() in self.storages else tensor.clone()

    def moved(self) -> bool:
        """Whether the host has put weights elsewhere since they were looked at."""
        return any(
            place.get(name) is not tensor or tensor.data_ptr() != alias.data_ptr() for place, name, tensor, alias in self.aliases
        ) or any(
            module.weight is not weight or weight.data_ptr() != pointer or module.weight_function or module.bias_function
            for module, weight, pointer in self.residents
        )

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Passes and their backward pass happen in here; everything is as before when it closes.

        Never await inside: inference mode belongs to the thread, not to the task.
        """
        if self.moved():
            self.prepare()
        management = comfy.model_management
        with contextlib.ExitStack() as stack:
            if hasattr(management, "in_training"):
                stack.enter_context(replaced([(vars(management), "in_training", True)]))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if self.copies:
                stack.enter_context(saved_tensors_hooks(self.copied, lambda tensor: tensor))
            stack.enter_context(replaced((place, name, alias) for place, name, _, alias in self.aliases))
            stack.enter_context(replaced(self.forwards))
            try:
                yield
            except BaseException:
                forget_failed_backward()
                raise


def forget_failed_backward() -> None:
    """Autograd keeps the error of a backward pass, and all that the pass held, until it runs again: here it does."""
    with torch.inference_mode(False), torch.enable_grad():
        torch.ones((), requires_grad=True).clone().backward()


def may_write_in_place(conds: Iterable[Sequence[Mapping[str, Any]]], model_options: Mapping[str, Any]) -> bool:
    """Whether something beside the model acts in its passes: what a ControlNet, a patch or a hook writes to cannot be known."""
    options = model_options.get("transformer_options", {})
    acts = any(options.get(kind) for kind in ("patches", "patches_replace"))
    return acts or any(name in entry for cond in conds for entry in cond for name in ("control", "hooks", "gligen"))


def reserve_for_backward(model_options: dict, checkpointing: bool = False) -> None:
    """Has the host free memory for passes with gradients before it loads the model of a run with these options."""
    factor = CHECKPOINTED_MEMORY if checkpointing else BACKWARD_MEMORY

    def prepare(executor, model, noise_shape, *args, **kwargs):
        return executor(model, [noise_shape[0] * factor, *noise_shape[1:]], *args, **kwargs)

    add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "zerocon", prepare, model_options, is_model_options=True)
