"""The real frontend in a Chromium that is already on this computer; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from purecc.launch.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "%ProgramFiles%/Google/Chrome/Application/chrome.exe",
    "%ProgramFiles(x86)%/Google/Chrome/Application/chrome.exe",
    "%ProgramFiles(x86)%/Microsoft/Edge/Application/msedge.exe",
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SETTINGS = {  # before the page opens: no first-run dialog (it ignores Escape), English, no floating panels
    "Comfy.TutorialCompleted": True,
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
READY = "window.app?.vueAppReady && window.app.graph && window.app.extensionManager?.workflow?.activeWorkflow"


def find_chromium() -> str | None:
    places = [os.path.expandvars(p) for p in PLACES]
    return next((p for p in map(shutil.which, NAMES) if p), None) or next(
        (p for p in places if Path(p).is_file()), None
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: python run.py test browser"
    )
    chromium = find_chromium()
    if not chromium:
        pytest.skip("no Chromium or Chrome on this computer (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The server's page, loaded and ready, cut off from any other address. The test fails on an uncaught page error."""
    server.client.post("/settings", SETTINGS)
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.route(lambda url: url.startswith("http") and not url.startswith(server.url), lambda route: route.abort())
    context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server.url, wait_until="domcontentloaded", timeout=120_000)
    opened.wait_for_function(READY, timeout=120_000)
    yield opened
    context.close()
    assert not errors, errors
