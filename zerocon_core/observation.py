"""What a model shows of itself during one pass, and how two passes are set side by side.

Guidance and CDS compare an edit with its source by what the same layers show in both; how a layer is read is the caller's matter.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """What the read layers of a model showed during one pass. A key names a layer and is the same in every pass."""

    cross_attention: Mapping[Hashable, Tensor]
    """How much each position attends to each token of the prompt: probabilities (B, heads, h, w, tokens) by layer."""
    self_attention: Mapping[Hashable, Tensor]
    """Features: what self-attention adds to each position, (B, C, h, w) by layer."""


def pairs(maps: Mapping[Hashable, Tensor], reference: Mapping[Hashable, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(map, reference) of one layer after the other, in the order of `maps`.

    Raises ValueError if there is no layer, or if the two passes did not show the same ones.
    """
    if not maps or maps.keys() != reference.keys():
        raise ValueError(
            f"the edit shows {len(maps)} attention maps and the reference {len(reference)}, not comparable: the same layers must "
            "run in both passes; remove from the model what skips passes or layers (a cache)"
        )
    return [(maps[layer], reference[layer]) for layer in maps]
