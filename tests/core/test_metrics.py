"""Metrics against loops in float64, closed forms and the packages that the papers used, on the same inputs."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from zerocon_core.metrics.clip import clip_accuracy, clip_score, directional_similarity, r_precision
from zerocon_core.metrics.edits import Edits, clip_metrics, fid, pixel_metrics, preservation, structure_metrics
from zerocon_core.metrics.frechet import frechet_distance
from zerocon_core.metrics.pixels import mse, outside, psnr, ssim
from zerocon_core.metrics.report import METRICS, Report, cell, title
from zerocon_core.metrics.structure import structure_distance


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    source = rand(2, 20, 28, 3)
    return source, (source + 0.3 * randn(2, 20, 28, 3, seed=1)).clamp(0, 1)


def ssim_loop(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. eq. 13 at each place of the window, channel by channel, the moments taken about the mean."""
    offsets = range(-5, 6)
    weights = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in offsets] for i in offsets])
    weights /= weights.sum()
    values = []
    for channel in range(a.shape[2]):
        for i in range(5, a.shape[0] - 5):
            for j in range(5, a.shape[1] - 5):
                x, y = (image[i - 5 : i + 6, j - 5 : j + 6, channel] for image in (a, b))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(values))


def test_pixel_metrics_are_those_of_loops(pair):
    for i, (a, b) in enumerate(zip(*(images.double().numpy() for images in pair), strict=True)):
        error = sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True)) / a.size
        assert float(mse(*pair)[i]) == pytest.approx(error, rel=1e-5)
        assert float(psnr(*pair)[i]) == pytest.approx(10 * math.log10(1 / error), rel=1e-5)
        assert float(ssim(*pair)[i]) == pytest.approx(ssim_loop(a, b), abs=1e-5)


def test_pixel_metrics_are_those_of_torchmetrics(pair):
    """Of the releases that PIE-Bench's figures come from: newer ones average SSIM over the padded border too."""
    a, b = (images.movedim(-1, 1) for images in pair)
    for i in range(2):
        one = slice(i, i + 1)
        assert float(psnr(*pair)[i]) == pytest.approx(float(peak_signal_noise_ratio(a[one], b[one], data_range=1.0)), rel=1e-5)
        _, full = structural_similarity_index_measure(a[one], b[one], data_range=1.0, return_full_image=True)
        assert float(ssim(*pair)[i]) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-5)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 30x10"):
        ssim(rand(1, 10, 30, 3), rand(1, 10, 30, 3))


def test_structure_distance_is_that_of_loops():
    source, edited = randn(2, 5, 6), randn(2, 5, 6, seed=1)
    for i in range(2):
        total = 0.0
        for p in range(5):
            for q in range(5):
                cosines = [
                    float(k[i, p].double() @ k[i, q].double()) / float(k[i, p].double().norm() * k[i, q].double().norm())
                    for k in (source, edited)
                ]
                total += (cosines[0] - cosines[1]) ** 2
        assert float(structure_distance(source, edited)[i]) == pytest.approx(total / 25, rel=1e-5)
    assert torch.equal(structure_distance(source, source), torch.zeros(2))
    assert torch.allclose(structure_distance(source, 3 * source), torch.zeros(2), atol=1e-12)  # angles alone count


def on_circle(*degrees: float) -> Tensor:
    """Unit vectors in the plane, whose cosines are known."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_clip_score_is_the_cosine_of_the_angle():
    score = clip_score(on_circle(0, 10, 0), on_circle(0, 70, 120))
    assert score.tolist() == pytest.approx([100.0, 50.0, 0.0], abs=1e-4)


def test_clip_accuracy_asks_which_text_is_nearer():
    images, source, target = on_circle(10, 50, 30), on_circle(0, 0, 0), on_circle(60, 60, 60)
    assert clip_accuracy(images, source, target)[:2].tolist() == [0.0, 1.0]
    assert clip_accuracy(images, target, source)[:2].tolist() == [1.0, 0.0]


def test_direction_is_the_cosine_between_the_chords():
    # The chord from a to b on the circle points at (a + b) / 2 + 90 degrees.
    similarity = directional_similarity(on_circle(0, 0), on_circle(40, 40), on_circle(100, 140), on_circle(140, 100))
    expected = math.cos(math.radians(120 - 20))
    assert similarity.tolist() == pytest.approx([expected, -expected], abs=1e-5)
    assert directional_similarity(on_circle(20), on_circle(20), on_circle(0), on_circle(9)).tolist() == [0.0]


def test_r_precision_retrieves_the_own_text():
    texts = on_circle(0, 40, 80)
    assert r_precision(on_circle(5, 45, 75), texts).tolist() == [1.0, 1.0, 1.0]
    assert r_precision(on_circle(30, 45, 30), texts).tolist() == [0.0, 1.0, 0.0]
    assert r_precision(on_circle(1, 2), on_circle(0, 0)).tolist() == [1.0, 1.0]  # the same text twice is no rival


def gaussian(count: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> Tensor:
    """Points whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x = np.linalg.qr(x - x.mean(0))[0] * math.sqrt(count - 1)
    return torch.from_numpy(x @ np.linalg.cholesky(covariance).T + mean)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    # Diagonal covariances: |m - n|^2 + sum of (s - t)^2 over the standard deviations.
    m, n, s, t = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5]), np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.2, 0.5])
    a, b = gaussian(40, m, np.diag(s**2), 0), gaussian(50, n, np.diag(t**2), 1)
    assert frechet_distance(a, b) == pytest.approx(np.square(m - n).sum() + np.square(s - t).sum(), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_is_that_of_the_matrix_square_root():
    a, b = randn(30, 5), randn(40, 5, seed=1) @ randn(5, 5, seed=2)
    x, y = a.double().numpy(), b.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_copes_with_fewer_images_than_features():
    a = randn(4, 32)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-4)
    assert frechet_distance(a, a + 1.0) == pytest.approx(32.0, rel=1e-4)


def test_frechet_distance_refuses_a_single_image():
    with pytest.raises(ValueError, match="at least 2 images a set, got 1 and 4"):
        frechet_distance(randn(1, 3), randn(4, 3))


def nothing() -> None:
    pass


def test_identical_images_are_ideal(pair):
    source, _ = pair
    columns = pixel_metrics(Edits(source, source, rand(2, 20, 28).round()), nothing)
    for prefix in ("", "background_"):
        assert columns[f"{prefix}mse"] == [0.0, 0.0] and columns[f"{prefix}psnr"] == [math.inf] * 2
        assert columns[f"{prefix}ssim"] == pytest.approx([1.0, 1.0], abs=1e-6)


def test_what_happens_inside_the_mask_changes_no_background_metric(pair):
    source, edited = pair
    mask = torch.zeros(2, 20, 28)
    mask[:, 4:12, 6:20] = 1.0
    repainted = torch.where(mask[..., None] == 1, rand(2, 20, 28, 3, seed=2), edited)
    before, after = (pixel_metrics(Edits(source, images, mask), nothing) for images in (edited, repainted))
    for name in ("psnr", "ssim", "mse"):
        assert after[f"background_{name}"] == before[f"background_{name}"]
        assert after[name] != before[name]


def test_the_mean_of_the_background_counts_the_black_pixels(pair):
    """The protocol's, whatever one may think of it: half the mask, half the error."""
    source = torch.zeros(1, 20, 20, 3)
    mask = torch.zeros(1, 20, 20)
    mask[:, :10] = 1.0
    assert float(mse(outside(source, mask), outside(source + 0.5, mask))) == pytest.approx(0.125)


@pytest.mark.parametrize("full", [1.0, 254 / 255])
def test_without_a_background_its_metrics_are_undefined(pair, full):
    mask = torch.stack([torch.full((20, 28), full), torch.zeros(20, 28)])
    edits = Edits(*pair, mask)
    columns = pixel_metrics(edits, nothing)
    for name in ("psnr", "ssim", "mse"):
        assert columns[f"background_{name}"] == [None, columns[name][1]]
        assert Report(columns).means()[f"background_{name}"] == columns[name][1]
    assert edits.missing() == ["background of image 1: its mask covers everything"]
    assert "background_mse" not in pixel_metrics(Edits(*pair), nothing)


def test_every_function_sees_the_black_mask(pair):
    """Also LPIPS: it gets images x (1 - mask)."""
    seen = []

    def network(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a, b))
        return (a - b).abs().mean((1, 2, 3))

    mask = rand(2, 20, 28).round()
    columns = preservation(Edits(*pair, mask), {"lpips": network}, nothing)
    assert columns.keys() == {"lpips", "background_lpips"}
    for i in range(2):
        for image, whole in zip(seen[2 * i + 1], pair, strict=True):
            assert torch.equal(image[0], whole[i] * (1 - mask[i])[..., None])


class FakeClip:
    """Features anyone can compute: of an image its mean colour, of a text the position of its letters."""

    def images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.mean((1, 2)), dim=-1)

    def texts(self, texts: list[str]) -> Tensor:
        colours = {"red": [1.0, 0, 0], "green": [0, 1.0, 0], "blue": [0, 0, 1.0]}
        return torch.tensor([colours[text] for text in texts])


def colour(*channels: float) -> Tensor:
    return torch.tensor(channels).float().expand(12, 12, 3)


def test_clip_metrics_of_colours():
    # The second image turns by atan(0.1) from red to green, and the chord of a turn leaves the circle by half of the angle; its
    # text goes from red to blue, which is at 45 degrees to red.
    source, edited = torch.stack([colour(1, 0, 0)] * 2), torch.stack([colour(0, 1, 0), colour(1, 0.1, 0)])
    columns = clip_metrics(FakeClip(), Edits(source, edited, None, ["red", "red"], ["green", "blue"]), nothing)
    assert columns == {
        "clip_score": [100.0, 0.0],
        "clip_accuracy": [1.0, 0.0],
        "clip_direction": pytest.approx([1.0, math.sin(math.atan(0.1) / 2) / math.sqrt(2)], abs=1e-5),
        "clip_r_precision": [1.0, 0.0],
    }


def test_clip_score_of_the_edited_part_sees_the_mask_alone():
    edited = torch.cat([colour(0, 0, 1)[:6], colour(0, 1, 0)[6:]])[None]
    mask = torch.zeros(4, 12, 12)
    mask[0, 6:], mask[1, :6], mask[2] = 1.0, 1.0, 1.0
    edits = Edits(edited.expand(4, -1, -1, -1), edited.expand(4, -1, -1, -1), mask, None, ["green"] * 4)
    columns = clip_metrics(FakeClip(), edits, nothing)
    assert columns["clip_score_edited"] == [100.0, 0.0, columns["clip_score"][2], None]  # under everything, under nothing
    assert columns["clip_score"] == pytest.approx([100 * math.sqrt(0.5)] * 4)
    assert not columns.keys() & {"clip_accuracy", "clip_direction", "clip_r_precision"}


def test_structure_of_a_batch_is_that_of_its_images(pair):
    def keys(images: Tensor, peak: float) -> Tensor:
        return (images * peak + 1.0).flatten(2)

    together = structure_metrics(keys, Edits(*pair), 255.0, nothing)["structure"]
    assert together == pytest.approx(structure_distance(keys(pair[0], 255.0), keys(pair[1], 255.0)).tolist())


def test_fid_compares_the_sets_not_the_pairs():
    """Features of two images a side, so the Gaussians lie on lines, whose distance is that of their means and deviations."""

    def mean_colour(images: Tensor) -> Tensor:
        return images.mean((1, 2))

    source = torch.stack([colour(0, 0.5, 0), colour(1, 0.5, 0)])
    edited = torch.stack([colour(0.75, 0.5, 0.3), colour(0.25, 0.5, 0.3)])
    expected = 0.3**2 + (math.sqrt(1 / 2) - math.sqrt(1 / 8)) ** 2
    assert fid(mean_colour, Edits(source, edited), nothing) == pytest.approx(expected, rel=1e-5)
    assert fid(mean_colour, Edits(source, source.flip(0)), nothing) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="at least 2 images a set, got 1 and 1"):
        fid(mean_colour, Edits(source[:1], edited[:1]), nothing)


def test_ticks_come_before_each_image_and_can_stop_the_run(pair):
    ticks = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pixel_metrics(Edits(*pair), tick)


def test_report_as_json_and_as_table():
    report = Report({"mse": [0.001, 0.002], "background_psnr": [None, math.inf]}, left_out=["why"])
    report.add("clip", "a network", {"clip_score": [20.0, 30.0]})
    record = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record == {
        "images": [
            {"mse": 0.001, "background_psnr": None, "clip_score": 20.0},
            {"mse": 0.002, "background_psnr": "inf", "clip_score": 30.0},
        ],
        "mean": {"mse": 0.0015, "background_psnr": "inf", "clip_score": 25.0},
        "networks": {"clip": "a network"},
        "left_out": ["why"],
    }
    assert report.table().splitlines() == [
        "| metric | mean | 1 | 2 |",
        "| --- | --- | --- | --- |",
        "| MSE x10^4 ↓ | 15.00 | 10.00 | 20.00 |",
        "| background PSNR, dB ↑ | inf | - | inf |",
        "| CLIP score ↑ | 25.00 | 20.00 | 30.00 |",
        "",
        "clip: a network",
        "left out: why",
    ]
    assert report.text().splitlines() == [
        "MSE x10^4 ↓  15.00", "background PSNR, dB ↑  inf", "CLIP score ↑  25.00", "clip: a network", "left out: why",
    ]  # fmt: skip


def test_figures_of_the_batch_stand_apart_with_their_number_of_images():
    report = Report({"mse": [0.001, 0.002, 0.003]}, {"fid": 123.456})
    record = json.loads(report.to_json())
    assert record["batch"] == {"images": 3, "fid": 123.456}
    assert record["mean"] == {"mse": 0.002} and record["images"][0] == {"mse": 0.001}
    assert report.table().splitlines()[2:] == [
        "| MSE x10^4 ↓ | 20.00 | 10.00 | 20.00 | 30.00 |",
        "| FID ↓ (n = 3) | 123.46 |  |  |  |",
    ]
    assert report.text().splitlines() == ["MSE x10^4 ↓  20.00", "FID ↓ (n = 3)  123.46"]


def test_the_table_of_one_image_has_one_column():
    table = Report({"mse": [0.001], "background_mse": [None]}).table().splitlines()
    assert table == ["| metric | value |", "| --- | --- |", "| MSE x10^4 ↓ | 10.00 |", "| background MSE x10^4 ↓ | - |"]


def test_every_metric_has_a_title():
    edits = Edits(rand(2, 12, 12, 3), rand(2, 12, 12, 3), rand(2, 12, 12), ["red", "red"], ["green", "blue"])
    columns = pixel_metrics(edits, nothing) | clip_metrics(FakeClip(), edits, nothing)
    columns |= preservation(edits, {"lpips": mse}, nothing) | structure_metrics(lambda x, peak: x.flatten(2), edits, 1.0, nothing)
    assert columns.keys() | {"fid"} == METRICS.keys()
    assert len({title(key) for key in METRICS}) == len(METRICS)
    assert cell("structure", 0.0123) == "12.30" and cell("psnr", 20.0) == "20.00"  # PIE-Bench's units
