"""How training says what is on the tabletop."""

import numpy as np
from zerocon_pack.zerocon_core.tabletop import captions
from zerocon_pack.zerocon_core.tabletop.scene import Scene

CAPTION_SHARE = 0.7
WORDS = (*captions.VOCABULARY, "an", "the")


def phrase(subject: Scene, rng: np.random.Generator) -> str:
    """Mostly all that a caption says, its solids in any order, else a part of it."""
    floor = f"{subject.floor.pattern} floor"
    solids = [subject.solids[i] for i in rng.permutation(len(subject.solids))]
    if rng.random() < CAPTION_SHARE:
        return " and ".join(f"a {s}" for s in solids) + f" on a {floor}"
    first = solids[0]
    parts = (
        " and ".join(f"a {s.colour} {s.shape}" for s in solids),
        " and ".join(f"a {s.shape}" for s in solids) + f" on a {floor}",
        f"the {first.colour} {first.shape} on the {floor}",
        f"a {first}",
        f"a {first.material} {first.shape}",
        f"a {floor}",
        f"{first.colour} {first.shape}",
        first.colour,
        first.shape,
    )
    return parts[rng.integers(len(parts))]
