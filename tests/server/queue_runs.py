"""Many runs on one server: the same prompt gives the same bits throughout, and the process does not grow.

    python tests/server/queue_runs.py [1000]

Five small workflows of the toy world by turns, so that each run computes anew (the server's cache holds the last prompt only):
guidance, CDS, Edit Mask, Attention Map Preview and Soft Contrastive Train. Memory is looked at inside the server, every 50 runs.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.comfy_server import Client, comfy_server, find_comfyui  # noqa: E402

WITNESS = Path(__file__).resolve().parent / "witness"
EVERY = 50
ALLOWED_GROWTH = 0.02
"""Of the resident memory, from the first look after 50 runs to the last: the host's own history and log grow too."""

Graph = dict[str, dict]


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def shared() -> Graph:
    """Model, picture and prompts."""
    return {
        "world": node("ZeroConToyWorld"),
        "scene": node("ZeroConToyScene", seed=4, colour="red", shape="circle", pattern="plain", size=64),
        "encoded": node("VAEEncode", pixels=["scene", 0], vae=["world", 2]),
        "direction": node(
            "ZeroConEditDirection", clip=["world", 1], caption=["scene", 1], edit_from="red", edit_to="blue", bank="a {}",
            strength=1,
        ),
    }  # fmt: skip


def guided() -> Graph:
    prompts = {"source": ["direction", 0], "edited": ["direction", 1], "negative": ["direction", 0]}
    return {
        "invert": node(
            "ZeroConDDIMInvert", model=["world", 0], image_latent=["encoded", 0], conditioning=["direction", 0], steps=2,
            lambda_ac=0, lambda_kl=0, regularization_steps=1, rolls=1, refinements=0, seed=0,
        ),
        "hooks": node(
            "ZeroConAttentionHookedUNet", model=["world", 0], self_attention="decoder", cross_attention="all", max_side=0
        ),
        "guider": node(
            "ZeroConPatchNCEGuidance", hooked_model=["hooks", 0], **prompts, trajectory=["invert", 1], cfg=5, lambda_xa=0.1,
            lambda_cut=0.5, weighting="relative", temperature=0.07, patches=16, patch_sizes="1, 2", contrast="cds",
            start_percent=0, end_percent=1, seed=0,
        ),
        "noise": node("DisableNoise"),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "result": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0], sigmas=["invert", 2],
            latent_image=["invert", 0],
        ),
        "bits": node("WitnessBits", value=["result", 0]),
    }  # fmt: skip


def distilled() -> Graph:
    prompts = {"source": ["direction", 0], "target": ["direction", 1], "negative": ["direction", 0]}
    return {
        "result": node(
            "ZeroConCDSOptimize", model=["world", 0], image_latent=["encoded", 0], **prompts, cfg=7.5, steps=1, step_size=0.05,
            step_rule="fixed", w_dds=1, w_cut=3, temperature=0.07, patches=16, patch_sizes="1, 2", contrast="cds",
            min_timestep=0.05, max_timestep=0.948, timestep_order="random", ids_steps=0, checkpointing=False, seed=0,
        ),
        "bits": node("WitnessBits", value=["result", 0]),
    }  # fmt: skip


def masked() -> Graph:
    return {
        "result": node(
            "ZeroConEditMask", model=["world", 0], image_latent=["encoded", 0], prompts=["direction", 1],
            source=["direction", 0], strength=0.65, draws=1, threshold=0.5, clamp=3, smoothing=1, seed=0,
        ),
        "bits": node("WitnessBits", value=["result", 1]),
    }  # fmt: skip


def mapped() -> Graph:
    return {
        "result": node(
            "ZeroConAttentionMapPreview", model=["world", 0], image_latent=["encoded", 0], conditioning=["direction", 0],
            prompt=["scene", 1], words="", tokens="", strength=0.5, opacity=0.6, seed=0, clip=["world", 1],
        ),
        "bits": node("WitnessBits", value=["result", 1]),
    }  # fmt: skip


def trained() -> Graph:
    return {
        "result": node(
            "ZeroConSoftContrastiveTrain", model=["world", 0], clip=["world", 1], latents=["encoded", 0], captions=["scene", 1],
            words="red, green, blue", target_count=2, contrast="Soft-CL", soft_augmentation=True, lambda_contrast=1,
            mask_threshold=0.2, margin=1, rank=1, learning_rate=0.001, steps=1, batch_size=1, accumulation=1,
            gradient_checkpointing=True, seed=0,
        ),
        "bits": node("WitnessBits", value=["result", 1]),
    }  # fmt: skip


WORKFLOWS = {build.__name__: shared() | build() for build in (guided, distilled, masked, mapped, trained)}


def memory(client: Client, number: int) -> dict[str, int]:
    """What the server holds. Its history is emptied first: that is the host's, and grows by design."""
    client.post("/history", {"clear": True})
    return json.loads(client.run({"memory": node("WitnessMemory", number=number)})["memory"]["text"][0])


def run_many(client: Client, count: int, every: int = EVERY) -> tuple[dict[str, set[str]], dict[int, dict[str, int]]]:
    """The bits that each workflow gave, and what the server held after so many runs."""
    bits, held = defaultdict(set), {}
    for number in range(1, count + 1):
        name = [*WORKFLOWS][number % len(WORKFLOWS)]
        bits[name].add(client.run(WORKFLOWS[name])["bits"]["text"][0])
        if number % every == 0 or number == count:
            held[number] = memory(client, number)
            print(f"{number} runs: {held[number]}", flush=True)
    return bits, held


def verdict(bits: dict[str, set[str]], held: dict[int, dict[str, int]]) -> list[str]:
    """What is wrong: other bits, more tensors or more memory than after the first runs."""
    first, last = held[min(held)], held[max(held)]
    wrong = [f"{name} gave {len(seen)} different results" for name, seen in bits.items() if len(seen) > 1]
    grown = [kind for kind in ("tensors", "bytes") if last[kind] > first[kind]]
    wrong += [f"{kind} grew from {first[kind]} to {last[kind]}" for kind in grown]
    if last["rss"] > first["rss"] * (1 + ALLOWED_GROWTH):
        wrong.append(f"resident memory grew from {first['rss']} to {last['rss']} kB")
    return wrong


def add_witness(base: Path) -> None:
    (base / "custom_nodes").mkdir(exist_ok=True)
    (base / "custom_nodes" / WITNESS.name).symlink_to(WITNESS, target_is_directory=True)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory(prefix="zerocon-queue-") as folder:
        add_witness(Path(folder))
        with comfy_server(find_comfyui(), Path(folder), ["--cache-classic"]) as client:
            wrong = verdict(*run_many(client, count))
    print("; ".join(wrong) or f"{count} runs: the same bits throughout, nothing grew")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
