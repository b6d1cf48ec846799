"""The core as any Python program sees it: the repository root on sys.path, no host. The two folders are for helpers."""

import shutil
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "core"), str(TESTS / "shared")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind of `network_folders`."""
    from network_folders import KINDS

    return {what: kind.save(tmp_path_factory.mktemp("network")) for what, kind in KINDS.items()}


@pytest.fixture(params=["captioner", "BERT model", "CLIP", "ViT"])
def what(request) -> str:
    return request.param


@pytest.fixture
def folder(saved, what, tmp_path) -> Path:
    """A copy of one that a test may spoil."""
    return shutil.copytree(saved[what], tmp_path / "network")


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory) -> Path:
    """A file as torchvision writes SqueezeNet's, for LPIPS."""
    from tiny_networks import save_lpips_trunk

    return save_lpips_trunk(tmp_path_factory.mktemp("lpips") / "squeezenet1_1-b8a52dc0.pth", "squeezenet1_1")


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> Path:
    """A file as pytorch-fid publishes it."""
    from tiny_networks import save_inception

    return save_inception(tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth")
