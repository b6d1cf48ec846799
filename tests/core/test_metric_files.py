"""Published files of LPIPS's and FID's networks that are damaged or hold something else."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zerocon_core.metrics.networks import load_inception, load_lpips


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def weights(squeeze) -> dict[str, Tensor]:
    return torch.load(squeeze)


WRONG_TRUNKS = {
    "a cut tensor": (lambda w: w.update({"features.0.weight": torch.zeros(1)}), "does not hold the weights of LPIPS's squeeze"),
    "a missing one": (lambda w: w.pop("features.3.squeeze.bias"), r"squeeze network: 'features\.3\.squeeze\.bias'$"),
    "another network": (
        lambda w: w.update({"features.13.weight": torch.zeros(1)}),
        r"squeeze, which has no features\.13\.weight$",
    ),
    "NaN": (lambda w: w["features.0.bias"].fill_(torch.nan), r"features\.0\.bias holds NaN or infinite values"),
}


@pytest.mark.parametrize("spoil, sentence", WRONG_TRUNKS.values(), ids=WRONG_TRUNKS)
def test_a_trunk_that_does_not_fit_is_an_error(weights, tmp_path, spoil, sentence):
    spoil(weights)
    torch.save(weights, tmp_path / "trunk.pth")
    with pytest.raises(OSError, match=sentence) as caught:
        load_lpips("squeeze", tmp_path / "trunk.pth")
    assert "\n" not in str(caught.value)


def test_a_trunks_classifier_is_no_matter(squeeze, weights, tmp_path):
    """torchvision publishes it with the rest."""
    torch.save(weights | {"classifier.1.weight": torch.zeros(1000)}, tmp_path / "trunk.pth")
    a, b = rand(1, 64, 64, 3), rand(1, 64, 64, 3, seed=1)
    assert torch.equal(load_lpips("squeeze", tmp_path / "trunk.pth")(a, b), load_lpips("squeeze", squeeze)(a, b))


class Trap:
    """Something that a pickle can do when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_damaged_inception_is_an_error_and_runs_no_code(inception_file, tmp_path):
    cut, trap = tmp_path / "cut.pth", tmp_path / "trap.pth"
    cut.write_bytes(inception_file.read_bytes()[:-1000])
    torch.save({"fc.weight": Trap(tmp_path / "sprung")}, trap)
    for file in (cut, trap):
        with pytest.raises(OSError, match=rf"{file.name} is damaged or holds something else than tensors; get it again$"):
            load_inception(file)
    assert not (tmp_path / "sprung").exists()


def drop_three(weights: dict[str, Tensor]) -> None:
    for name in sorted(weights)[:3]:
        del weights[name]


WRONG_INCEPTIONS = {
    "three missing": (drop_three, "does not hold the weights of FID's Inception network: "),
    "one too many": (
        lambda w: w.update({"adapter.weight": torch.zeros(1)}),
        "does not hold the weights of FID's Inception network: ",
    ),
    "NaN": (lambda w: w["fc.bias"].fill_(torch.nan), r"fc\.bias holds NaN or infinite values; get it again$"),
}


@pytest.mark.parametrize("spoil, sentence", WRONG_INCEPTIONS.values(), ids=WRONG_INCEPTIONS)
def test_an_inception_that_does_not_fit_is_an_error(inception_file, tmp_path, spoil, sentence):
    weights = torch.load(inception_file)
    spoil(weights)
    torch.save(weights, tmp_path / "inception.pth")
    with pytest.raises(OSError, match=sentence) as caught:
        load_inception(tmp_path / "inception.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package, load", [("lpips", partial(load_lpips, "squeeze")), ("torch_fidelity", load_inception)])
def test_a_missing_package_is_named(package, load, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"install it with: pip install {package.replace('_', '-')}$"):
        load("no file")
