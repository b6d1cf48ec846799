"""The real page in a headless Chromium, one for the session, on a server with its folders in a temporary place."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tools.comfy_server import Client, comfy_server, find_comfyui  # noqa: E402
from tools.page import comfy_page, find_chromium  # noqa: E402


@pytest.fixture(scope="session")
def chromium() -> None:
    if find_chromium() is None:
        pytest.skip("no Chromium: install Debian's package chromium or Chrome, or set CHROMIUM to its program")


@pytest.fixture(scope="session")
def client(chromium: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    comfyui = find_comfyui()
    with comfy_server(comfyui, tmp_path_factory.mktemp("server")) as client:
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
