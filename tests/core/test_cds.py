"""CDS against its published form: SGD on the authors' loss in variance-preserving form, in float64."""

import contextlib
import math

import papers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zerocon_core.methods.cds import (
    PAPER_STEP_SIZE,
    CDSWeights,
    Score,
    authors_step_size,
    cds_gradient,
    cds_optimize,
    cds_optimize_rendered,
    draw_timesteps,
)
from zerocon_core.methods.ids import refine_noise
from zerocon_core.methods.patchnce import PatchNCE
from zerocon_core.noising import Noising

EPS, FLOW = Noising(), Noising(flow=True)
SIGMAS = torch.tensor([2.5, 0.4, 1.1, 6.0, 0.9], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


Z_SRC = randn(2, 3, 4, 6, seed=1)
KERNELS = {name: randn(3, 3, 3, 3, seed=seed) / 4 for seed, name in enumerate(("source", "target", "other"), start=2)}


def vp_eps(x_vp: Tensor, alpha_bar: Tensor, prompt: str) -> Tensor:
    """An analytic noise prediction, asked the way the papers ask: of sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps."""
    return (F.conv2d(x_vp, KERNELS[prompt], padding=1) + alpha_bar * x_vp).tanh()


def features(x_vp: Tensor, prompt: str) -> dict[str, Tensor]:
    full = F.conv2d(x_vp, KERNELS[prompt] + 0.5 * KERNELS["source"], padding=1)
    return {"full": full.sin(), "half": F.avg_pool2d(full, 2).tanh()}


def scorer(prompt: str):
    """The same model in the form that the core asks: x = z + sigma eps."""

    def score(x: Tensor, sigma: Tensor) -> Score:
        x_vp = x / (1 + sigma**2).sqrt()
        return Score(vp_eps(x_vp.detach(), 1 / (1 + sigma**2), prompt), features(x_vp, prompt))

    return score


def published_gradient(z: Tensor, z_src: Tensor, noise: Tensor, sigma: Tensor, w_dds: float, w_cut: float, direction: str):
    """The gradient of the published loss w_dds * 2000 * sum(z * g) / (H W) + w_cut * L_cut at one sample z (1, C, H, W).

    That of L_cut is taken by finite differences of the float loops in `papers`.
    """
    alpha_bar = 1 / (1 + sigma**2)
    noised = lambda z: alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise
    g = vp_eps(noised(z), alpha_bar, "target") - vp_eps(noised(z_src), alpha_bar, "source")
    reference = features(noised(z_src), "source")

    def cut(z: Tensor) -> float:
        edited = features(noised(z), "target")
        return papers.contrastive_loss([(edited[name][0], reference[name][0]) for name in edited], (1, 2), 0.07, direction)

    gradient = w_dds * 2000 * g / (z.shape[2] * z.shape[3])
    return gradient + w_cut * papers.numerical_gradient(cut, z) if w_cut else gradient


def published_sgd(z_src: Tensor, noises: list[Tensor], *weights) -> Tensor:
    """z after the published loop at learning rate 0.1."""
    z = z_src.clone()
    for noise, sigma in zip(noises, SIGMAS, strict=True):
        z = z - 0.1 * published_gradient(z, z_src, noise, sigma, *weights)
    return z


def drawn_noises(seed: int) -> list[Tensor]:
    draws = generator(seed)
    return [torch.randn(Z_SRC.shape[1:], generator=draws).double()[None] for _ in SIGMAS]


@pytest.mark.parametrize("direction", ["cds", "cut"])
@pytest.mark.parametrize("weights", [(1.0, 3.0), (0.7, 0.0), (0.0, 1.0)])
def test_optimisation_is_the_published_sgd(weights, direction):
    w_dds, w_cut = weights
    settings = CDSWeights(w_dds, w_cut, PatchNCE(direction=direction))
    step = authors_step_size(4, 6)
    [edited] = cds_optimize(EPS, Z_SRC, scorer("source"), [scorer("target")], SIGMAS, step_size=step, weights=settings, seed=3)
    for i in range(2):
        sample = Z_SRC[i : i + 1]
        expected = published_sgd(sample, drawn_noises(3), w_dds, w_cut, direction)
        assert (expected - sample).norm() > 0.1
        assert (edited[i : i + 1] - expected).norm() / (expected - sample).norm() < 1e-6


def test_step_sizes():
    assert authors_step_size(64, 64) == PAPER_STEP_SIZE == pytest.approx(0.1 * 2000 / 4096)
    assert authors_step_size(32, 128) == PAPER_STEP_SIZE


def test_loss_is_the_objective_in_published_units():
    noise, sigma = randn(1, 3, 4, 6, seed=8), SIGMAS[0]
    z = Z_SRC[:1] + 0.2
    source = scorer("source")(Z_SRC[:1] + sigma * noise, sigma)
    weights = CDSWeights(0.5, 2.0)
    gradient = cds_gradient(EPS, z, noise, sigma, source, scorer("target"), weights, generator())
    edited = scorer("target")(z + sigma * noise, sigma)
    cut = papers.contrastive_loss([(edited.features[n][0], source.features[n][0]) for n in edited.features], (1, 2), 0.07, "cds")
    dds = 2000 / 24 * sum(v**2 for v in (edited.eps - source.eps).flatten().tolist())
    assert gradient.loss == pytest.approx(0.5 * dds + 2.0 * cut, rel=1e-6)


def test_without_contrast_no_gradient_is_recorded():
    def score(x, sigma):
        assert not x.requires_grad and not torch.is_grad_enabled()
        return scorer("target")(x, sigma)

    cds_optimize(EPS, Z_SRC, scorer("source"), [score], SIGMAS, weights=CDSWeights(w_cut=0.0))


def optimise(z_src=Z_SRC, targets=("target",), **options):
    options = {"weights": CDSWeights(patchnce=PatchNCE(patches=5)), "seed": 4, "step_size": 0.2} | options
    return cds_optimize(EPS, z_src, scorer("source"), [scorer(t) for t in targets], SIGMAS, **options)


def test_several_targets_are_runs_of_one():
    both = optimise(targets=("target", "other"))
    assert torch.equal(both[0], optimise(targets=("target",))[0])
    assert torch.equal(both[1], optimise(targets=("other",))[0])


def test_a_batch_is_its_samples():
    [both] = optimise()
    for i in range(2):
        assert torch.allclose(both[i : i + 1], optimise(Z_SRC[i : i + 1])[0], rtol=0, atol=1e-10)


def test_same_seed_same_bits_and_another_seed_other_draws():
    assert torch.equal(optimise()[0], optimise()[0])
    assert not torch.equal(optimise()[0], optimise(seed=5)[0])


def test_masks():
    left = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    left[..., :3] = 1
    [whole] = optimise()
    assert torch.equal(optimise(mask=torch.ones_like(left))[0], whole)
    assert torch.equal(optimise(mask=torch.zeros_like(left))[0], Z_SRC)
    [half] = optimise(mask=left)
    assert torch.equal(half[..., 3:], Z_SRC[..., 3:]) and not torch.equal(half[..., :3], Z_SRC[..., :3])


def test_callback_sees_every_iteration():
    seen = []
    [edited] = optimise(callback=lambda iteration, zs, gradients: seen.append((iteration, zs[0].clone(), gradients[0].loss)))
    assert [iteration for iteration, *_ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[-1][1], edited) and all(math.isfinite(loss) for *_, loss in seen)


@pytest.mark.parametrize("part, said", [("eps", "target's score"), ("features", "contrastive gradient")])
def test_an_update_that_is_not_finite_names_iteration_and_cause(part, said):
    def score(x, sigma):
        good = scorer("target")(x, sigma)
        if sigma != SIGMAS[2]:
            return good
        if part == "eps":
            return good._replace(eps=good.eps / 0)
        return good._replace(features={layer: maps / 0 for layer, maps in good.features.items()})

    with pytest.raises(ValueError, match=f"^iteration 3: the {said} is not finite at sigma 1.1$"):
        cds_optimize(EPS, Z_SRC, scorer("source"), [score], SIGMAS)


# Flow models: at sigma they are the eps model at sigma / (1 - sigma), asked about (1 - sigma) x


def flow_scorer(prompt: str):
    return lambda x, sigma: scorer(prompt)(x / (1 - sigma), sigma / (1 - sigma))


@pytest.mark.parametrize("w_cut", [0.0, 3.0])
def test_a_flow_is_edited_as_its_eps_model_is(w_cut):
    """The same noise predictions are compared, so the same latent results: velocities would differ by z_src - z."""
    options = {"step_size": 0.2, "weights": CDSWeights(1.0, w_cut), "seed": 2}
    [expected] = cds_optimize(EPS, Z_SRC, scorer("source"), [scorer("target")], SIGMAS, **options)
    levels = SIGMAS / (1 + SIGMAS)
    [edited] = cds_optimize(FLOW, Z_SRC, flow_scorer("source"), [flow_scorer("target")], levels, **options)
    assert (edited - expected).norm() / (expected - Z_SRC).norm() < 1e-6


def test_the_noise_of_a_flow_is_refined_as_its_eps_models_is():
    sigma, noise = torch.tensor(1.3, dtype=torch.float64), randn(2, 3, 4, 6, seed=9)

    def denoise(x, sigma):
        return x - sigma * vp_eps(x / (1 + sigma**2).sqrt(), 1 / (1 + sigma**2), "source")

    of_flow = lambda x, sigma: denoise(x / (1 - sigma), sigma / (1 - sigma))
    expected = refine_noise(EPS, Z_SRC, noise, sigma, denoise, 3)
    torch.testing.assert_close(refine_noise(FLOW, Z_SRC, noise, sigma / (1 + sigma), of_flow, 3), expected)


# Timesteps


def test_random_timesteps_cover_the_range_evenly():
    drawn = draw_timesteps(20000, 50, 948, "random", generator())
    assert drawn.min() == 50 and drawn.max() == 948
    assert abs(drawn.double().mean() - 499) < 6 and abs(drawn.double().std() - 899 / math.sqrt(12)) < 4
    assert torch.equal(drawn, draw_timesteps(20000, 50, 948, "random", generator()))


def test_descending_timesteps():
    assert draw_timesteps(4, 50, 950, "descending", generator()).tolist() == [950, 650, 350, 50]
    assert draw_timesteps(1, 7, 7, "random", generator()).tolist() == [7]
    with pytest.raises(ValueError, match="empty: 9 to 8"):
        draw_timesteps(3, 9, 8, "random", generator())


# IDS


def test_refinement_is_the_published_fixed_point():
    sigma, noise = torch.tensor(1.3, dtype=torch.float64), randn(1, 3, 4, 6, seed=9)
    alpha_bar, source = 1 / (1 + sigma**2), Z_SRC[:1]

    def posterior_mean(x_vp):
        return (x_vp - (1 - alpha_bar).sqrt() * vp_eps(x_vp, alpha_bar, "source")) / alpha_bar.sqrt()

    x_vp = alpha_bar.sqrt() * source + (1 - alpha_bar).sqrt() * noise
    distances = []
    for _ in range(3):
        distance = lambda x: float((source - posterior_mean(x)).norm())
        distances.append(distance(x_vp))
        x_vp = x_vp - papers.numerical_gradient(distance, x_vp)
    expected = (x_vp - alpha_bar.sqrt() * source) / (1 - alpha_bar).sqrt()
    scale = (1 + sigma**2).sqrt()
    refined = refine_noise(EPS, source, noise, sigma, lambda x, sigma: posterior_mean(x / scale), 3)
    assert distances[2] < distances[0]
    assert (refined - expected).norm() / (expected - noise).norm() < 1e-6
    assert torch.allclose(refine_noise(EPS, source, noise, sigma, lambda x, sigma: x, 0), noise)


def test_refined_noise_is_shared_by_source_and_target():
    asked = []

    def score(x, sigma):
        asked.append(x)
        return scorer("target")(x, sigma)

    fixed = randn(2, 3, 4, 6, seed=5)
    cds_optimize(EPS, Z_SRC, score, [score], SIGMAS[:1], weights=CDSWeights(w_cut=0.0), refine=lambda noise, sigma: fixed)
    assert torch.equal(asked[0], asked[1]) and torch.equal(asked[0], Z_SRC + SIGMAS[0] * fixed)


def sgd(step_size: float, mask: Tensor | None = None):
    def update(parameters, gradients):
        move = step_size * gradients["z"]
        return {"z": parameters["z"] - (move if mask is None else mask * move)}

    return update


@pytest.mark.parametrize("noising", [EPS, FLOW], ids=["eps", "flow"])
@pytest.mark.parametrize("weights", [CDSWeights(patchnce=PatchNCE(patches=5)), CDSWeights(w_cut=0.0)], ids=["CDS", "DDS"])
def test_a_latent_is_what_renders_itself_bit_for_bit(noising, weights):
    mask = (torch.rand(2, 1, 4, 6, generator=generator(9)) > 0.3).double()
    sigmas = SIGMAS / 8
    seen, expected = [], []
    options = dict(weights=weights, seed=4)
    [edited] = cds_optimize(
        noising, Z_SRC, scorer("source"), [scorer("target")], sigmas, step_size=0.2, mask=mask, **options,
        callback=lambda i, zs, gradients: expected.append((zs[0], gradients[0].loss)),
    )  # fmt: skip
    rendered = cds_optimize_rendered(
        noising, lambda p, view: p["z"], {"z": Z_SRC}, [[0]] * len(sigmas), scorer("source"), scorer("target"), sigmas,
        sgd(0.2, mask), **options, callback=lambda i, states, gradients: seen.append((states[0]["z"], gradients[0].loss)),
    )  # fmt: skip
    assert torch.equal(rendered["z"], edited) and not torch.equal(edited, Z_SRC)
    assert all(torch.equal(z, z_) and loss == loss_ for (z, loss), (z_, loss_) in zip(seen, expected, strict=True))


def test_what_is_rendered_moves_by_the_transposed_derivative_of_its_pictures():
    """p <- p - step (dz / dp)^T direction with dz / dp by finite differences, over two views an iteration."""
    matrices = [randn(72, 5, seed=seed) / 4 for seed in (20, 21, 22)]
    render = lambda p, view: (matrices[view] @ p["p"].sin()).view(1, 3, 4, 6)
    p, views, sigmas, weights = randn(5, seed=23), [[0, 2], [1, 0]], SIGMAS[:2], CDSWeights(w_cut=0.0)
    update = lambda parameters, gradients: {"p": parameters["p"] - 0.1 * gradients["p"]}
    target = scorer("target")
    edited = cds_optimize_rendered(
        EPS, render, {"p": p}, views, scorer("source"), target, sigmas, update, weights=weights, seed=3
    )

    draws, expected = generator(3), p.clone()
    for sigma, batch in zip(sigmas, views, strict=True):
        noise = torch.randn((3, 4, 6), generator=draws).double()[None]
        gradient = torch.zeros(5, dtype=torch.float64)
        for view in batch:
            z, z_src = render({"p": expected}, view), render({"p": p}, view)
            delta = target(z + sigma * noise, sigma).eps - scorer("source")(z_src + sigma * noise, sigma).eps
            for i in range(5):
                step = torch.zeros(5, dtype=torch.float64)
                step[i] = 1e-6
                slope = (render({"p": expected + step}, view) - render({"p": expected - step}, view)) / 2e-6
                gradient[i] += (slope * delta).sum()
        expected = expected - 0.1 * gradient
    assert (edited["p"] - expected).norm() / (expected - p).norm() < 1e-6


def test_gradients_of_what_renders_are_taken_inside_of_its_own_region():
    opened, graded = [], []

    @contextlib.contextmanager
    def rendering():
        with torch.enable_grad():
            opened.append(1)
            yield

    def render(parameters, view):
        graded.append(torch.is_grad_enabled())
        return parameters["z"]

    cds_optimize_rendered(
        EPS, render, {"z": Z_SRC}, [[0]] * 2, scorer("source"), scorer("target"), SIGMAS[:2], sgd(0.1),
        weights=CDSWeights(w_cut=0.0), rendering=rendering,
    )  # fmt: skip
    assert graded == [False, True, True] and len(opened) == 4
