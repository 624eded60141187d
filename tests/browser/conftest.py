"""The real frontend in a Chromium that is already on this computer; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from purecc.launch.chromium import find_chromium, launch, open_page
from purecc.launch.layout import Layout
from purecc.launch.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: python run.py test browser"
    )
    chromium = find_chromium()
    if not chromium:
        pytest.skip("no Chromium or Chrome on this computer (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        running = launch(driver, chromium)
        yield running
        running.close()


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Page]:
    """The server's page, loaded and ready, cut off from any other address. The test fails on an uncaught page error.

    Its parameter, if any: whether nodes are drawn by the newer design (Nodes 2.0).
    """
    with open_page(browser, server, Comfy_VueNodes_Enabled=getattr(request, "param", False)) as (opened, errors):
        yield opened
    assert not errors, errors


@pytest.fixture(scope="session")
def screenshots(layout: Layout) -> Path:
    """The folder where the tests leave what they saw."""
    folder = layout.local / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
