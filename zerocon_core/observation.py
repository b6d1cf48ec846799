"""What a model showed during one pass, and how two passes are compared."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """What the hooked layers of the model showed during one pass, by layer."""

    cross_attention: Mapping[Hashable, Tensor]
    """Probabilities, each (B, heads, h, w, tokens)."""
    self_attention: Mapping[Hashable, Tensor]
    """Outputs after the projection, each (B, C, h, w)."""


def pairs(maps: Mapping[Hashable, Tensor], reference: Mapping[Hashable, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Maps of both passes, layer by layer. Raises ValueError if the passes did not show the same layers."""
    if not maps or maps.keys() != reference.keys():
        raise ValueError(f"the edit shows {len(maps)} attention maps and the reference {len(reference)}: not comparable")
    return [(maps[layer], reference[layer]) for layer in maps]
