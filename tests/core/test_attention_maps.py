"""Heat maps of words against plain loops, and their colours against matplotlib's."""

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from zerocon_core.maps.words import Token, average_maps, colours, heat_of_words, normalize, positions_of, resize


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
    find = lambda *phrase: positions_of(phrase, TOKENS)
    assert find("dog</w>") == [3, 83]
    assert find("cir", "cle</w>") == [80, 81]
    assert find("a</w>", "red</w>") == [1, 2, 5, 6]
    assert find("red</w>", "cir", "cle</w>") == [6, 80, 81]  # across the windows
    assert find("cir</w>") == find("cat</w>") == find() == find("red</w>", "dog</w>", "red</w>") == []


def test_a_word_is_the_mean_of_its_tokens_and_has_their_share():
    maps = rand(2, 6, 3, 4).softmax(1)
    heat, shares = heat_of_words(maps, [[2], [1, 4, 5]])
    torch.testing.assert_close(heat[:, 0], maps[:, 2])
    torch.testing.assert_close(heat[:, 1], (maps[:, 1] + maps[:, 4] + maps[:, 5]) / 3)
    torch.testing.assert_close(shares[:, 1], (maps[:, 1] + maps[:, 4] + maps[:, 5]).mean((1, 2)))


def test_shares_are_of_the_places_that_attend():
    maps = rand(1, 4, 2, 3).softmax(1)
    padded = torch.nn.functional.pad(maps, (2, 1))
    torch.testing.assert_close(heat_of_words(padded, [[1]])[1], heat_of_words(maps, [[1]])[1])


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
