"""The archive that the registry hands out, made by the registry's own tool and installed under a folder name of its user's."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tools.comfy_client import Client  # noqa: E402
from tools.comfy_server import comfy_server, find_comfyui  # noqa: E402
from tools.page import chromium, find_chromium  # noqa: E402


@pytest.fixture(scope="session")
def comfy() -> Callable[..., str]:
    """`comfy("node", "validate")` runs comfy-cli in the repository and returns what it printed."""
    program = os.environ.get("COMFY_CLI") or shutil.which("comfy")
    if program is None:
        pytest.skip("no comfy-cli: `python dev.py test` installs it, or set COMFY_CLI to its program `comfy`")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, "--skip-prompt", *arguments],
            cwd=ROOT, env=os.environ | {"DO_NOT_TRACK": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def archive(comfy: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    comfy("node", "pack")
    return Path(shutil.move(ROOT / "node.zip", tmp_path_factory.mktemp("archive")))


@pytest.fixture(scope="session")
def installed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive unpacked as the only pack of a server's base directory."""
    folder = tmp_path_factory.mktemp("server") / "custom_nodes" / "zerocon"
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def client(installed: Path) -> Iterator[Client]:
    # Without a cache each run reads the pack's files again.
    with comfy_server(find_comfyui(), installed.parents[1], ["--cache-none"], installed.name) as client:
        yield client


@pytest.fixture
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium: install Debian's package chromium or Chrome, or set CHROMIUM to its program")
    with chromium() as browser:
        yield browser
