"""The guided step against finite differences of the losses in `papers`, through a small analytic model."""

from dataclasses import replace

import papers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zerocon_core.methods.guidance import Guidance, GuidanceWeights, cross_attention_loss
from zerocon_core.methods.patchnce import PatchNCE
from zerocon_core.noising import Noising
from zerocon_core.observation import Observation

EPS, FLOW = Noising(), Noising(flow=True)

SIGMA = torch.tensor(1.7, dtype=torch.float64)
EVERYWHERE = PatchNCE()  # more patches than the maps below have places
ABSOLUTE = GuidanceWeights(lambda_xa=0.3, lambda_cut=0.02, relative=False, patchnce=EVERYWHERE)
RELATIVE = GuidanceWeights(lambda_xa=0.3, lambda_cut=0.6, relative=True, patchnce=EVERYWHERE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


QUERY, KEY = randn(2, 3, 3, seed=1), randn(2, 4, 3, seed=2)  # (heads, d, C) and (heads, tokens, d)
CONVOLUTIONS = randn(3, 3, 3, 3, seed=3), randn(2, 3, 1, 1, seed=4)


def observe(x: Tensor) -> Observation:
    """Two layers of each kind at full and half size: softmax attention of every pixel over 4 tokens, and convolutions."""
    half = F.avg_pool2d(x, 2)

    def attention(x: Tensor) -> Tensor:
        return torch.einsum("hdc,bcyx,htd->bhyxt", QUERY, x, KEY).softmax(-1)

    return Observation(
        cross_attention={"full": attention(x), "half": attention(half)},
        self_attention={
            "full": F.conv2d(x, CONVOLUTIONS[0], padding=1).tanh(),
            "half": F.conv2d(half, CONVOLUTIONS[1]) + 0.3 * half[:, :2] ** 2,
        },
    )


X = randn(2, 3, 4, 5, seed=5)
LATER = X + 0.5 * randn(2, 3, 4, 5, seed=6)
REFERENCE = observe(X + 0.4 * randn(2, 3, 4, 5, seed=7))


def of_sample(observation: Observation, index: int) -> Observation:
    return Observation(
        {layer: maps[index : index + 1] for layer, maps in observation.cross_attention.items()},
        {layer: maps[index : index + 1] for layer, maps in observation.self_attention.items()},
    )


def gradients(x: Tensor, direction: str = "cds") -> tuple[Tensor, Tensor]:
    """dL_xa/dx and dL_cut/dx by finite differences, sample by sample."""

    def both(index: int) -> tuple[Tensor, Tensor]:
        reference = of_sample(REFERENCE, index)

        def xa(x: Tensor) -> float:
            maps = observe(x).cross_attention
            return papers.attention_distance(
                [(maps[k][0].flatten(1, 2), reference.cross_attention[k][0].flatten(1, 2)) for k in maps]
            )

        def cut(x: Tensor) -> float:
            maps = observe(x).self_attention
            layers = [(maps[k][0], reference.self_attention[k][0]) for k in maps]
            return papers.contrastive_loss(layers, (1, 2), 0.07, direction)

        return papers.numerical_gradient(xa, x[index : index + 1]), papers.numerical_gradient(cut, x[index : index + 1])

    xa, cut = zip(*(both(index) for index in range(len(x))), strict=True)
    return torch.cat(xa), torch.cat(cut)


@pytest.fixture(scope="module")
def at_x() -> tuple[Tensor, Tensor]:
    return gradients(X)


def shift(weights: GuidanceWeights, x: Tensor = X, reference: Observation = REFERENCE) -> Tensor:
    return Guidance(EPS, weights, generator()).shift(observe, x, SIGMA, reference)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """To the precision of the contrastive loss, which the core takes in float32."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def length(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).norm(dim=1)


def test_cross_attention_loss_is_the_papers():
    layers = [(randn(3, 2, 2, 3, 5, seed=i), randn(3, 2, 2, 3, 5, seed=10 + i)) for i in range(2)]
    layers.append((randn(3, 4, 2, 1, 7, seed=2), randn(3, 4, 2, 1, 7, seed=12)))
    flat = [[maps.flatten(2, 3) for maps in pair] for pair in layers]
    expected = [papers.attention_distance([(m[i], reference[i]) for m, reference in flat]) for i in range(3)]
    torch.testing.assert_close(cross_attention_loss(layers), torch.tensor(expected, dtype=torch.float64))


def test_lambda_is_on_the_scale_of_the_published_code():
    """Its loss and its step as they stand: the heads of both branches in one batch, `.sum((1, 2)).mean(0)`, SGD at the lambda.

    The conditional copy moves as ours does. At sigma 0 x is the paper's x_t.
    """
    unconditional, conditional = X[1:], X[:1]
    pair = torch.cat([unconditional, conditional]).requires_grad_(True)
    optimizer = torch.optim.SGD([pair], lr=0.1)
    shown, loss = observe(pair).cross_attention, 0.0
    for layer, maps in shown.items():
        current, reference = (m.flatten(0, 1).flatten(1, 2) for m in (maps, REFERENCE.cross_attention[layer].flip(0)))
        loss = loss + ((current - reference) ** 2).sum((1, 2)).mean(0)
    loss.backward()
    optimizer.step()

    guidance = Guidance(EPS, GuidanceWeights(0.1, 0.0), generator())
    move = guidance.shift(observe, conditional, torch.zeros((), dtype=torch.float64), of_sample(REFERENCE, 0))
    torch.testing.assert_close(conditional + move, pair[1:].detach())


@pytest.mark.parametrize("direction", ["cds", "cut"])
def test_absolute_shift_is_the_papers_step(direction):
    """x_vp <- x_vp - (lambda_xa dL_xa/dx_vp + lambda_cut dL_cut/dx_vp) is -(1 + sigma^2) (... dL/dx) in x."""
    xa, cut = gradients(X, direction)
    moved = shift(replace(ABSOLUTE, patchnce=PatchNCE(direction=direction)))
    assert_close(moved, -(1 + 1.7**2) * (0.3 * xa + 0.02 * cut))
    # Both parts are large enough to be seen.
    assert 0.1 < (0.3 * length(xa) / (0.02 * length(cut))).min() < 10


def test_without_the_contrastive_loss_it_is_pix2pix_zero(at_x):
    """Without a float32 part, so to full precision; and self-attention need not be shown."""
    reference = Observation(REFERENCE.cross_attention, {})
    for relative in (False, True):
        moved = shift(GuidanceWeights(0.3, 0.0, relative), reference=reference)
        torch.testing.assert_close(moved, -(1 + 1.7**2) * 0.3 * at_x[0], rtol=1e-6, atol=1e-8)


def test_without_the_cross_attention_loss_it_is_the_contrastive_step(at_x):
    moved = shift(replace(ABSOLUTE, lambda_xa=0.0), reference=Observation({}, REFERENCE.self_attention))
    assert_close(moved, -(1 + 1.7**2) * 0.02 * at_x[1])


@pytest.mark.parametrize("sigma", [0.0, 0.03, 14.6])
def test_shift_grows_with_one_plus_sigma_squared(sigma, at_x):
    moved = Guidance(EPS, GuidanceWeights(0.3, 0.0), generator()).shift(observe, X, torch.tensor(sigma).double(), REFERENCE)
    torch.testing.assert_close(moved, -(1 + sigma**2) * 0.3 * at_x[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_shift_of_a_flow_is_a_step_where_the_squares_of_both_shares_sum_to_one(sigma, at_x):
    moved = Guidance(FLOW, GuidanceWeights(0.3, 0.0), generator()).shift(observe, X, torch.tensor(sigma).double(), REFERENCE)
    torch.testing.assert_close(moved, -((1 - sigma) ** 2 + sigma**2) * 0.3 * at_x[0], rtol=1e-5, atol=1e-7)


def test_relative_weight_is_measured_once_and_held(at_x):
    guidance = Guidance(EPS, RELATIVE, generator())
    xa, cut = at_x
    # At the first step the contrastive move has 0.6 times the length of the cross-attention move, in each sample.
    weight = 0.6 * 0.3 * length(xa) / length(cut)
    assert abs(float(weight[0] / weight[1]) - 1) > 0.01
    first = guidance.shift(observe, X, SIGMA, REFERENCE)
    assert_close(first, -(1 + 1.7**2) * (0.3 * xa + weight.view(-1, 1, 1, 1) * cut))
    contrastive = first - shift(GuidanceWeights(0.3, 0.0))
    shares = length(contrastive) / length(first - contrastive)
    torch.testing.assert_close(shares, torch.full_like(shares, 0.6), rtol=1e-5, atol=0)

    # Later the loss changes, the weight does not.
    xa, cut = gradients(LATER)
    second = guidance.shift(observe, LATER, SIGMA, REFERENCE)
    assert_close(second, -(1 + 1.7**2) * (0.3 * xa + weight.view(-1, 1, 1, 1) * cut))
    assert not torch.allclose(0.6 * 0.3 * length(xa) / length(cut), weight, rtol=0.02)


@pytest.mark.parametrize("patches", [256, 3])
@pytest.mark.parametrize("weights", [ABSOLUTE, RELATIVE], ids=["absolute", "relative"])
def test_samples_of_a_batch_do_not_meet(weights, patches):
    weights = replace(weights, patchnce=PatchNCE(patches=patches))
    together = Guidance(EPS, weights, generator())
    alone = [Guidance(EPS, weights, generator()) for _ in X]
    for x in (X, LATER):
        moved = together.shift(observe, x, SIGMA, REFERENCE)
        for i, guidance in enumerate(alone):
            one = guidance.shift(observe, x[i : i + 1], SIGMA, of_sample(REFERENCE, i))
            torch.testing.assert_close(moved[i : i + 1], one, rtol=1e-5, atol=1e-7)


def test_patches_are_drawn_anew_each_step_from_the_seed():
    weights = replace(ABSOLUTE, patchnce=PatchNCE(patches=3))

    def two_steps() -> list[Tensor]:
        guidance = Guidance(EPS, weights, generator(3))
        return [guidance.shift(observe, X, SIGMA, REFERENCE) for _ in range(2)]

    (first, second), again = two_steps(), two_steps()
    assert not first.equal(second)
    assert first.equal(again[0]) and second.equal(again[1])


@pytest.mark.parametrize("recording", [False, True])
def test_shift_leaves_no_trace(recording):
    x = X.clone().requires_grad_(recording)
    moved = shift(RELATIVE, x)
    assert not moved.requires_grad and moved.shape == x.shape
    assert x.grad is None and x.requires_grad == recording and x.detach().equal(X)


@pytest.mark.parametrize("kind", ["cross_attention", "self_attention"])
def test_other_layers_than_the_references_are_an_error(kind):
    maps = getattr(REFERENCE, kind)
    for layers in ({}, {"full": maps["full"]}, {"full": maps["full"], "other": maps["half"]}):
        with pytest.raises(ValueError, match="not comparable"):
            shift(ABSOLUTE, reference=replace(REFERENCE, **{kind: layers}))


@pytest.mark.parametrize("weights", [ABSOLUTE, GuidanceWeights(0.3, 0.0)], ids=["both", "xa"])
def test_no_layers_at_all_is_an_error(weights):
    nothing = Observation({}, {})
    with pytest.raises(ValueError, match="not comparable"):
        Guidance(EPS, weights, generator()).shift(lambda x: nothing, X, SIGMA, nothing)


@pytest.mark.parametrize("weights", [ABSOLUTE, RELATIVE, GuidanceWeights(0.3, 0.0)], ids=["absolute", "relative", "xa"])
def test_a_gradient_that_is_not_finite_is_an_error(weights):
    def broken(x: Tensor) -> Observation:  # finite maps, but the square root has no slope at 0
        observation, nothing = observe(x), (x - X).abs().sqrt().sum()
        return replace(observation, cross_attention={k: m + nothing for k, m in observation.cross_attention.items()})

    with pytest.raises(ValueError, match=r"not finite at sigma 1\.7"):
        Guidance(EPS, weights, generator()).shift(broken, X, SIGMA, REFERENCE)


def test_without_weights_nothing_moves():
    assert not shift(GuidanceWeights(0.0, 0.0)).any()


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="lambda_xa is 0"):
        Guidance(EPS, GuidanceWeights(0.0, 1.0, relative=True), generator())


@pytest.mark.parametrize("weights", [ABSOLUTE, RELATIVE], ids=["absolute", "relative"])
def test_history_holds_losses_weights_and_moves(weights):
    """Against the papers' loops, sample by sample; the relative weight is held from the first step on."""
    guidance = Guidance(EPS, weights, generator())
    xa, cut = gradients(X)
    factor = 0.6 * 0.3 * length(xa) / length(cut) if weights.relative else torch.full((2,), 0.02)
    moves = [guidance.shift(observe, x, SIGMA, REFERENCE) for x in (X, LATER)]
    for x, move, step in zip((X, LATER), moves, guidance.history, strict=True):
        xa, cut = torch.tensor([sample_losses(x, index) for index in range(2)]).unbind(1)
        expected = (1.7, xa.mean(), cut.mean(), 0.3 * xa.mean(), (factor * cut).mean(), (length(move) / length(x)).mean())
        assert step == pytest.approx(tuple(map(float, expected)), rel=1e-4)
        assert step.loss == pytest.approx(float(0.3 * xa.mean() + (factor * cut).mean()), rel=1e-4)


def sample_losses(x: Tensor, index: int) -> tuple[float, float]:
    """L_xa and L_cut of one sample by the papers' loops."""
    shown, reference = observe(x[index : index + 1]), of_sample(REFERENCE, index)
    both = lambda kind: [(getattr(shown, kind)[k][0], getattr(reference, kind)[k][0]) for k in getattr(shown, kind)]
    cross = [tuple(map.flatten(1, 2) for map in pair) for pair in both("cross_attention")]
    return papers.attention_distance(cross), papers.contrastive_loss(both("self_attention"), (1, 2), 0.07, "cds")


def test_history_of_one_loss_alone():
    guidance = Guidance(EPS, GuidanceWeights(0.3, 0.0), generator())
    guidance.shift(observe, X, SIGMA, REFERENCE)
    [step] = guidance.history
    assert step.cut == step.weighted_cut == 0 and step.xa > 0
