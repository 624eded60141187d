"""The real page in a Chromium that is already on this computer; nothing is downloaded. Used by the tests and the pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from purecc.launch.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

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
    "Comfy.VueNodes.Enabled": False,  # the canvas's own nodes; True: "Nodes 2.0"
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
READY = "window.app?.vueAppReady && window.app.graph && window.app.extensionManager?.workflow?.activeWorkflow"


def find_chromium() -> str | None:
    places = [os.path.expandvars(p) for p in PLACES]
    return next((p for p in map(shutil.which, NAMES) if p), None) or next(
        (p for p in places if Path(p).is_file()), None
    )


def launch(driver: Playwright, executable: str) -> Browser:
    return driver.chromium.launch(executable_path=executable, headless=True, args=FLAGS)


@contextmanager
def open_page(
    browser: Browser, server: Server, width: int = 1440, height: int = 900, **settings: object
) -> Iterator[tuple[Page, list[str]]]:
    """The server's page, loaded and ready, cut off from any other address; and the list that uncaught errors go to.

    settings: of the page, on top of SETTINGS, by their names with _ for each dot.
    """
    server.client.post("/settings", SETTINGS | {name.replace("_", "."): value for name, value in settings.items()})
    context = browser.new_context(viewport={"width": width, "height": height})
    context.route(lambda url: url.startswith("http") and not url.startswith(server.url), lambda route: route.abort())
    context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url, wait_until="domcontentloaded", timeout=120_000)
    page.wait_for_function(READY, timeout=120_000)
    try:
        yield page, errors
    finally:
        context.close()
