"""Seconds and memory of a CDS iteration against the same iteration written the way of the published code, in one process.

    python benchmarks/cds.py --comfyui PATH [--channels 128] [--side 32] [--iterations 3] [--rounds 3]

The models are the toy world's U-Net and an SD1.x-shaped U-Net of the host's own class with random weights; with --channels 320
--side 64 that is SD1.5 at 512x512. The published way runs source and target under CFG without gradients, then the target under
CFG with them, with explicit attention in every layer and gradients of the self-attention weights that nobody reads: 4
sample-passes without gradients and 2 with. Ours runs 3 and 1.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from guided_step import sd_shaped
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack, start_host

W_CUT, CFG, STEP_SIZE = 3.0, 7.5, 0.0488


def published_iteration(model, z: Tensor, z_src: Tensor, noise: Tensor, sigma: Tensor, contexts: dict[str, Tensor], loss):
    """One iteration of the published loop. `contexts` are (2, tokens, d) of [negative, prompt], `loss` compares feature maps."""
    features, weights = [], [weight for weight in model.parameters() if weight.requires_grad]

    def explicit(func, q, k, v, heads, *args, **kwargs):
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return ((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def read(n, options):
        if options["block"][0] == "output":
            height, width = options["activations_shape"][-2:]
            features.append(n.unflatten(1, (height, width)).permute(0, 3, 1, 2))
        return n

    def eps(x: Tensor, context: Tensor) -> Tensor:
        features.clear()
        options = {"optimized_attention_override": explicit, "patches": {"attn1_output_patch": [read]}}
        denoised = model.apply_model(x, sigma.repeat(len(x)), c_crossattn=context, transformer_options=options)
        unconditional, conditional = ((x - denoised) / sigma).chunk(2)
        return unconditional + CFG * (conditional - unconditional)

    context = torch.stack([contexts["source"], contexts["target"]], 1).flatten(0, 1)
    with torch.no_grad():
        source, target = eps(torch.cat([z_src, z] * 2) + sigma * noise, context).chunk(2)
        reference = [maps[2:3].clone() for maps in features]
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        eps((z + sigma * noise).repeat(2, 1, 1, 1), contexts["target"])
        cut = loss([(maps[1:], r) for maps, r in zip(features, reference, strict=True)])
        gradient, *_ = torch.autograd.grad(cut.sum(), [z, *weights], allow_unused=True)
    features.clear()
    return z.detach() - STEP_SIZE * (target - source + W_CUT * z[0, 0].numel() / 2000 * gradient)


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """The most memory that tensors made during `run` hold at a time."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def compare(name: str, model, side: int, width: int, options: argparse.Namespace) -> list[dict]:
    """One record a way of running the iteration."""
    bridge, attention, core = (pack(m) for m in ("bridge.loops.cds", "bridge.model.attention", "zerocon_core.methods.cds"))
    patchnce, device = pack("zerocon_core.methods.patchnce"), model.load_device
    draw = torch.Generator().manual_seed(0)
    source, target, negative = ([[torch.randn(1, 77, width, generator=draw), {}]] for _ in range(3))
    z_src = torch.randn(1, 4, side, side, generator=draw)
    timesteps = core.draw_timesteps(options.iterations, 50, 948, "random", draw)
    layers = attention.decoder_self_attention(model.model.diffusion_model)

    def ours(w_cut: float = W_CUT, checkpointing: bool = False, iterations: int = options.iterations) -> None:
        guider = bridge.CDSGuider(model, source, [target], negative, CFG, bool(w_cut))
        sampler = bridge.CDSSampler(layers, STEP_SIZE, core.CDSWeights(w_cut=w_cut), 0, checkpointing, 0)
        sigmas = model.get_model_object("model_sampling").sigma(timesteps[:iterations])
        guider.sample(torch.zeros_like(z_src), z_src, sampler, sigmas, callback=lambda *seen: None, disable_pbar=True)

    @torch.inference_mode(False)
    def published(iterations: int = options.iterations) -> None:
        attn1 = [weight for name, weight in model.model.named_parameters() if "attn1" in name]
        for weight in attn1:
            weight.requires_grad_(True)
        contexts = {p: torch.cat([negative[0][0], c[0][0]]).to(device) for p, c in (("source", source), ("target", target))}
        generator, z = torch.Generator().manual_seed(0), z_src.to(device)
        for sigma in model.get_model_object("model_sampling").sigma(timesteps[:iterations]).to(device):
            noise = torch.randn(z_src.shape, generator=generator).to(device)
            loss = lambda pairs: patchnce.patch_nce_loss(pairs, patchnce.PatchNCE(), generator)  # noqa: E731
            z = published_iteration(model.model, z, z_src.to(device), noise, sigma, contexts, loss)
        for weight in attn1:
            weight.requires_grad_(False)

    ways = {
        "published way": published,
        "CDS": ours,
        "CDS, checkpointing": lambda **only: ours(checkpointing=True, **only),
        "DDS": lambda **only: ours(w_cut=0.0, **only),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    ours(iterations=1)
    for _ in range(options.rounds):
        for way, run in ways.items():
            began = time.perf_counter()
            run()
            seconds[way].append((time.perf_counter() - began) / options.iterations)
    memory = {way: peak_bytes(lambda: run(iterations=1), device) for way, run in ways.items()}  # noqa: B023
    return [{"model": name, "way": way, "seconds": seconds[way], "bytes": memory[way]} for way in ways]


def table(records: list[dict]) -> str:
    lines = ["| U-Net | an iteration | seconds, median | speed | memory, MiB | share |", "|---|---|---|---|---|---|"]
    for record in records:
        baseline = next(r for r in records if r["model"] == record["model"])
        seconds, reference = (statistics.median(r["seconds"]) for r in (record, baseline))
        lines.append(
            f"| {record['model']} | {record['way']} | {seconds:.3f} | {reference / seconds:.2f} x "
            f"| {record['bytes'] / 2**20:.0f} | {record['bytes'] / baseline['bytes']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--side", type=int, default=32, help="of the latent")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    start_host(options.comfyui)
    toy, *_ = pack("bridge.toyworld").load_toy_world()
    records = compare("toy world", toy, 16, 96, options)
    shape = f"SD1.x-shaped, {options.channels} channels, {options.side}x{options.side}"
    records += compare(shape, sd_shaped(options.channels), options.side, 768, options)
    print(table(records))
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
