"""Operations with weights that autograd never saves: each asks the host for its weight again in the backward pass.

The host may cast, patch or move a weight for each use, stream it through a buffer that the next operation overwrites, and swap
it for that of another conditioning (hook LoRAs) before the backward pass. Plain autograd would keep the first and be silently
wrong on the others.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import comfy.ops
import torch
import torch.nn.functional as F
from comfy.hooks import HookGroup
from comfy.ldm.modules.attention import GEGLU
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .inference_tensors import AliasInferenceTensors

HAS_UNCAST = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters


@contextlib.contextmanager
def host_weights(module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias of `module`, cast, patched and moved by the host to suit the input `like`."""
    if HAS_UNCAST:
        weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
        try:
            yield weight, bias
        finally:
            comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    else:
        yield comfy.ops.cast_bias_weight(module, like)


def is_plain(module: nn.Module) -> bool:
    """Whether the parameters of `module` are plain tensors that the host neither patches nor streams."""
    return (
        type(module.weight) in (Tensor, nn.Parameter)
        and not (module.weight_function or module.bias_function)
        and not hasattr(module, "_v")
    )


@dataclass(frozen=True, slots=True)
class Operation:
    """One weighted module, the forward that it had, and whose hook LoRAs swap its weight (None if none do)."""

    module: nn.Module
    forward: Callable[..., Tensor]
    swapper: ModelPatcher | None

    def hooks(self) -> HookGroup | None:
        """Whose weights are in the model now."""
        return None if self.swapper is None else self.swapper.current_hooks

    def weights_of(self, hooks: HookGroup | None, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Weight and bias for an input like `like`, as they were in the pass of `hooks`."""
        self.restore(hooks)
        return host_weights(self.module, like)

    def restore(self, hooks: HookGroup | None) -> None:
        """Has the host put the weights of `hooks` back."""
        if self.swapper is not None:
            self.swapper.apply_hooks(hooks)


class LinearOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, op: Operation) -> Tensor:
        ctx.op, ctx.hooks = op, op.hooks()
        return op.forward(x).data  # no view, which would forbid the in-place additions that some models do to it

    @staticmethod
    def backward(ctx, gradient: Tensor):
        with ctx.op.weights_of(ctx.hooks, gradient) as (weight, _):
            return gradient @ weight, None


class Conv2dOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, op: Operation) -> Tensor:
        ctx.op, ctx.hooks, ctx.x_shape = op, op.hooks(), x.shape
        return op.forward(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        conv = ctx.op.module
        with ctx.op.weights_of(ctx.hooks, gradient) as (weight, _):
            x_gradient, _, _ = torch.ops.aten.convolution_backward(
                gradient, gradient.new_empty(ctx.x_shape), weight, None, conv.stride, conv.padding, conv.dilation,
                False, (0, 0), conv.groups, (True, False, False),
            )  # fmt: skip
            return x_gradient, None


class NormOp(torch.autograd.Function):
    """A norm of groups or of layers, which keeps its input and the statistics, and no weight."""

    @staticmethod
    def forward(ctx, x: Tensor, op: Operation) -> Tensor:
        ctx.op, ctx.hooks, x = op, op.hooks(), x.contiguous()
        normalise = group_norm if isinstance(op.module, nn.GroupNorm) else layer_norm
        with host_weights(op.module, x) as (weight, bias):
            y, mean, rstd = normalise(op.module, x, weight, bias)
        ctx.save_for_backward(x, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        norm = ctx.op.module
        backward = group_norm_backward if isinstance(norm, nn.GroupNorm) else layer_norm_backward
        with ctx.op.weights_of(ctx.hooks, gradient) as (weight, _):
            return backward(norm, gradient.contiguous(), *ctx.saved_tensors, weight), None


Normalised = tuple[Tensor, Tensor, Tensor]
"""What a norm gives: the result, the mean, and one by the deviation."""

OF_INPUT = (True, False, False)
"""Which gradients of input, weight and bias are asked for."""


def group_norm(norm: nn.GroupNorm, x: Tensor, weight: Tensor, bias: Tensor | None) -> Normalised:
    return torch.ops.aten.native_group_norm(x, weight, bias, *group_sizes(norm, x), norm.eps)


def group_norm_backward(norm: nn.GroupNorm, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    sizes = group_sizes(norm, x)
    return torch.ops.aten.native_group_norm_backward(gradient, x, mean, rstd, weight, *sizes, OF_INPUT)[0]


def group_sizes(norm: nn.GroupNorm, x: Tensor) -> tuple[int, int, int, int]:
    """Samples, channels, places and groups, as PyTorch's group norm takes them."""
    samples, channels = x.shape[:2]
    return samples, channels, x.numel() // (samples * channels), norm.num_groups


def layer_norm(norm: nn.LayerNorm, x: Tensor, weight: Tensor, bias: Tensor | None) -> Normalised:
    return torch.ops.aten.native_layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def layer_norm_backward(norm: nn.LayerNorm, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    shape = norm.normalized_shape
    return torch.ops.aten.native_layer_norm_backward(gradient, x, shape, mean, rstd, weight, None, OF_INPUT)[0]


class RepeatedOp(torch.autograd.Function):
    """Any operation of one tensor, computed again in the backward pass, whatever it is that it does.

    For norms without a native backward, quantised layers, layers of other packs and layers with a replaced forward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, op: Operation, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.op, ctx.hooks, ctx.run = op, op.hooks(), run
        ctx.save_for_backward(x)
        return run(x).data

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (x,) = ctx.saved_tensors
        ctx.op.restore(ctx.hooks)
        with AliasInferenceTensors(), torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return torch.autograd.grad(ctx.run(x), x, gradient)[0], None, None


class GatedGelu(torch.autograd.Function):
    """x gelu(gate) that keeps its input alone, where autograd also keeps gelu(gate): a fifth of what SDXL's pass keeps."""

    @staticmethod
    def forward(ctx, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        x, gate = hidden.chunk(2, dim=-1)
        return x * F.gelu(gate)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, gate = ctx.saved_tensors[0].chunk(2, dim=-1)
        return torch.cat((gradient * F.gelu(gate), torch.ops.aten.gelu_backward(gradient * x, gate)), dim=-1)


HOST_OPS = (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
NATIVE = {
    getattr(ops, name): function
    for ops in HOST_OPS
    for name, function in (("Linear", LinearOp), ("Conv2d", Conv2dOp), ("GroupNorm", NormOp), ("LayerNorm", NormOp))
} | {comfy.ops.fp8_ops.Linear: LinearOp}
"""The host's own layers, whose input gradient is a product with the weight that the host gives."""


def native_op(module: nn.Module) -> type[torch.autograd.Function] | None:
    """The operation of a layer of the host that does what its class does; None for all else."""
    known = "forward" not in module.__dict__ and getattr(module, "weight", None) is not None
    return NATIVE.get(type(module)) if known else None


def weighted_modules(root: nn.Module) -> Iterator[nn.Module]:
    """Modules of `root` that hold a weight and compute one operation of one tensor with it."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return (module for module in root.modules() if isinstance(module, kinds) and getattr(module, "weight", None) is not None)


def without_graph(y: Tensor) -> Tensor:
    """The result of an operation whose input has no gradient. Some models add in place to it, which a view would forbid."""
    return y.data if y.requires_grad or y._is_view() else y


def as_weighted_op(module: nn.Module, swapper: ModelPatcher | None) -> Callable[..., Tensor]:
    """The forward of `module` as an operation whose weight autograd does not save."""
    native, original, enabled = native_op(module), module.forward, torch.is_grad_enabled
    op = Operation(module, original, swapper)

    def native_forward(x: Tensor) -> Tensor:
        if not enabled():
            return original(x)
        return native.apply(x, op) if x.requires_grad else without_graph(original(x))

    def repeated_forward(x: Tensor, *args, **kwargs) -> Tensor:
        if not enabled():
            return original(x, *args, **kwargs)
        if x.requires_grad:
            return RepeatedOp.apply(x, op, lambda x: original(x, *args, **kwargs))
        return without_graph(original(x, *args, **kwargs))

    return repeated_forward if native is None else native_forward


def is_resident(module: nn.Module) -> bool:
    """Whether the host computes with the parameters themselves, and leaves them where they are until the backward pass."""
    if native_op(module) is None or not is_plain(module):
        return False
    weight, bias = module.weight, module.bias
    return bias is None or (bias.dtype == weight.dtype and bias.device == weight.device)


def as_resident(module: nn.Module) -> Callable[..., Tensor]:
    """The forward of a resident module: plain autograd where its input needs no other weight than the parameter."""
    original, careful = module.forward, as_weighted_op(module, None)
    dtype, device = module.weight.dtype, module.weight.device

    def forward(x: Tensor) -> Tensor:
        return original(x) if x.dtype is dtype and x.device == device else careful(x)

    return forward


def as_gated_gelu(module: GEGLU) -> Callable[[Tensor], Tensor]:
    """The forward of the host's gated feed-forward, keeping less."""

    def forward(x: Tensor) -> Tensor:
        return GatedGelu.apply(module.proj(x))

    return forward
