"""Memory of contrastive fine-tuning on real-sized U-Nets in float16, counted on tensors without contents.

    python benchmarks/training_memory.py --comfyui PATH

One image a pass with four target prompts, LoRA of rank 8. An estimate: the weights, what autograd keeps, and the adapters with
gradients and moments. With checkpointing, autograd keeps the inputs of the blocks and at most one block's inside. Attention is
taken to keep queries, keys, values and output, as the fused kernels on a GPU do. The temporary memory of the running operation,
the text encoder and the VAE are not counted.
"""

import argparse
import sys
from pathlib import Path

import torch
from backward_memory import SD15, SDXL, FusedAttention
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack, start_host

SAMPLES, RANK = 5, 8
GIB = 2**30


class Saved:
    """Counts what autograd saves: in all, outside the blocks that checkpointing covers, and in the largest of them."""

    def __init__(self, blocks: list[nn.Module]):
        self.all: dict[int, torch.UntypedStorage] = {}
        self.outside: dict[int, torch.UntypedStorage] = {}
        self.block: dict[int, torch.UntypedStorage] | None = None
        self.largest = 0
        for block in blocks:
            block.register_forward_pre_hook(self.enter)
            block.register_forward_hook(self.leave)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        for place in (self.all, self.outside if self.block is None else self.block):
            place[storage._cdata] = storage
        return tensor

    def enter(self, block: nn.Module, args: tuple) -> None:
        if args[0].requires_grad:  # the region checkpoints no other
            self.keep(args[0])
            self.block = {}

    def leave(self, block: nn.Module, args: tuple, out: Tensor) -> None:
        if self.block is not None:
            self.largest = max(self.largest, size(self.block))
            self.block = None


def size(storages: dict[int, torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages.values())


def training_gib(config: dict, side: int) -> tuple[float, float, float, float]:
    """Weights, adapters, and what autograd keeps without and with checkpointing, for latents of side x side."""
    import comfy.ops
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    autograd, finetune, core = pack("bridge.model.autograd"), pack("bridge.loops.training"), pack("zerocon_core.methods.finetune")
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False,
        dtype=torch.float16, device="meta", operations=comfy.ops.manual_cast, **config,
    )  # fmt: skip
    unet.requires_grad_(False)
    model = nn.ModuleDict({"diffusion_model": unet})
    adapters = {
        name: core.LowRank.neutral(layer.in_features, layer.out_features, RANK, torch.Generator()).to("meta")
        for name, layer in finetune.attention_projections(model).items()
    }

    def empty(*shape: int) -> Tensor:
        return torch.empty(SAMPLES, *shape, device="meta", dtype=torch.float16)

    saved = Saved([module for module in unet.modules() if isinstance(module, (ResBlock, SpatialTransformer))])
    options = {"optimized_attention_override": lambda func, q, k, v, *args, **kwargs: FusedAttention.apply(q, k, v)}
    vector = {"y": empty(config["adm_in_channels"])} if "adm_in_channels" in config else {}
    with (
        autograd.autograd_region([unet]),
        finetune.trainable(model, adapters),
        torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor),
    ):
        unet(empty(4, side, side), empty(), context=empty(77, config["context_dim"]), transformer_options=options, **vector)
    weights = sum(p.nbytes for p in unet.parameters())
    trained = 4 * sum(p.nbytes for adapter in adapters.values() for p in adapter.parameters())
    return tuple(value / GIB for value in (weights, trained, size(saved.all), size(saved.outside) + saved.largest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    start_host(parser.parse_args().comfyui)
    print("| model | image | weights | adapters | autograd | in all | autograd, checkpointing | in all |\n" + "|---" * 8 + "|")
    for name, config, side in (("SD1.5", SD15, 64), ("SD1.5", SD15, 96), ("SDXL", SDXL, 128)):
        weights, trained, plain, checkpointed = training_gib(config, side)
        cells = (weights, trained, plain, weights + trained + plain, checkpointed, weights + trained + checkpointed)
        print(f"| {name} | {side * 8}x{side * 8} | " + " | ".join(f"{value:.2f} GiB" for value in cells) + " |")


if __name__ == "__main__":
    main()
