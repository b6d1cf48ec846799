"""The contrastive loss against the triple loop of `papers`."""

import math

import papers
import pytest
import torch
from torch import Tensor

from zerocon_core.methods.patchnce import PatchNCE, draw_patches, patch_nce, patch_nce_loss

SHAPES = [(3, 5, 4), (6, 3, 7), (2, 2, 2)]  # (C, h, w): odd, not square, and only one patch of size 2
DIRECTIONS = ["cds", "cut"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_layers(shapes=SHAPES, batch: int = 1) -> list[tuple[Tensor, Tensor]]:
    """(edited, source) of every layer; the edited map is close to the source, as it is in a real edit."""
    draw = generator()
    layers = []
    for shape in shapes:
        source = torch.randn(batch, *shape, generator=draw)
        layers.append((source + 0.5 * torch.randn(batch, *shape, generator=draw), source))
    return layers


def sample(layers: list[tuple[Tensor, Tensor]], index: int) -> list[tuple[Tensor, Tensor]]:
    return [(edited[index : index + 1], source[index : index + 1]) for edited, source in layers]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_patch_nce_is_info_nce(temperature):
    anchor, other = torch.nn.functional.normalize(torch.randn(2, 3, 9, 4, dtype=torch.float64, generator=generator()), dim=-1)
    expected = [papers.info_nce(a.tolist(), o.tolist(), temperature) for a, o in zip(anchor, other, strict=True)]
    torch.testing.assert_close(patch_nce(anchor, other, temperature), torch.tensor(expected, dtype=torch.float64))
    # Anchor and other are not interchangeable, so the comparison above tells them apart.
    assert not torch.allclose(patch_nce(other, anchor, temperature), torch.tensor(expected, dtype=torch.float64), rtol=1e-3)


def test_patch_nce_closed_form():
    """Orthonormal patches: -log(e^{1/tau} / (e^{1/tau} + P - 1)) when identical, log(P) when all are the same vector."""
    axes, tau = torch.eye(5, dtype=torch.float64)[None], 0.3
    same = axes[:, :1].expand(1, 5, 5)
    assert patch_nce(axes, axes, tau).item() == pytest.approx(math.log(1 + 4 * math.exp(-1 / tau)))
    assert patch_nce(same, same, tau).item() == pytest.approx(math.log(5))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("temperature", [0.07, 0.4])
def test_loss_is_the_papers(direction, sizes, temperature):
    layers = random_layers(batch=2)
    loss = patch_nce_loss(layers, PatchNCE(temperature, 256, sizes, direction), generator())
    expected = [
        papers.contrastive_loss([(e[i], s[i]) for e, s in layers], sizes, temperature, direction) for i in range(len(loss))
    ]
    assert loss.shape == (2,)
    torch.testing.assert_close(loss.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_is_that_of_the_edited_maps_alone(direction):
    layers = [(e.requires_grad_(), s.requires_grad_()) for e, s in random_layers([(3, 4, 3), (2, 3, 5)])]
    patch_nce_loss(layers, PatchNCE(direction=direction), generator()).sum().backward()
    for changed, (edited, source) in enumerate(layers):
        assert source.grad is None

        def loss(maps: Tensor, changed=changed) -> float:
            pairs = [(e[0], s[0]) for e, s in layers]
            pairs[changed] = (maps[0], pairs[changed][1])
            return papers.contrastive_loss(pairs, (1, 2), 0.07, direction)

        torch.testing.assert_close(edited.grad.double(), papers.numerical_gradient(loss, edited), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("patches", [256, 5])
def test_a_batch_is_its_samples(patches):
    layers, settings = random_layers(batch=2), PatchNCE(patches=patches)
    alone = torch.cat([patch_nce_loss(sample(layers, i), settings, generator()) for i in range(2)])
    torch.testing.assert_close(patch_nce_loss(layers, settings, generator()), alone)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_drawn_places_alone_are_contrasted(direction, size):
    """The loops over the vectors of the drawn squares, numbered row by row; the gradient is 0 outside of them."""
    [(edited, source)] = random_layers([(3, 9, 7)])
    places = draw_patches((9 // size) * (7 // size), 4, generator(5)).tolist()

    def loss(edited: Tensor) -> float:
        edit, reference = (papers.unit_patches(maps[0], size) for maps in (edited, source))
        anchor, other = ([vectors[p] for p in places] for vectors in (edit, reference))
        return 18 * papers.info_nce(*((anchor, other) if direction == "cut" else (other, anchor)), 0.07)

    settings = PatchNCE(patches=4, sizes=(size,), direction=direction)
    found = patch_nce_loss([(edited.requires_grad_(), source)], settings, generator(5))
    assert found.item() == pytest.approx(loss(edited), rel=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), edited)
    torch.testing.assert_close(gradient.double(), papers.numerical_gradient(loss, edited), rtol=1e-3, atol=1e-4)
    assert int(gradient.any(1).sum()) == len(places) * size**2


@pytest.mark.parametrize("patches", [256, 5])
def test_layers_of_one_shape_are_layers(patches):
    """They are compared in one go, each at the places that it is drawn: the loss is the mean of their losses alone."""
    layers, settings, draw = random_layers([(3, 5, 4), (2, 6, 6), (3, 5, 4), (3, 5, 4)]), PatchNCE(patches=patches), generator()
    alone = [patch_nce_loss([layer], settings, draw) for layer in layers]
    torch.testing.assert_close(patch_nce_loss(layers, settings, generator()), torch.stack(alone).mean(0))


def test_scale_does_not_depend_on_the_number_of_layers():
    """CDS sums 9 layers x 2 sizes; the same maps 9 times are that sum, and once they count the same."""
    edited, source = random_layers([(3, 4, 4)])[0]
    terms = [papers.contrastive_loss([(edited[0], source[0])], (size,), 0.07, "cds") / 18 for size in (1, 2)]
    for repeats in (1, 9):
        loss = patch_nce_loss([(edited, source)] * repeats, PatchNCE(), generator())
        torch.testing.assert_close(loss.double(), torch.tensor([9 * sum(terms)]).double(), rtol=1e-5, atol=0)


def test_with_enough_patches_the_seed_does_not_matter():
    layers = random_layers([(3, 4, 4)])
    every = [patch_nce_loss(layers, PatchNCE(patches=16), generator(seed)) for seed in range(3)]
    assert every[0].equal(every[1]) and every[0].equal(every[2])
    some = {float(patch_nce_loss(layers, PatchNCE(patches=15), generator(seed))) for seed in range(8)}
    assert len(some) > 1


def test_drawn_places_are_distinct_fresh_and_reproducible():
    draw = generator()
    first, second = (draw_patches(50, 20, draw) for _ in range(2))
    for places in (first, second):
        assert len(places) == len(set(places.tolist())) == 20
        assert 0 <= places.min() and places.max() < 50
    assert not first.equal(second)
    assert first.equal(draw_patches(50, 20, generator()))
    seen = {int(p) for _ in range(50) for p in draw_patches(50, 20, draw)}
    assert seen == set(range(50))
    assert draw_patches(7, 20, draw).tolist() == list(range(7))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_anchor_and_other_are_taken_from_the_same_places(direction):
    """With axes as features each place matches itself alone, so any other pairing of places would cost 1/tau more."""
    features = torch.eye(16).view(1, 16, 4, 4)
    loss = patch_nce_loss([(features, features)], PatchNCE(patches=6, sizes=(1,), direction=direction), generator())
    assert float(loss) < 1e-3


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_moved_content_costs_more_than_kept_content(direction):
    source = random_layers([(8, 6, 5)])[0][1]
    shuffled = source.flatten(2)[..., torch.randperm(30, generator=generator())].view_as(source)
    kept, moved = (
        patch_nce_loss([(edited, source)], PatchNCE(direction=direction), generator()) for edited in (source, shuffled)
    )
    assert float(kept) < 0.5 * float(moved)


def test_length_of_features_does_not_matter():
    edited, source = random_layers([(4, 5, 5)])[0]
    plain = patch_nce_loss([(edited, source)], PatchNCE(sizes=(1,)), generator())
    scaled = patch_nce_loss([(7 * edited, 0.1 * source)], PatchNCE(sizes=(1,)), generator())
    torch.testing.assert_close(scaled, plain)


def test_half_precision_features_are_compared_in_single_precision():
    layers = [(edited.half(), source.half()) for edited, source in random_layers()]
    loss = patch_nce_loss(layers, PatchNCE(), generator())
    assert loss.dtype == torch.float32
    expected = papers.contrastive_loss([(e[0].double(), s[0].double()) for e, s in layers], (1, 2), 0.07, "cds")
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_maps_too_small_for_a_size_are_left_out():
    layers = random_layers([(3, 1, 6), (3, 4, 4)])
    expected = 6 * (  # 18 / 3 terms: the flat map has patches of size 1 alone
        papers.contrastive_loss([(layers[0][0][0], layers[0][1][0])], (1,), 0.07, "cds") / 18
        + papers.contrastive_loss([(layers[1][0][0], layers[1][1][0])], (1, 2), 0.07, "cds") / 9
    )
    assert float(patch_nce_loss(layers, PatchNCE(), generator())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layers", [[], random_layers([(3, 1, 6)])])
def test_nothing_to_compare_is_an_error(layers):
    with pytest.raises(ValueError, match="nothing to contrast"):
        patch_nce_loss(layers, PatchNCE(sizes=(2, 4)), generator())
