"""Memory that autograd holds during one guided pass of a real-sized U-Net, counted on tensors without contents.

    python benchmarks/backward_memory.py --comfyui PATH

An estimate: attention is taken to keep queries, keys, values and output, as the fused kernels on a GPU do, and the temporary
memory of the running operation is not counted. With checkpointing, neither is what one block computes again.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack, start_host

SD15 = dict(
    num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], context_dim=768,
    use_linear_in_transformer=False, num_heads=8, num_head_channels=-1,
)  # fmt: skip
SDXL = dict(
    num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], context_dim=2048, use_linear_in_transformer=True,
    num_heads=-1, num_head_channels=64, num_classes="sequential", adm_in_channels=2816,
)  # fmt: skip


class FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def saved_gib(config: dict, side: int, dtype: torch.dtype, checkpointing: bool = False) -> float:
    """Bytes saved by one forward pass over a latent of side x side with the default hooks."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    attention, autograd = pack("bridge.model.attention"), pack("bridge.model.autograd")
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False,
        dtype=dtype, device="meta", operations=comfy.ops.manual_cast, **config,
    )  # fmt: skip
    unet.requires_grad_(False)
    layers = frozenset(attention.transformer_layers(unet))
    decoder = frozenset(layer for layer in layers if layer.block == "output")
    hooked, capture = attention.HookedLayers(decoder, layers), attention.Capture()
    options = attention.capture_options({"transformer_options": {"uuids": [0]}}, hooked, capture, True)["transformer_options"]
    options["optimized_attention_override"] = lambda func, q, k, v, *args, **kwargs: FusedAttention.apply(q, k, v)

    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    vector = {"y": empty(1, config["adm_in_channels"])} if "adm_in_channels" in config else {}
    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with autograd.autograd_region([unet], checkpointing=checkpointing), saved:
        x = empty(1, 4, side, side).requires_grad_(True)
        unet(x, empty(1), context=empty(1, 77, config["context_dim"]), transformer_options=options, **vector)
    return sum(storage.nbytes() for storage in storages.values()) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    start_host(parser.parse_args().comfyui)
    print("| model | image | float16 | float32 | float16, checkpointing |\n|---|---|---|---|---|")
    for name, config, sides in (("SD1.5", SD15, (64, 96, 128)), ("SDXL", SDXL, (96, 128))):
        for side in sides:
            half, single = (saved_gib(config, side, dtype) for dtype in (torch.float16, torch.float32))
            blocks = saved_gib(config, side, torch.float16, checkpointing=True)
            print(f"| {name} | {side * 8}x{side * 8} | {half:.1f} GiB | {single:.1f} GiB | {blocks:.1f} GiB |")


if __name__ == "__main__":
    main()
