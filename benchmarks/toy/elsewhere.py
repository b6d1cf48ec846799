"""CDS with its loss in other places than self-attention: an ablation of the paper's choice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor
from zerocon_pack.bridge.loops.cds import CDSSettings, scorer
from zerocon_pack.bridge.loops.hosted import Run
from zerocon_pack.bridge.model.attention import Capture, self_attention_hook
from zerocon_pack.bridge.model.facts import HookedLayers
from zerocon_pack.zerocon_core.methods.cds import Score, Scorer

Elsewhere = Literal["cross-attention", "output"]


def scorer_elsewhere(run: Run, name: str, place: Elsewhere, settings: CDSSettings) -> Scorer:
    """Its features are the cross-attention outputs of the layers that CDS would read, or the model's noise prediction."""
    read = {"cross-attention": read_cross_attention, "output": read_output}[place]

    def score(x: Tensor, sigma: Tensor) -> Score:
        capture = Capture()
        options = create_model_options_clone(run.options)
        read(options, settings.layers, capture)
        asked = scorer(replace(run, options=options), name, HookedLayers(), differentiable=bool(settings.weights.w_cut))
        answer = asked(x, sigma)
        return answer._replace(features=capture.observation().self_attention)

    return score


def read_cross_attention(options: dict, layers: HookedLayers, capture: Capture) -> None:
    patches = options.setdefault("transformer_options", {}).setdefault("patches", {})
    patches.setdefault("attn2_output_patch", []).append(self_attention_hook(layers, capture))


def read_output(options: dict, layers: HookedLayers, capture: Capture) -> None:
    def file_eps(executor: Callable, x: Tensor, t: Tensor, concat, context, control, transformer_options, **kwargs) -> Tensor:
        denoised = executor(x, t, concat, context, control, transformer_options, **kwargs)
        entries = transformer_options["uuids"]
        for entry, eps in zip(entries, ((x - denoised) / t.view(-1, 1, 1, 1)).chunk(len(entries)), strict=True):
            if isinstance(entry, int):  # an entry that `capture` numbered: one of our condition, not of the negative
                capture.self_attention["output", entry] = eps
        return denoised

    add_wrapper_with_key(WrappersMP.APPLY_MODEL, "output", file_eps, options, is_model_options=True)
