"""Heat maps of words against plain loops, and their colours against matplotlib's."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from zerocon_core.drawing import cell_size, colours, heat_grids, lay_over
from zerocon_core.language.tokens import Token, places_of, spans, spelled
from zerocon_core.maps.words import (
    Word,
    average_maps,
    find_words,
    heat_of_words,
    name_tokens,
    normalize,
    resize,
)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_maps_of_all_layers_are_averaged_on_one_grid():
    """Layers of several sizes and numbers of heads count the same; PIL resizes."""
    layers = [rand(2, 3, 8, 6, 5, seed=1), rand(2, 1, 4, 3, 5, seed=2)]
    maps = average_maps(layers, (8, 6))
    assert maps.shape == (2, 5, 8, 6)
    for sample in range(2):
        for token in range(5):
            expected = 0.0
            for layer in layers:
                heads = [layer[sample, head, :, :, token] for head in range(layer.shape[1])]
                picture = Image.fromarray((sum(heads) / len(heads)).numpy()).resize((6, 8), Image.Resampling.BILINEAR)
                expected = expected + torch.from_numpy(np.array(picture)) / len(layers)
            torch.testing.assert_close(maps[sample, token], expected)


def test_resizing_keeps_probabilities():
    maps = rand(1, 7, 5, 4).softmax(1)
    for size in ((10, 8), (3, 2), (13, 9)):
        torch.testing.assert_close(resize(maps, size).sum(1), torch.ones(1, *size))


TOKENS = [Token(i + 1, text + "</w>") for i, text in enumerate("a red dog and a red".split())]
TOKENS += [Token(80, "cir"), Token(81, "cle</w>"), Token(82, ",</w>"), Token(83, "dog</w>")]  # in a second window


def test_words_are_found_wherever_they_stand():
    find = lambda *phrase: list(places_of(spelled(phrase), TOKENS))
    assert find("dog</w>") == [3, 83]
    assert find("cir", "cle</w>") == [80, 81]
    assert find("a</w>", "red</w>") == [1, 2, 5, 6]
    assert find("red</w>", "cir", "cle</w>") == [6, 80, 81]  # across the windows
    assert find("cir</w>") == find("cat</w>") == find("red</w>", "dog</w>", "red</w>") == []


def test_tokens_of_other_scripts_are_characters():
    """CLIP cuts 猫 into two pieces of its three bytes, and has no piece for the end of a word inside a Chinese sentence."""
    tokens = [Token(1, "çº¢"), Token(2, "çĮ"), Token(3, "«"), Token(4, "åľ¨</w>")]
    text, spanned = spans(tokens)
    assert text == "红猫在 "
    assert [text[span.start : span.end] for span in spanned] == ["红", "猫", "猫", "在"]
    assert list(places_of("猫", tokens)) == [2, 3] and list(places_of("狗", tokens)) == []
    assert [word.name for word in name_tokens([1, 2, 3], tokens)] == ["1 红", "2 猫", "3 猫"]


def test_words_are_named_and_those_that_are_missing_are_said():
    phrases = [("dog", ["dog</w>"]), ("red circle", ["red</w>", "cir", "cle</w>"])]
    assert find_words(phrases, TOKENS) == [("dog", [3, 83]), ("red circle", [6, 80, 81])]
    with pytest.raises(ValueError, match='not contain "cat", "mat"; choose from its words: a, red, dog, and, circle, ,'):
        find_words([("cat", ["cat</w>"]), *phrases, ("mat", ["mat</w>"])], TOKENS)


def test_tokens_are_named_by_place_and_text():
    assert name_tokens([81, 0, 2], TOKENS) == [("81 cle", [81]), ("0", [0]), ("2 red", [2])]


def test_a_word_is_the_mean_of_its_tokens_and_has_their_share():
    maps = rand(2, 6, 3, 4).softmax(1)
    heat, shares = heat_of_words(maps, [Word("one", [2]), Word("three", [1, 4, 5])])
    torch.testing.assert_close(heat[:, 0], maps[:, 2])
    torch.testing.assert_close(heat[:, 1], (maps[:, 1] + maps[:, 4] + maps[:, 5]) / 3)
    torch.testing.assert_close(shares[:, 1], (maps[:, 1] + maps[:, 4] + maps[:, 5]).mean((1, 2)))


def test_shares_are_of_the_places_that_attend():
    maps = rand(1, 4, 2, 3).softmax(1)
    padded = torch.nn.functional.pad(maps, (2, 1))
    torch.testing.assert_close(heat_of_words(padded, [Word("", [1])])[1], heat_of_words(maps, [Word("", [1])])[1])


def test_each_map_fills_the_range_by_itself():
    maps = torch.stack([rand(3, 4, seed=1), 1e-4 * rand(3, 4, seed=2) + 0.3])
    scaled = normalize(maps)
    for map, before in zip(scaled, maps, strict=True):
        assert map.min() == 0 and map.max() == 1
        assert map.flatten().argsort().equal(before.flatten().argsort())
    assert not normalize(torch.full((1, 2, 2), 0.4)).any()


def test_colours_are_those_of_matplotlib():
    heat = torch.linspace(0, 1, 256).view(16, 16)
    expected = torch.from_numpy(colormaps["inferno"](heat.numpy())[..., :3]).float()
    assert (colours(heat) - expected).abs().max() < 0.05
    assert colours(torch.tensor([-1.0, 2.0])).equal(colours(torch.tensor([0.0, 1.0])))


def test_heat_lies_over_every_image_of_its_size():
    """opacity 0 is the image as PIL resizes it, 1 the colours alone, and between them the mixture."""
    heat, image = rand(2, 3, 8, 6, seed=1), rand(1, 16, 12, 4, seed=2)  # the fourth channel is no colour
    channels = [Image.fromarray(image[0, ..., c].numpy()).resize((6, 8), Image.Resampling.BILINEAR) for c in range(3)]
    under = torch.from_numpy(np.stack([np.array(channel) for channel in channels], -1))
    torch.testing.assert_close(lay_over(image, heat, 0.0), under.expand(2, 3, 8, 6, 3))
    torch.testing.assert_close(lay_over(image, heat, 1.0), colours(heat))
    torch.testing.assert_close(lay_over(image, heat, 0.25), 0.75 * under + 0.25 * colours(heat))
    assert lay_over(None, heat, 0.25).equal(colours(heat))


def test_a_grid_a_sample_holds_its_maps_in_the_images_proportions():
    heat = torch.tensor([[[[0.0]], [[1.0]]], [[[1.0]], [[0.0]]]])  # two samples of two constant maps
    grids = heat_grids(heat, [["a", "b"], ["c", "d"]], (40, 20), None, 1.0)
    height, width = cell_size(40, 20, 2)
    dark, light = colours(torch.tensor([0.0, 1.0]))
    for grid, shown in zip(grids, ((dark, light), (light, dark)), strict=True):
        for place, colour in enumerate(shown):
            cell = grid[6 : 6 + height, 6 + place * (width + 6) :][:, :width]
            assert (cell - colour).abs().max() < 1 / 255
