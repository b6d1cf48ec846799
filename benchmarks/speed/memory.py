"""What tensors hold at the same time in real-sized U-Nets in half precision, counted on the meta device.

An estimate: attention is taken to keep queries, keys, values and output, as the fused kernels on a GPU do, but cross-attention
where its probabilities are read. Weights and the working memory of single kernels are left out.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zerocon_pack.bridge.model.attention import Capture, capture_options
from zerocon_pack.bridge.model.autograd import GradientRegion
from zerocon_pack.bridge.model.facts import HookedLayers, transformer_layers
from zerocon_pack.zerocon_core.methods.guidance import cross_attention_loss
from zerocon_pack.zerocon_core.methods.patchnce import PatchNCE, patch_nce_loss
from zerocon_pack.zerocon_core.observation import Observation, pairs

from ..tables import markdown
from .shapes import CONFIGS, TOKENS, meta_unet

SIZES = (("SD1.5", 64), ("SDXL", 128))
MIB = 2**20


class FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def fused(func: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
    """The override of the host's attention."""
    return FusedAttention.apply(q, k, v)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made while it is entered: those that live `now`, and the most that lived at a time."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.live = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self.note(tensor.untyped_storage())
        return answer

    def note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.live:
            self.live[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, storage: int) -> None:
        self.now -= self.live.pop(storage)


class MetaUnet:
    """A U-Net without contents, with inputs of latents of side x side."""

    def __init__(self, family: str, side: int, dtype: torch.dtype = torch.float16) -> None:
        self.network, self.dtype = meta_unet(family, dtype), dtype
        self.x = self.empty(1, 4, side, side)
        self.width, self.adm = (CONFIGS[family][name] for name in ("context_dim", "adm_in_channels"))
        layers = frozenset(transformer_layers(self.network))
        self.decoder = HookedLayers(frozenset(layer for layer in layers if layer.block == "output"))
        self.both = HookedLayers(self.decoder.self_attention, layers)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=self.dtype)

    def observe(self, x: Tensor, layers: HookedLayers) -> Observation:
        """A pass over x (B, C, H, W), and what these layers show."""
        capture, count = Capture(), len(x)
        options = {"transformer_options": {"uuids": [*range(count)]}}
        options = capture_options(options, layers, capture, x.requires_grad)["transformer_options"]
        options["optimized_attention_override"] = fused
        vector = {"y": self.empty(count, self.adm)} if self.adm else {}
        self.network(x, self.empty(count), context=self.empty(count, TOKENS, self.width), transformer_options=options, **vector)
        return capture.observation()

    @contextmanager
    def counted(self) -> Iterator[LiveBytes]:
        with LiveBytes(self.network.parameters()) as live:
            yield live


def loss(edited: Observation, reference: Observation) -> Tensor:
    """Of what was observed: L_xa where probabilities were read, and the contrastive loss."""
    cut = patch_nce_loss(pairs(edited.self_attention, reference.self_attention), PatchNCE(), torch.Generator().manual_seed(0))
    if not edited.cross_attention:
        return cut
    return cut + cross_attention_loss(pairs(edited.cross_attention, reference.cross_attention))


def cfg_peak(unet: MetaUnet) -> int:
    """Of a plain pass under CFG."""
    with torch.no_grad(), unet.counted() as live:
        unet.observe(unet.x.repeat(2, 1, 1, 1), HookedLayers())
    return live.peak


def gradient_pass(unet: MetaUnet, layers: HookedLayers, checkpointing: bool, guided: bool = True) -> tuple[int, int]:
    """What is kept after the forward pass with gradients, and the peak of reference, forward pass, loss and backward pass.

    The reference of a guided step is a pass of the source; that of CDS runs under CFG and is kept for the one sample alone.
    """
    with unet.counted() as live:
        with torch.no_grad():
            reference = unet.observe(unet.x if guided else unet.x.repeat(2, 1, 1, 1), layers)
        if not guided:
            kept = {key: maps.clone() for key, maps in reference.self_attention.items() if key[1] == 0}
            reference = Observation(cross_attention={}, self_attention=kept)
        before = live.now
        with GradientRegion([unet.network], checkpointing).recording():
            x = unet.x.detach().clone().requires_grad_(True)
            edited = unet.observe(x, layers)
            kept_bytes = live.now - before
            torch.autograd.grad(loss(edited, reference).sum(), x)
    return kept_bytes, live.peak


def counts(family: str, side: int) -> dict[str, int]:
    """Bytes by what they are of."""
    unet = MetaUnet(family, side)
    guided, checkpointed = (gradient_pass(unet, unet.both, checkpointing) for checkpointing in (False, True))
    cds, cds_checkpointed = (gradient_pass(unet, unet.decoder, c, guided=False) for c in (False, True))
    return {
        "a plain pass under CFG, peak": cfg_peak(unet),
        "kept after the forward pass of a guided step": guided[0],
        "the same, checkpointing": checkpointed[0],
        "guided step, both losses, peak": guided[1],
        "guided step, both losses, checkpointing, peak": checkpointed[1],
        "CDS, peak": cds[1],
        "CDS, checkpointing, peak": cds_checkpointed[1],
    }


def report() -> tuple[str, dict[str, dict[str, int]]]:
    """The table in MiB, and the bytes."""
    found = {f"{family} {side * 8}x{side * 8}": counts(family, side) for family, side in SIZES}
    labels = next(iter(found.values()))
    lines = [[label, *(f"{column[label] / MIB:.0f}" for column in found.values())] for label in labels]
    return markdown(["MiB in float16", *found], lines), found
