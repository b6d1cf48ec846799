"""What is measured: every method, and every choice that the papers leave open.

A further method is a line in METHODS: its name, what is varied, and a value of toy.methods for each strength.
"""

from collections.abc import Callable, Iterable

from torch import Tensor

from ..toy.bench import Batch
from ..toy.methods import Autoencoder, Blocks, Guided, Score, SDEdit, Transplant
from .report import Curve

Method = Callable[[Batch], Tensor]


def over(name: str, parameter: str, values: Iterable, method: Callable[[float], Method]) -> Curve:
    return Curve(name, parameter, {value: method(value) for value in values})


METHODS = [
    Curve("autoencoder", "-", {"-": Autoencoder()}),
    over("SDEdit", "strength", (0.5, 0.7, 0.9), lambda v: SDEdit(v)),
    over("DDIM + word swap", "cfg", (2.0, 3.5, 5.0), lambda v: Guided(cfg=v)),
    over("DiffEdit", "strength", (0.6, 0.8, 1.0), lambda v: Guided(mask=0, strength=v)),
    over("pix2pix-zero", "lambda_xa", (0.2,), lambda v: Guided(v, reference="sampled")),
    over("pix2pix-zero, Direct Inversion", "lambda_xa", (0.4, 0.2), lambda v: Guided(v)),
    over("pix2pix-zeroCon", "lambda_xa", (0.2, 0.1), lambda v: Guided(v, 0.5)),
    over("pix2pix-zeroCon + mask", "lambda_xa", (0.4, 0.2), lambda v: Guided(v, 1.0, mask=0)),
    over("DDS", "step_size", (0.15,), lambda v: Score(step_size=v)),
    over("CDS", "w_cut", (20.0, 5.0), lambda v: Score(v)),
    over("CDS + mask", "w_cut", (5.0,), lambda v: Score(v, mask=1)),
]

BLOCKS: dict[str, Blocks] = {
    "decoder": ("output",), "encoder": ("input",), "encoder and decoder": ("input", "middle", "output"),
}  # fmt: skip

ABLATIONS = [
    over("zeroCon, lambda_cut 0", "lambda_xa", (0.8, 0.4, 0.2, 0.1), lambda v: Guided(v)),
    *(
        over(f"zeroCon, lambda_cut {weight:g}", "lambda_xa", (0.2, 0.1), lambda v, weight=weight: Guided(v, weight))
        for weight in (0.5, 1.0, 2.0, 4.0)
    ),
    *(
        over(f"zeroCon, layers {name}", "lambda_xa", (0.4, 0.2), lambda v, blocks=blocks: Guided(v, 1.0, blocks=blocks))
        for name, blocks in BLOCKS.items()
    ),
    over("CDS", "w_cut", (0.0, 5.0, 20.0, 60.0), lambda v: Score(v)),
    *(
        over(f"CDS, loss on {place}", "w_cut", (20.0,), lambda v, place=place: Score(v, place=place))
        for place in ("self-attention", "cross-attention", "output")
    ),
    *(
        over(f"CDS, layers {name}", "w_cut", (20.0,), lambda v, blocks=blocks: Score(v, blocks=blocks))
        for name, blocks in BLOCKS.items()
    ),
    over("CDS, w_cut 20", "patch sizes", ((1,), (2,), (4,), (1, 2), (1, 2, 4)), lambda v: Score(20.0, sizes=v)),
    over("CDS, w_cut 20", "patches", (16, 64, 256), lambda v: Score(20.0, patches=v)),
    over("CDS, w_cut 20", "contrast", ("cds", "cut"), lambda v: Score(20.0, contrast=v)),
    over("CDS, w_cut 20", "order", ("random", "descending"), lambda v: Score(20.0, order=v)),
    over("zeroCon, 0.2 and 1", "reference", ("sampled", "inverted"), lambda v: Guided(0.2, 1.0, reference=v)),
    over("zeroCon, 0.2 and 1", "lambda_ac and lambda_kl", (0.0, 20.0), lambda v: Guided(0.2, 1.0, lambda_noise=v)),
    over("zeroCon, 0.2 and 1", "refinements", (0, 2), lambda v: Guided(0.2, 1.0, refinements=v)),
    over("zeroCon, 0.2 and 1", "contrast", ("cds", "cut"), lambda v: Guided(0.2, 1.0, contrast=v)),
    over("zeroCon, 0.2 and 1", "end_percent", (0.5, 0.75, 1.0), lambda v: Guided(0.2, 1.0, end=v)),
    Curve("autoencoder", "object's latents of the", {"source": Autoencoder(), "true edit": Transplant()}),
]  # fmt: skip

STUDIES = {"methods": METHODS, "ablations": ABLATIONS}
