"""The hooked layers of a U-Net, and what they show during one pass.

A hooked model only carries the choice of layers. The hooks themselves exist in the options of the passes that read them, so the
model gives bit-identical images everywhere else.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from einops import rearrange
from torch import Tensor

from ...zerocon_core.observation import Observation
from .facts import HookedLayers, Layer
from .patches import check_whole, name_of, repeatable

ATTACHMENT = "zerocon_layers"


def hook_layers(model: ModelPatcher, layers: HookedLayers) -> ModelPatcher:
    """A clone of `model` that carries the choice of layers."""
    hooked = model.clone()
    hooked.set_attachments(ATTACHMENT, layers)
    return hooked


def hooked_layers(model: ModelPatcher) -> HookedLayers | None:
    """The choice of layers that `model` carries, or None if it was never hooked."""
    return model.get_attachment(ATTACHMENT)


@dataclass
class Capture:
    """Collects the maps of one pass of one CONDITIONING, keyed by layer and by entry of the conditioning.

    The host may run the entries of a conditioning (areas, schedules) in one batch or in several and in any order, together with
    those of another one. `numbered` gives each entry its number for a name, so every map can be cut into chunks that are filed
    under their entries, and entries of other conditionings are passed over.
    """

    self_attention: dict[tuple[Layer, int], Tensor] = field(default_factory=dict)
    cross_attention: dict[tuple[Layer, int], Tensor] = field(default_factory=dict)

    @staticmethod
    def file(maps: dict[tuple[Layer, int], Tensor], value: Tensor, options: dict) -> None:
        """Files what the running layer shows of each entry."""
        entries = options["uuids"]
        for entry, chunk in zip(entries, value.chunk(len(entries)), strict=True):
            if isinstance(entry, int):
                maps[current_layer(options), entry] = chunk

    @staticmethod
    def numbered(cond: list[dict]) -> list[dict]:
        return [entry | {"uuid": number} for number, entry in enumerate(cond)]

    def observation(self) -> Observation:
        """All maps in an order that depends on layers and entries alone."""
        return Observation(
            cross_attention={key: self.cross_attention[key] for key in sorted(self.cross_attention)},
            self_attention={key: self.self_attention[key] for key in sorted(self.self_attention)},
        )


def current_layer(options: dict) -> Layer:
    return Layer(*options["block"], options["block_index"])


def too_large(options: dict, max_side: int) -> bool:
    height, width = options["activations_shape"][-2:]
    return bool(max_side) and height * width > max_side**2


def map_of(n: Tensor, options: dict) -> tuple[int, int]:
    """Height and width of the map of which n (B, tokens, C) is in a self-attention layer. Raises ValueError for none."""
    height, width = options["activations_shape"][-2:]
    if n.shape[1] != height * width:
        raise ValueError(
            f"a self-attention layer has {n.shape[1]} tokens for a {height}x{width} map: another patch merges tokens and "
            "does not take them apart again; take the model before it"
        )
    return height, width


def self_attention_hook(layers: HookedLayers, capture: Capture) -> Callable:
    """Files the output of self-attention while the `capture` is there.

    Checkpointed blocks keep their hooks for a second run, long after the pass. If hooks kept the capture, it and its maps would
    keep each other for ever.
    """
    place = weakref.ref(capture)

    def read(n: Tensor, options: dict) -> Tensor:
        if current_layer(options) in layers.self_attention and not too_large(options, layers.max_side):
            height, _ = map_of(n, options)
            if (capture := place()) is not None:
                capture.file(capture.self_attention, rearrange(n, "b (h w) c -> b c h w", h=height), options)
        return n

    return read


def cross_attention_hook(layers: HookedLayers, capture: Capture, previous: Callable | None) -> Callable:
    """Explicit attention that files its probabilities; a `previous` replacement still decides the output of the layer."""
    place = weakref.ref(capture)

    def attend(q: Tensor, k: Tensor, v: Tensor, options: dict, **kwargs) -> Tensor:
        heads = options["n_heads"]
        if too_large(options, layers.max_side):
            if previous is not None:
                return previous(q, k, v, options, **kwargs)
            return optimized_attention(q, k, v, heads, attn_precision=options["attn_precision"], transformer_options=options)
        q_heads, k_heads, v_heads = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))
        scores = (q_heads.float() @ k_heads.float().transpose(-1, -2)) * q_heads.shape[-1] ** -0.5
        probabilities = scores.softmax(-1)
        height = options["activations_shape"][-2]
        if (capture := place()) is not None:
            capture.file(capture.cross_attention, rearrange(probabilities, "b n (h w) t -> b n h w t", h=height), options)
        if previous is not None:
            return previous(q, k, v, options, **kwargs)
        return rearrange(probabilities.to(v.dtype) @ v_heads, "b h n d -> b n (h d)")

    return attend


def differentiable_attention(previous: Callable | None) -> Callable:
    """The host's attention override for passes with gradients and those that they are compared with.

    The host's faster kernels have no gradient, or write into their arguments. A `previous` override of another node acts in all
    passes, around PyTorch's attention. Raises ValueError by its name in a pass whose gradient it would drop.
    """
    if previous is None:
        return lambda func, *args, **kwargs: attention_pytorch(*args, **kwargs)

    def attend(func: Callable, q: Tensor, *args, **kwargs) -> Tensor:
        out = previous(attention_pytorch, q, *args, **kwargs)
        if torch.is_grad_enabled() and q.requires_grad and not out.requires_grad:
            raise ValueError(
                f"the attention that another node put into the model ({name_of(previous)}) has no gradient; remove it from there"
            )
        return out

    return attend


def hookable(model_options: dict) -> dict:
    """A copy of `model_options` whose passes run the model itself, neither a cache nor what torch.compile made of it.

    The host's compile node leaves hooks and patches out of its guards: a graph that was compiled without them runs without them.
    Raises ValueError where passes run on parts of the latent.
    """
    check_whole(model_options)
    model_options = repeatable(model_options)
    wrappers = model_options["transformer_options"].get("wrappers", {})
    wrappers.get(WrappersMP.APPLY_MODEL, {}).pop(COMPILE_KEY, None)
    return model_options


def differentiable_options(model_options: dict) -> dict:
    """A copy of `model_options` for passes with gradients, and for those without that they are compared with."""
    model_options = hookable(model_options)
    options = model_options["transformer_options"]
    options["optimized_attention_override"] = differentiable_attention(options.get("optimized_attention_override"))
    return model_options


def capture_options(model_options: dict, layers: HookedLayers, capture: Capture, differentiable: bool) -> dict:
    """A copy of `model_options` under which a pass of the model fills `capture`.

    A pass with gradients needs `differentiable`, and so does every pass that it is compared with: what a patch does to one pass
    it must do to the other.
    """
    model_options = (differentiable_options if differentiable else hookable)(model_options)
    options = model_options["transformer_options"]
    if layers.self_attention:
        options.setdefault("patches", {}).setdefault("attn1_output_patch", []).append(self_attention_hook(layers, capture))
    if layers.cross_attention:
        replacements = options.setdefault("patches_replace", {}).setdefault("attn2", {})
        for layer in layers.cross_attention:
            previous = replacements.get(layer, replacements.get(layer[:2]))
            replacements[layer] = cross_attention_hook(layers, capture, previous)
    return model_options


def observe(
    model: BaseModel,
    cond: list[dict],
    x: Tensor,
    sigma: Tensor,
    model_options: dict,
    layers: HookedLayers,
    differentiable: bool = False,
) -> Observation:
    """One pass of `cond` over x (B, C, H, W) at noise levels sigma (B,): what the layers show, with gradients if x has them.

    Passes that are compared must both be `differentiable` if one has gradients.
    """
    capture = Capture()
    options = capture_options(model_options, layers, capture, differentiable)
    comfy.samplers.calc_cond_batch(model, [Capture.numbered(cond)], x, sigma, options)
    return capture.observation()
