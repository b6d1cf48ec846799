"""The mask that an edit finds on its way: where the model's predictions differ between prompts, step after step (ours).

Edit Mask's map is taken of the source before the edit, from many noises at one level. This one is of the edit itself, from the
predictions that its steps compute anyway, so it can not be wrong all at once; it is soft, and 0 where the prompts are the same.
"""

from dataclasses import dataclass

from torch import Tensor

from .differences import smooth
from .words import normalize


@dataclass(frozen=True)
class FoundMask:
    """How differences become a mask: sums with `decay`, a blur of `smoothing` positions, a ramp from `low` to `high`."""

    low: float = 0.25
    high: float = 0.5
    decay: float = 0.9
    smoothing: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"the mask rises from {self.low} to {self.high}; it needs 0 <= low < high <= 1")

    def gathered(self, before: Tensor | None, difference: Tensor) -> Tensor:
        """a_i = decay a_{i-1} + d_i, each (B, H, W); without anything before it is d_i. d is what `difference_map` gives."""
        return difference if before is None else self.decay * before + difference

    def heat(self, gathered: Tensor) -> Tensor:
        """h_i, from 0 where the prompts differ least to 1; 0 everywhere where they are the same."""
        return normalize(smooth(gathered, self.smoothing))

    def mask(self, heat: Tensor) -> Tensor:
        """m_i: 0 up to `low`, 1 from `high` on, a ramp between."""
        return ((heat - self.low) / (self.high - self.low)).clamp(0, 1)
