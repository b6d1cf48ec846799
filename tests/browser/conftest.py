"""The real page in a headless Chromium, one for the session, on a server with its folders in a temporary place."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tools.comfy_client import Client  # noqa: E402
from tools.comfy_server import comfy_server, comfyui_version, find_comfyui  # noqa: E402
from tools.page import comfy_page, find_chromium  # noqa: E402


@pytest.fixture(scope="session")
def chromium() -> None:
    if find_chromium() is None:
        pytest.skip("no Chromium: install Debian's package chromium or Chrome, or set CHROMIUM to its program")


@pytest.fixture(scope="session")
def client(chromium: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    comfyui, base = find_comfyui(), tmp_path_factory.mktemp("server")
    if comfyui_version(comfyui) != "0.3.64":  # it has no node replacement
        (base / "custom_nodes" / "renamed").mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("renamed.py"), base / "custom_nodes" / "renamed" / "__init__.py")
    with comfy_server(comfyui, base) as client:
        client.upload(comfyui / "input" / "example.png")
        yield client


@dataclass
class Opened:
    page: Page
    errors: list[str] = field(default_factory=list)

    def note(self, error: str) -> None:
        """Keeps what the page's console shows in red, but that it may not ask other hosts about the models of its first graph."""
        if "https://" not in error:
            self.errors.append(error)


@pytest.fixture(scope="session")
def opened(client: Client) -> Iterator[Opened]:
    with comfy_page(client.url) as page:
        opened = Opened(page)
        page.on("pageerror", lambda error: opened.note(str(error)))
        page.on("console", lambda line: opened.note(f"{line.text} {line.location['url']}") if line.type == "error" else None)
        yield opened
