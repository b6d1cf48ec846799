"""Inputs that several nodes have."""

from comfy_api.latest import io

from ...zerocon_core.language.text import SEPARATOR

MOST_SIZES, MOST_DIGITS = 8, 6


def patchnce_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "temperature", default=0.07, min=0.001, max=1.0, step=0.01, round=0.001,
            tooltip="Temperature of the contrastive loss (papers: 0.07). Lower looks harder at the most similar patches.",
        ),
        io.Int.Input(
            "patches", default=256, min=1, max=4096,
            tooltip="Random places that are compared, for each layer and patch size (papers: 256).",
        ),
        io.String.Input(
            "patch_sizes", default="1, 2", tooltip="Sides of the compared patches in positions of the map (CDS: 1, 2)."
        ),
        io.Combo.Input(
            "contrast", options=["cds", "cut"], default="cds",
            tooltip="cds: source patches look for their place in the edit. cut: edited patches look for theirs in the "
            "source.",
        ),
    ]  # fmt: skip


def checkpointing_input(**options) -> io.Input:
    return io.Boolean.Input(
        "checkpointing", default=False, **options,
        tooltip="Less memory, about 20 % more time: only the inputs of the U-Net's blocks are kept for the gradient, and the "
        "rest is computed twice.",
    )  # fmt: skip


def align_input(**options) -> io.Input:
    return io.Boolean.Input(
        "align", default=False, **options,
        tooltip="Asks the model where the inversion asked it, so that with the source's prompt at CFG 1 the source comes back "
        "exactly, at any number of steps. Costs nothing. Needs an inversion without lambda_ac and lambda_kl.",
    )  # fmt: skip


def parse_sizes(text: str) -> tuple[int, ...]:
    """Patch sizes such as "1, 2", each once."""
    sizes = tuple(dict.fromkeys(size for size in whole_numbers(text) or () if size > 0))
    if not 0 < len(sizes) <= MOST_SIZES:
        raise ValueError(f'patch_sizes is "{shortened(text)}"; it needs one to {MOST_SIZES} whole numbers from 1, such as "1, 2"')
    return sizes


def whole_numbers(text: str) -> list[int] | None:
    """The numbers of a list such as "1, 2"; None if something else is in it, or a number that is longer than any that counts."""
    parts = SEPARATOR.sub(" ", text).split()
    return [int(part) for part in parts] if all(part.isdecimal() and len(part) <= MOST_DIGITS for part in parts) else None


def shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
