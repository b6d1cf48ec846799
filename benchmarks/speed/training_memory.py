"""Memory of contrastive fine-tuning on real-sized U-Nets in float16, counted on tensors without contents.

    python -m benchmarks.speed.training_memory

One image a pass with four target prompts, LoRA of rank 8. An estimate: the weights, what autograd keeps, and the adapters with
gradients and moments. With checkpointing, autograd keeps the inputs of the blocks and at most one block's inside. Attention is
taken to keep queries, keys, values and output, as the fused kernels on a GPU do. The temporary memory of the running operation,
the text encoder and the VAE are not counted.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from zerocon_pack.bridge.model.adapters import trainable
from zerocon_pack.bridge.model.autograd import GradientRegion
from zerocon_pack.bridge.model.facts import attention_projections, repeated_blocks
from zerocon_pack.zerocon_core.methods.finetune import LowRank

from ..tables import markdown
from .memory import fused
from .shapes import CONFIGS, TOKENS, meta_unet

SAMPLES, RANK = 5, 8
GIB = 2**30


class Saved:
    """Counts what autograd saves beside the weights: in all, outside the blocks that checkpointing covers, in the largest one."""

    def __init__(self, blocks: list[nn.Module], weights: Iterable[Tensor]):
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.all: dict[int, torch.UntypedStorage] = {}
        self.outside: dict[int, torch.UntypedStorage] = {}
        self.block: dict[int, torch.UntypedStorage] | None = None
        self.largest = 0
        for block in blocks:
            block.register_forward_pre_hook(self.enter)
            block.register_forward_hook(self.leave)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata in self.weights:
            return tensor
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


def training_gib(family: str, side: int) -> tuple[float, float, float, float]:
    """Weights, adapters, and what autograd keeps without and with checkpointing, for latents of side x side."""
    unet, config = meta_unet(family, torch.float16), CONFIGS[family]
    model = nn.ModuleDict({"diffusion_model": unet})
    adapters = {
        name: LowRank.neutral(layer.in_features, layer.out_features, RANK, torch.Generator()).to("meta")
        for name, layer in attention_projections(model).items()
    }

    def empty(*shape: int) -> Tensor:
        return torch.empty(SAMPLES, *shape, device="meta", dtype=torch.float16)

    saved = Saved(repeated_blocks(unet), unet.parameters())
    options = {"optimized_attention_override": fused}
    vector = {"y": empty(config["adm_in_channels"])} if config["adm_in_channels"] else {}
    with (
        GradientRegion([unet]).recording(),
        trainable(model, adapters),
        torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor),
    ):
        unet(empty(4, side, side), empty(), context=empty(TOKENS, config["context_dim"]), transformer_options=options, **vector)
    weights = sum(p.nbytes for p in unet.parameters())
    trained = 4 * sum(p.nbytes for adapter in adapters.values() for p in adapter.parameters())
    return tuple(value / GIB for value in (weights, trained, size(saved.all), size(saved.outside) + saved.largest))


def main() -> None:
    lines = []
    for family, side in (("SD1.5", 64), ("SD1.5", 96), ("SDXL", 128)):
        weights, trained, plain, checkpointed = training_gib(family, side)
        cells = (weights, trained, plain, weights + trained + plain, checkpointed, weights + trained + checkpointed)
        lines.append([family, f"{side * 8}x{side * 8}", *(f"{value:.2f} GiB" for value in cells)])
    head = ["model", "image", "weights", "adapters", "autograd", "in all", "autograd, checkpointing", "in all"]
    print(markdown(head, lines))


if __name__ == "__main__":
    main()
