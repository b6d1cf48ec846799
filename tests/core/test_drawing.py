"""Grids and curves: pixels where they belong."""

import pytest
import torch
from PIL import ImageColor

from zerocon_core.drawing import CURVES, Panel, axis_levels, cell_size, grid_columns, labelled_grid, plot


@pytest.mark.parametrize("count", [1, 3, 4, 7, 17, 77, 231])
@pytest.mark.parametrize("height, width", [(64, 64), (768, 512), (100, 1024)])
def test_grids_stay_within_their_width_and_keep_proportions(count, height, width):
    cell = cell_size(height, width, count)
    grid = labelled_grid(torch.zeros(count, *cell, 3), ["word"] * count)
    assert grid.shape[1] <= 2048 + 6 * (grid_columns(count) + 1)
    assert cell[0] / cell[1] == pytest.approx(height / width, rel=0.05)


def test_every_picture_of_a_grid_is_there_with_its_label_below():
    values = torch.arange(1, 8) / 8
    grid = labelled_grid(values.view(-1, 1, 1, 1).expand(-1, 40, 50, 3), ["", "x", *["a very long label"] * 5])
    cells = [grid[6 + row * 70 :, 6 + column * 56 :][:40, :50] for row in range(2) for column in range(4)]
    for cell, value in zip(cells, values, strict=False):
        assert (cell - value).abs().max() < 1 / 255
    assert (cells[7] == 1).all()  # seven pictures leave the last place empty
    labels = [grid[6 + row * 70 + 40 :, 6 + column * 56 :][:24, :50] for row in range(2) for column in range(4)]
    assert [bool((label < 0.5).any()) for label in labels] == [False, *[True] * 6, False]


def test_curves_pass_through_their_values():
    """The middle of the dots, read off the picture: evenly spaced, and in height linear in the values."""
    values = [3.0, 1.0, 4.0, 2.0]
    picture = plot([Panel("", {"": values})], ["a", "b", "c", "d"], "")
    colour = torch.tensor(ImageColor.getrgb(CURVES[0])) / 255
    rows, columns = ((picture - colour).abs().amax(-1) < 0.02).nonzero().unbind(1)
    places = [84 + (620 - 84) * (i + 0.5) / 4 for i in range(4)]
    heights = [-rows[(columns - place).abs() < 2].float().mean() for place in places]
    shares = [(height - heights[1]) / (heights[2] - heights[1]) for height in heights]
    assert shares == pytest.approx([2 / 3, 0, 1, 1 / 3], abs=0.01)


def test_a_legend_names_the_curves_in_their_colours():
    one = plot([Panel("", {"first": [1.0, 2.0]})], ["a", "b"], "")
    two = plot([Panel("", {"first": [1.0, 2.0], "second": [1.0, 2.0]})], ["a", "b"], "")
    shown = lambda picture, curve: bool(
        ((picture[:40] - torch.tensor(ImageColor.getrgb(CURVES[curve])) / 255).abs().amax(-1) < 0.02).any()
    )
    assert not shown(one, 0) and shown(two, 0) and shown(two, 1) and not shown(two, 2)


@pytest.mark.parametrize("values", [[1.0, 9.0], [88.1, 88.4], [0.0], [-3.0, -3.0], [1e-9, 3e-9], [1e6, 2.4e6, 7.0]])
def test_axis_levels_are_round_and_hold_all_values(values):
    levels = axis_levels(values)
    assert 5 <= len(levels) <= 10 and levels[0] <= min(values) and levels[-1] >= max(values)
    step = levels[1] - levels[0]
    assert float(f"{step:.0e}") == pytest.approx(step) and f"{step:.0e}"[0] in "125"
