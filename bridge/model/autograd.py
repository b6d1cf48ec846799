"""Exact gradients through the host's models.

The host executes nodes in inference mode, its weights may be inference tensors, and they may be offloaded, quantised, or
streamed through a buffer that is overwritten before the backward pass. Plain autograd fails on the first and is silently wrong on
the last. Here every weighted operation is one autograd function that asks the host for its weight again in the backward pass, or
is computed again there, so no weight is ever saved or copied.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

BACKWARD_MEMORY = 10
"""Memory of a pass with gradients in units of the host's estimate for one without (benchmarks/backward_memory.py): autograd keeps
0.6 GiB for SD1.5 at 512x512 and 4.8 GiB for SDXL at 1024x1024 in float16, of which the host expects 0.16 and 0.5 under CFG."""

HAS_UNCAST = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters


def plain_alias(tensor: Tensor) -> Tensor:
    """A normal tensor over the memory of the inference tensor `tensor`."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def savable(value):
    """`value`, or its alias if it is an inference tensor that autograd would refuse to save."""
    return plain_alias(value) if type(value) in (Tensor, nn.Parameter) and value.is_inference() else value


class AliasInferenceTensors(TorchFunctionMode):
    """Lets autograd save the inference tensors that conditionings, masks and raw parameters may be."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {name: savable(value) for name, value in kwargs.items()} if kwargs else {}
        return func(*map(savable, args), **kwargs)


@contextlib.contextmanager
def host_weight(module: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """The weight of `module`, cast, patched and moved by the host to suit the input `like`."""
    if HAS_UNCAST:
        weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
        try:
            yield weight
        finally:
            comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    else:
        yield comfy.ops.cast_bias_weight(module, like)[0]


HOST_OPS = (comfy.ops.disable_weight_init, comfy.ops.manual_cast, comfy.ops.fp8_ops)
LINEAR_MAPS = {getattr(ops, name) for ops in HOST_OPS for name in ("Linear", "Conv2d")}


def is_linear_map(module: nn.Module) -> bool:
    """Whether the input gradient of `module` is a product with the weight that the host gives.

    Norms, quantised layers, layers of other packs and layers with a replaced forward are computed again in the backward pass
    instead, whatever it is that they do.
    """
    return type(module) in LINEAR_MAPS and "forward" not in module.__dict__


class WeightedOp(torch.autograd.Function):
    """One weighted operation, differentiable in its input only."""

    @staticmethod
    def forward(ctx, x: Tensor, module: nn.Module, run: Callable[[Tensor], Tensor], linear: bool) -> Tensor:
        ctx.module, ctx.run, ctx.linear, ctx.x_shape = module, run, linear, x.shape
        if not linear:
            ctx.save_for_backward(x)
        y = run(x)
        # A view would forbid the in-place additions that some models do to it.
        return plain_alias(y) if y._is_view() else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        module = ctx.module
        if not ctx.linear:
            # The backward pass may run on another thread, where the modes of the forward pass are not set.
            (x,) = ctx.saved_tensors
            with AliasInferenceTensors(), torch.enable_grad():
                x = x.detach().requires_grad_(True)
                return torch.autograd.grad(ctx.run(x), x, gradient)[0], None, None, None
        with host_weight(module, gradient) as weight:
            if isinstance(module, nn.Linear):
                return gradient @ weight, None, None, None
            x_gradient, _, _ = torch.ops.aten.convolution_backward(
                gradient, gradient.new_empty(ctx.x_shape), weight, None, module.stride, module.padding, module.dilation,
                False, (0, 0), module.groups, (True, False, False),
            )  # fmt: skip
            return x_gradient, None, None, None


def weighted_modules(root: nn.Module) -> Iterator[nn.Module]:
    """Modules of `root` that hold a weight and compute one operation of one tensor with it."""
    for module in root.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.GroupNorm, nn.LayerNorm)):
            if getattr(module, "weight", None) is not None:
                yield module


@contextlib.contextmanager
def replaced_forwards(modules: Iterable[nn.Module], wrap: Callable[[nn.Module], Callable]) -> Iterator[None]:
    """Each module runs `wrap(module)` in place of its forward while the context is open."""
    previous: list[tuple[nn.Module, Callable | None]] = []
    try:
        for module in modules:
            forward = wrap(module)
            previous.append((module, module.__dict__.get("forward")))
            module.forward = forward
        yield
    finally:
        for module, forward in reversed(previous):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def as_weighted_op(module: nn.Module) -> Callable[..., Tensor]:
    """The forward of `module` as a `WeightedOp`."""
    original, linear = module.forward, is_linear_map(module)

    def forward(x: Tensor, *args, **kwargs) -> Tensor:
        if not torch.is_grad_enabled():
            return original(x, *args, **kwargs)
        if x.requires_grad:
            return WeightedOp.apply(x, module, lambda x: original(x, *args, **kwargs), linear)
        with torch.no_grad():  # older hosts leave requires_grad on their weights
            return original(x, *args, **kwargs)

    return forward


def as_checkpoint(module: nn.Module) -> Callable[..., Tensor]:
    """The forward of a block of the U-Net, which keeps its input alone and runs once more in the backward pass."""
    original = module.forward

    def forward(x: Tensor, *args) -> Tensor:
        if not (x.requires_grad and torch.is_grad_enabled()):
            return original(x, *args)
        # The U-Net writes the number of the running block into the options that all blocks share.
        args = [dict(value) if isinstance(value, dict) else value for value in args]

        def run(x: Tensor) -> Tensor:
            with AliasInferenceTensors():  # the second run may be on another thread
                return original(x, *args)

        return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)

    return forward


def differentiable_attention(func: Callable, *args, **kwargs) -> Tensor:
    """The host's attention override for gradients: its faster kernels have none, or write into their arguments."""
    return attention_pytorch(*args, **kwargs)


@contextlib.contextmanager
def autograd_region(roots: Sequence[nn.Module], writes_in_place: bool = False, checkpointing: bool = False) -> Iterator[None]:
    """Where gradients flow through the host's models `roots`; everything is as before when it closes.

    `writes_in_place` keeps what a model overwrites after autograd saved it (ControlNet adds in place). It costs a check on every
    operation, so it is off where nothing does. `checkpointing` keeps the inputs of a U-Net's blocks alone and computes the rest
    again in the backward pass. Never await inside: inference mode belongs to the thread, not to the task.
    """
    management = comfy.model_management
    with contextlib.ExitStack() as stack:
        if hasattr(management, "in_training"):
            stack.callback(setattr, management, "in_training", management.in_training)
            management.in_training = True
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if writes_in_place:
            stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        stack.enter_context(AliasInferenceTensors())
        modules = [module for root in roots for module in weighted_modules(root)]
        stack.enter_context(replaced_forwards(modules, as_weighted_op))
        if checkpointing:
            blocks = [module for root in roots for module in root.modules() if isinstance(module, (ResBlock, SpatialTransformer))]
            stack.enter_context(replaced_forwards(blocks, as_checkpoint))
        yield


def reserve_for_backward(model_options: dict) -> None:
    """Has the host free memory for passes with gradients before it loads the model of a run with these options."""

    def prepare(executor, model, noise_shape, *args, **kwargs):
        return executor(model, [noise_shape[0] * BACKWARD_MEMORY, *noise_shape[1:]], *args, **kwargs)

    add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "zerocon", prepare, model_options, is_model_options=True)
