from functools import partial

from comfy_api.latest import io, ui
from torch import Tensor

from ..bridge.files.folders import OFF
from ..bridge.files.networks import INCEPTION, LPIPS_TRUNKS, network_names
from ..bridge.networks.metrics import Networks, fit_mask, measure
from ..bridge.status import announce, say
from ..zerocon_core.language.text import lines
from ..zerocon_core.metrics.edits import Edits
from .shared.checks import check_images, check_mask
from .shared.refusals import refusing
from .shared.schema import search_aliases


class EditMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ZeroConEditMetrics",
            display_name="Edit Metrics",
            category="ZeroCon",
            **search_aliases("PSNR", "SSIM", "LPIPS", "FID", "CLIP score", "structure distance", "PIE-Bench"),
            description="Measures edits as the papers do: what was kept of the source, and how well the target text is met.",
            is_output_node=True,
            inputs=[
                io.Image.Input("source", tooltip="The images before the edit."),
                io.Image.Input("edited", tooltip="The images after it: as many, of the same size."),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where the edit is allowed. Background metrics are taken outside of it. One for all or one an image.",
                ),
                io.String.Input(
                    "source_text", default="", multiline=True,
                    tooltip="What the source shows. One line for all images, or a line an image. Only clip reads it.",
                ),
                io.String.Input(
                    "target_text", default="", multiline=True,
                    tooltip="What the edited image shall show. One line for all images, or a line an image. Only clip reads it.",
                ),
                io.Combo.Input(
                    "structure", options=[OFF, *network_names("vit")],
                    tooltip="Network of the structure distance. facebook/dino-vitb8: the papers', downloaded on the first run "
                    "(340 MB). Others: ViT folders in models/metrics.",
                ),
                io.Combo.Input(
                    "lpips", options=[OFF, *LPIPS_TRUNKS],
                    tooltip="Network of LPIPS. squeeze: PIE-Bench's (5 MB); alex (233 MB) and vgg (528 MB): other papers'. "
                    "Downloaded on the first run. Needs the package lpips.",
                ),
                io.Combo.Input(
                    "clip", options=[OFF, *network_names("clip")],
                    tooltip="Network of the CLIP metrics. ViT-L/14: PIE-Bench's (1.7 GB); ViT-B/32 (0.6 GB). Downloaded on the "
                    "first run. Others: CLIP folders in models/metrics.",
                ),
                io.Combo.Input(
                    "pixels", options=["0 to 1", "0 to 255"],
                    tooltip="What the structure network sees. 0 to 255 repeats a slip of PIE-Bench's code, to compare with its "
                    "published figures.",
                ),
                io.Combo.Input(
                    "fid", optional=True, options=[OFF, INCEPTION],
                    tooltip="Network of FID, one figure for all images. inception: the paper's, downloaded on the first run "
                    "(96 MB). Needs the package torch-fidelity and 2 images. Compares only edits of the same sources.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Markdown, in the papers' units, a column an image."),
                io.String.Output("json", display_name="json", tooltip="The plain figures of each image and their means."),
            ],
        )  # fmt: skip

    @classmethod
    @refusing
    def execute(
        cls, source, edited, source_text, target_text, structure, lpips, clip, pixels, mask=None, fid=OFF
    ) -> io.NodeOutput:
        networks = Networks(structure, lpips, clip, fid, peak=255.0 if pixels == "0 to 255" else 1.0)
        edits = check(source, edited, mask, source_text, target_text, networks)
        report = measure(edits, networks, partial(announce, cls.hidden.unique_id))
        table = report.table()
        say(cls.hidden.unique_id, report.text())
        return io.NodeOutput(table, report.to_json(), ui=ui.PreviewText(table))


def check(source: Tensor, edited: Tensor, mask: Tensor | None, source_text: str, target_text: str, networks: Networks) -> Edits:
    """Images (B, H, W, C), masks (M, H, W) and texts as the metrics take them. Raises ValueError for what does not fit."""
    check_images("source", source)
    check_images("edited", edited)
    if source.shape[:3] != edited.shape[:3]:
        raise ValueError(
            f"source is {_size(source)} and edited is {_size(edited)}; they must have the same number and size, use Image Crop "
            "or Upscale Image on one of them"
        )
    if networks.clip != OFF and not target_text.strip():
        raise ValueError(
            "clip compares with target_text, which is empty; write what the edited image shall show, or switch clip off"
        )
    if networks.fid != OFF and len(source) < 2:
        raise ValueError("fid compares sets of images and got one a side; batch two or more, or switch fid off")
    if mask is not None:
        check_mask(mask)
        mask = mask.reshape(-1, *mask.shape[-2:])
        if len(mask) not in (1, len(source)):
            raise ValueError(f"{len(mask)} masks for {len(source)} images; connect one for all or one an image")
        mask = fit_mask(mask.cpu(), source)
    source_texts, target_texts = _lines("source_text", source_text, len(source)), _lines("target_text", target_text, len(source))
    return Edits(source[..., :3].float().cpu(), edited[..., :3].float().cpu(), mask, source_texts, target_texts)


def _size(images: Tensor) -> str:
    count, height, width = images.shape[:3]
    return f"{count} x {width}x{height}"


def _lines(name: str, text: str, count: int) -> list[str] | None:
    """A text an image; None for none at all."""
    texts = lines(text)
    if len(texts) not in (0, 1, count):
        raise ValueError(f"{name} has {len(texts)} lines for {count} images; write one for all or one an image")
    return texts * (count // len(texts)) if texts else None
