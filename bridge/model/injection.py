"""Hooks that write: in one pass of source, edit and negative prompt, the others take over what the source shows.

They exist in the pass alone, as the hooks that read do.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor, nn

from ...zerocon_core.methods.injection import Injected, LocalBlend, MasaCtrl, Method, PlugAndPlay, WordEdit
from .attention import current_layer, hookable, map_of
from .facts import Layer, attention_levels
from .patches import name_of

SOURCE, EDITED, NEGATIVE = "source", "positive", "negative"
"""The parts of a pass, by the names of their conditionings."""


@dataclass(frozen=True)
class InjectedLayers:
    """Where a method writes. Of SD1.x, SD2.x and SDXL these are the layers of the published code; of others by the same rule."""

    self_attention: frozenset[Layer] = frozenset()
    cross_attention: frozenset[Layer] = frozenset()
    blended: frozenset[Layer] = frozenset()
    """Cross-attention that says where words are."""
    block: int | None = None
    """The decoder block whose features are written."""


def injected_layers(unet: nn.Module, method: Method) -> InjectedLayers:
    """The layers of `method` in a host U-Net. Raises ValueError for a network without them.

    Prompt-to-Prompt: self-attention at the coarsest level of encoder and decoder and below (16^2 and less of SD's 64^2), all
    cross-attention, words at that level. Plug-and-Play: decoder blocks with attention but for the first, features of the second.
    MasaCtrl: decoder blocks above the coarsest level.
    """
    levels = attention_levels(unet)
    decoder = [layer for layer in levels if layer.block == "output"]
    coarsest = max((level for layer, level in levels.items() if layer.block != "middle"), default=0)
    blended = frozenset(layer for layer, level in levels.items() if layer.block != "middle" and level == coarsest)
    block = None
    if isinstance(method, PlugAndPlay):
        blocks = sorted({layer.number for layer in decoder})
        block = blocks[1] if len(blocks) > 1 else None
        written = frozenset(layer for layer in decoder if layer.number in blocks[1:])
    elif isinstance(method, MasaCtrl):
        written = frozenset(layer for layer in decoder if levels[layer] < coarsest)
    else:
        written = frozenset(layer for layer, level in levels.items() if level >= coarsest)
    if not written:
        raise ValueError(
            f"{type(unet).__name__} has not the layers that this method writes to; it needs a model of the SD1.x, SD2.x or SDXL "
            "family"
        )
    return InjectedLayers(written, frozenset(levels), blended, block)


@dataclass
class Exchange:
    """Hands what the source shows to the other parts of one pass.

    The host may run the parts in one batch or, short of memory, in several, the source first. Then it is kept until the pass is
    over.
    """

    targets: frozenset[str]
    names: list[str] = field(default_factory=list)
    """Of the parts in the batch that is running."""
    kept: dict[object, Tensor] = field(default_factory=dict)

    def source(self, place: object, value: Tensor) -> Tensor:
        """The source's rows of `value` (parts * B, ...) at a place of the network."""
        if SOURCE in self.names:
            source = value.chunk(len(self.names))[self.names.index(SOURCE)]
            if not self.targets <= {*self.names}:
                self.kept[place] = source
            return source
        if place not in self.kept:
            raise ValueError(
                "the edit cannot take over what the source shows, because its prompt does not act where that of the edit does; "
                "give both the same timestep range and the same hooks"
            )
        return self.kept[place]

    def written(self, place: object, value: Tensor) -> Tensor:
        """`value` (parts * B, ...) with the source's rows in those of the targets."""
        if self.targets.isdisjoint(self.names) and SOURCE not in self.names:
            return value
        source = self.source(place, value)
        parts = zip(self.names, value.chunk(len(self.names)), strict=True)
        return torch.cat([source if name in self.targets else part for name, part in parts])


def batch_of_three(exchange: Exchange, source: Tensor) -> Callable:
    """Around the model: the part of the source sees `source` (B, C, H, W) instead of the edit's latent."""

    def apply(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        exchange.names = transformer_options["uuids"]
        parts = zip(exchange.names, x.chunk(len(exchange.names)), strict=True)
        x = torch.cat([source if name == SOURCE else part for name, part in parts])
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    return apply


def self_attention_hook(exchange: Exchange, layers: frozenset[Layer], injected: Injected) -> Callable:
    """What queries, keys and values are made of: with `maps` the source's queries and keys, with `content` its keys and values.

    Before the projections, so that attention itself stays with the host and with what other nodes make of it.
    """

    def write(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        layer = current_layer(options)
        if layer not in layers:
            return n, context, value
        map_of(n, options)
        keys = exchange.written((layer, "keys"), context)
        if injected.content:
            return n, keys, keys if value is context else exchange.written((layer, "values"), value)
        return keys if n is context else exchange.written((layer, "queries"), n), keys, value

    return write


def cross_attention_hook(exchange: Exchange, edit: WordEdit | None, blend: LocalBlend | None) -> Callable:
    """Explicit attention whose probabilities are edited, and then looked at."""

    def attend(q: Tensor, k: Tensor, v: Tensor, options: dict, **kwargs) -> Tensor:
        # Without einops, whose calls count where the maps are small.
        q, k, v = (t.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for t in (q, k, v))
        probabilities = ((q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1)
        parts = dict(zip(exchange.names, probabilities.chunk(len(exchange.names)), strict=True))
        if edit is not None and {SOURCE, EDITED} & parts.keys():
            source = exchange.source(current_layer(options), probabilities)
            if EDITED in parts:
                parts[EDITED].copy_(edit.apply(source, parts[EDITED]))
        if blend is not None:
            height = options["activations_shape"][-2]
            for side in parts.keys() & blend.words.keys():
                blend.look(side, parts[side].unflatten(2, (height, -1)))
        return (probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(2)

    return attend


@contextlib.contextmanager
def features_written(exchange: Exchange, unet: nn.Module, block: int | None) -> Iterator[None]:
    """While open, what the residual block of decoder block `block` adds is the source's in the targets."""
    if block is None:
        yield
        return
    [residual] = [module for module in unet.output_blocks[block] if isinstance(module, ResBlock)]
    # The host has no patch there. What the last layer gives is what the block adds.
    handle = residual.out_layers[-1].register_forward_hook(lambda module, args, output: exchange.written(block, output))
    try:
        yield
    finally:
        handle.remove()


def injection_options(
    model_options: dict,
    exchange: Exchange,
    source: Tensor,
    layers: InjectedLayers,
    injected: Injected,
    edit: WordEdit | None,
    blend: LocalBlend | None,
) -> dict:
    """A copy of `model_options` under which a pass injects what `injected` says from `source` (B, C, H, W)."""
    model_options = hookable(model_options)
    options = model_options["transformer_options"]
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, "zerocon", batch_of_three(exchange, source), options)
    if injected.maps or injected.content:
        hook = self_attention_hook(exchange, layers.self_attention, injected)
        options.setdefault("patches", {}).setdefault("attn1_patch", []).append(hook)
    if injected.words or blend is not None:
        replacements = options.setdefault("patches_replace", {}).setdefault("attn2", {})
        for layer in layers.cross_attention if injected.words else layers.blended:
            check_free(replacements, layer)
            looks = blend if layer in layers.blended else None
            replacements[layer] = cross_attention_hook(exchange, edit if injected.words else None, looks)
    return model_options


def check_free(replacements: dict, layer: Layer) -> None:
    """Raises ValueError where another node computes this cross-attention itself."""
    other = replacements.get(layer, replacements.get(layer[:2]))
    if other is not None:
        raise ValueError(
            f"another node ({name_of(other)}) computes the cross-attention that Prompt-to-Prompt and blend_words have to read; "
            "remove it from the model, or choose another method"
        )


def inject(
    model: BaseModel,
    conds: dict[str, list[dict] | None],
    x: Tensor,
    sigma: Tensor,
    model_options: dict,
    exchange: Exchange,
    features: int | None,
) -> list[Tensor]:
    """The denoised latents of x (B, C, H, W) at noise levels sigma (B,) under `conds`, in one pass under `injection_options`."""
    named = [cond and [entry | {"uuid": name} for entry in cond] for name, cond in conds.items()]
    with features_written(exchange, model.diffusion_model, features):
        return comfy.samplers.calc_cond_batch(model, named, x, sigma, model_options)
