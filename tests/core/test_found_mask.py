"""The mask that an edit finds on its way, against loops over numbers."""

import math

import pytest
import torch

from zerocon_core.maps.differences import difference_map
from zerocon_core.maps.found import FoundMask


def blurred(values: list[list[float]], sigma: float) -> list[list[float]]:
    """Gaussian of 3 sigma to each side, the border continued."""
    radius = int(3 * sigma + 0.5)
    weights = [math.exp(-((i / sigma) ** 2) / 2) for i in range(-radius, radius + 1)]
    total, rows, columns = sum(weights), len(values), len(values[0])
    at = lambda i, j: values[min(max(i, 0), rows - 1)][min(max(j, 0), columns - 1)]
    reach = range(-radius, radius + 1)
    return [
        [
            sum(weights[a + radius] * weights[b + radius] * at(i + a, j + b) for a in reach for b in reach) / total**2
            for j in range(columns)
        ]
        for i in range(rows)
    ]


def test_three_steps_are_the_equations():
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(3, 2, 1, 4, 7, 6, dtype=torch.float64, generator=generator)  # steps, prompts, B, C, H, W
    found = FoundMask(0.3, 0.6, 0.9, 1.0)
    gathered, sums = None, [[0.0] * 6 for _ in range(7)]
    for edited, source in steps:
        gathered = found.gathered(gathered, difference_map(torch.stack([edited, source])))
        d = [[sum(abs(float(edited[0, c, i, j] - source[0, c, i, j])) for c in range(4)) / 4 for j in range(6)] for i in range(7)]
        sums = [[0.9 * sums[i][j] + d[i][j] for j in range(6)] for i in range(7)]
        smoothed = blurred(sums, 1.0)
        low, high = min(map(min, smoothed)), max(map(max, smoothed))
        expected = [[min(max(((value - low) / (high - low) - 0.3) / 0.3, 0), 1) for value in row] for row in smoothed]
        torch.testing.assert_close(found.mask(found.heat(gathered))[0], torch.tensor(expected, dtype=torch.float64))


def test_equal_prompts_free_nothing():
    found = FoundMask()
    assert not found.mask(found.heat(found.gathered(None, torch.zeros(2, 5, 5)))).any()


def test_each_sample_has_its_own_scale():
    found, maps = FoundMask(), torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    maps[1] *= 1000
    both = found.mask(found.heat(maps))
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], found.mask(found.heat(maps[i : i + 1])))
    assert 0 < both[0].mean() < 1


@pytest.mark.parametrize("low, high", [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.2)])
def test_a_ramp_that_does_not_rise_is_refused(low, high):
    with pytest.raises(ValueError, match="low < high"):
        FoundMask(low, high)
