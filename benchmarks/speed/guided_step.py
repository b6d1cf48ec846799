"""Seconds a guided step against the same step written the way of pix2pix-zero's published code, in one process.

    python benchmarks/guided_step.py --comfyui PATH [--channels 128] [--side 32] [--steps 4] [--rounds 3]

The model is an SD1.x-shaped U-Net of the host's own class with random weights. The published way runs reference and edit under
CFG in batches of two, with explicit attention in every layer and gradients through both halves, and recomputes eps under CFG:
2 + 6 + 2 sample-passes counting a backward pass as two. Ours runs 1 + 3 + 2.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack, reset_weights, start_host

LAMBDA_XA = 0.1


def sd_shaped(channels: int):
    """A ModelPatcher around SD1.x with `channels` instead of 320, float32, random weights."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(
        dict(
            image_size=32, in_channels=4, out_channels=4, model_channels=channels, num_res_blocks=[2, 2, 2, 2],
            channel_mult=[1, 2, 4, 4], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0], transformer_depth_middle=1,
            transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], context_dim=768,
            use_linear_in_transformer=False, adm_in_channels=None, use_temporal_attention=False,
            use_spatial_transformer=True, legacy=False,
        )
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    device = comfy.model_management.get_torch_device()
    model = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.EPS, device=device)
    reset_weights(model.diffusion_model, seed=0)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def published_step(model, x, reference, sigma, sigma_next, source, edited, cfg):
    """One step of pix2pix-zero's published loop; `source` and `edited` are contexts (2, tokens, d) of [uncond, cond]."""
    maps = []

    def explicit(func, q, k, v, heads, *args, **kwargs):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        probabilities = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        if k.shape[2] == source.shape[1]:
            maps.append(probabilities)
        return (probabilities @ v).transpose(1, 2).flatten(2)

    def denoise(x, context):
        maps.clear()
        options = {"optimized_attention_override": explicit}
        return model.apply_model(x, sigma.repeat(len(x)), c_crossattn=context, transformer_options=options)

    with torch.no_grad():
        denoise(reference.repeat(2, 1, 1, 1), source)
        kept = [m.clone() for m in maps]
    with torch.enable_grad():
        pair = x.repeat(2, 1, 1, 1).requires_grad_(True)
        denoise(pair, edited)
        loss = sum((m - r).square().sum((2, 3)).mean(1).sum() for m, r in zip(maps, kept, strict=True))
        (gradient,) = torch.autograd.grad(loss, pair)
    maps.clear()
    pair = pair.detach() - LAMBDA_XA * (1 + sigma**2) * gradient
    with torch.no_grad():
        unconditional, conditional = denoise(pair, edited).chunk(2)
    denoised = unconditional + cfg * (conditional - unconditional)
    return pair[:1] + (pair[:1] - denoised) / sigma * (sigma_next - sigma)


@contextmanager
def timed_passes(model):
    """Seconds inside the U-Net: forward passes, and the backward pass with them."""
    from comfy.patcher_extension import WrappersMP

    spent = SimpleNamespace(seconds=0.0, inside=False)

    def clocked(run: Callable) -> Callable:
        def timed(*args, **kwargs):
            if spent.inside:  # an operation that is recomputed within the backward pass
                return run(*args, **kwargs)
            began, spent.inside = time.perf_counter(), True
            try:
                return run(*args, **kwargs)
            finally:
                spent.seconds += time.perf_counter() - began
                spent.inside = False

        return timed

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "clock", clocked(lambda executor, *a, **k: executor(*a, **k)))
    backward = torch.autograd.grad
    torch.autograd.grad = clocked(backward)
    try:
        yield model, spent
    finally:
        torch.autograd.grad = backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--side", type=int, default=32, help="of the latent")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start_host(options.comfyui)
    import comfy.samplers

    attention, guider_module, inversion = (pack(f"bridge.{name}") for name in ("attention", "guider", "inversion"))
    guidance = pack("zerocon_core.methods.guidance")
    model = sd_shaped(options.channels)
    device = model.load_device
    draw = torch.Generator().manual_seed(0)
    source, edited, negative = ([[torch.randn(1, 77, 768, generator=draw), {}]] for _ in range(3))
    x = torch.randn(1, 4, options.side, options.side, generator=draw) * 14
    sigmas = inversion.default_sigmas(model, 1000 // 20)[: options.steps + 1]
    trajectory = inversion.Trajectory(sigmas, [x] * len(sigmas))
    layers = attention.transformer_layers(model.model.diffusion_model)
    decoder = frozenset(layer for layer in layers if layer.block == "output")
    model = attention.hook_layers(model, attention.HookedLayers(decoder, frozenset(layers)))

    def ours(model, weights, steps=options.steps):
        guider = guider_module.ZeroConGuider(model, trajectory, weights, 0.0, 1.0, 0)
        guider.inner_set_conds({"positive": edited, "negative": negative, "source": source})
        guider.set_cfg(5.0)
        with torch.inference_mode():
            guider.sample(torch.zeros_like(x), x, comfy.samplers.sampler_object("euler"), sigmas[: steps + 1], disable_pbar=True)

    def published():
        pair = [torch.cat([negative[0][0], c[0][0]]).to(device) for c in (source, edited)]
        latent = x.to(device)
        for sigma, sigma_next in zip(sigmas[:-1].to(device), sigmas[1:].to(device), strict=True):
            latent = published_step(model.model, latent, x.to(device), sigma, sigma_next, *pair, 5.0)

    methods = {
        "published way, L_xa": published,
        "ours, L_xa": lambda: ours(model, guidance.GuidanceWeights(LAMBDA_XA, 0.0)),
        "ours, L_xa and L_cut": lambda: ours(model, guidance.GuidanceWeights(LAMBDA_XA, 0.1, relative=False)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    ours(model, guidance.GuidanceWeights(LAMBDA_XA, 0.0), steps=1)
    for _ in range(options.rounds):
        for name, run in methods.items():
            began = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - began) / options.steps)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    with timed_passes(model) as (clocked, spent):
        began = time.perf_counter()
        ours(clocked, guidance.GuidanceWeights(LAMBDA_XA, 0.1, relative=False))
        outside = 1 - spent.seconds / (time.perf_counter() - began)
    baseline = median["published way, L_xa"]
    print("| a guided step | seconds, median | speed |\n|---|---|---|")
    for name, value in median.items():
        print(f"| {name} | {value:.3f} | {baseline / value:.2f} x |")
    print(f"\nOutside U-Net passes: {outside:.1%} of the time. Peak memory: {peak_gib(device):.2f} GiB.")
    if options.json:
        options.json.write_text(json.dumps({"seconds": seconds, "outside": outside, "device": str(device)}, indent=1) + "\n")


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
