"""The methods as graphs in API format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .dataset import Entry

TOY = "toy"
Link = tuple[str, int]


@dataclass(frozen=True)
class Settings:
    """What all rows of one file have in common. `structure`, `lpips` and `clip` are choices of the node Edit Metrics."""

    checkpoint: str
    side: int
    steps: int
    iterations: int
    cfg: float
    structure: str
    lpips: str
    clip: str


class Graph(dict):
    """A graph in API format, grown node by node; the methods below end in the edited latent."""

    def __init__(self, entry: Entry, picture: str, mask: str, settings: Settings) -> None:
        super().__init__()
        self.settings, self.entry = settings, entry
        if settings.checkpoint == TOY:
            loader = self.add("ZeroConToyWorld")
        else:
            loader = self.add("CheckpointLoaderSimple", ckpt_name=settings.checkpoint)
        self.model, self.clip, self.vae = ((loader, i) for i in range(3))
        size = {"width": settings.side, "height": settings.side, "crop": "disabled"}
        self.image = (self.add("ImageScale", image=(self.add("LoadImage", image=picture), 0), upscale_method="area", **size), 0)
        self.mask = (self.add("LoadImageMask", image=mask, channel="red"), 0)
        self.latent = (self.add("VAEEncode", pixels=self.image, vae=self.vae), 0)
        self.source, self.target, self.empty = (
            (self.add("CLIPTextEncode", clip=self.clip, text=text), 0) for text in (entry.source, entry.target, "")
        )

    def add(self, class_type: str, **inputs) -> str:
        name = str(len(self) + 1)
        self[name] = {"class_type": class_type, "inputs": {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()}}
        return name

    def invert(self, weight: float) -> str:
        """DDIM inversion with the source prompt; `weight` is that of both terms of pix2pix-zero's noise regularisation."""
        return self.add(
            "ZeroConDDIMInvert", model=self.model, image_latent=self.latent, conditioning=self.source, steps=self.settings.steps,
            lambda_ac=weight, lambda_kl=weight, regularization_steps=5, rolls=5, refinements=0, seed=0,
        )  # fmt: skip

    def sample(self, guider: str, inversion: str) -> Link:
        noise, sampler = self.add("DisableNoise"), self.add("KSamplerSelect", sampler_name="euler")
        return self.add(
            "SamplerCustomAdvanced", noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0), sigmas=(inversion, 2),
            latent_image=(inversion, 0),
        ), 0  # fmt: skip

    def ddim(self) -> Link:
        """DDIM inversion, then sampling with the target prompt: word swap."""
        inversion = self.invert(0.0)
        guider = self.add("CFGGuider", model=self.model, positive=self.target, negative=self.empty, cfg=self.settings.cfg)
        return self.sample(guider, inversion)

    def pix2pix_zero(self, lambda_cut: float = 0.0) -> Link:
        """With one sentence a side, as PIE-Bench's own run of it. That run captions by BLIP; here the source prompt is taken."""
        inversion = self.invert(20.0)
        layers = {"self_attention": "decoder", "cross_attention": "all", "max_side": 0}
        hooked = self.add("ZeroConAttentionHookedUNet", model=self.model, **layers)
        guider = self.add(
            "ZeroConPatchNCEGuidance", hooked_model=(hooked, 0), source=self.source, edited=self.target, negative=self.source,
            trajectory=(inversion, 1), cfg=self.settings.cfg, lambda_xa=0.1, lambda_cut=lambda_cut, weighting="relative",
            temperature=0.07, patches=256, patch_sizes="1, 2", contrast="cds", start_percent=0.0, end_percent=1.0, seed=0,
        )  # fmt: skip
        return self.sample(guider, inversion)

    def zerocon(self) -> Link:
        """pix2pix-zero with the contrastive loss at the weight that the nodes start with."""
        return self.pix2pix_zero(lambda_cut=0.5)

    def cds(self, w_cut: float = 3.0) -> Link:
        """CDS Optimize with the papers' settings."""
        return self.add(
            "ZeroConCDSOptimize", model=self.model, image_latent=self.latent, source=self.source, target=self.target,
            negative=self.empty, cfg=self.settings.cfg, steps=self.settings.iterations, step_size=0.0488, step_rule="fixed",
            w_dds=1.0, w_cut=w_cut, temperature=0.07, patches=256, patch_sizes="1, 2", contrast="cds", min_timestep=0.05,
            max_timestep=0.948, timestep_order="random", ids_steps=0, checkpointing=False, seed=0,
        ), 0  # fmt: skip

    def dds(self) -> Link:
        return self.cds(w_cut=0.0)

    def finish(self, edited: Link) -> tuple[str, str]:
        """Adds the picture and its metrics; returns the ids of the nodes that show them."""
        image = (self.add("VAEDecode", samples=edited, vae=self.vae), 0)
        metrics = self.add(
            "ZeroConEditMetrics", source=self.image, edited=image, mask=self.mask, source_text=self.entry.source,
            target_text=self.entry.target, structure=self.settings.structure, lpips=self.settings.lpips, clip=self.settings.clip,
            pixels="0 to 255",
        )  # fmt: skip
        return self.add("PreviewImage", images=image), self.add("PreviewAny", source=(metrics, 1))


METHODS: dict[str, Callable[[Graph], Link]] = {
    "ddim": Graph.ddim,
    "pix2pix-zero": Graph.pix2pix_zero,
    "zerocon": Graph.zerocon,
    "dds": Graph.dds,
    "cds": Graph.cds,
}
