"""What the host tests and the browser tests share: one real ComfyUI server, as a child process, on throw-away folders.

Nothing of the host is imported here: its modules (`nodes`, `server`, `utils`) have names that the pack has too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from purecc.launch.install import make_base
from purecc.launch.layout import PROJECT, Layout, choose_layout
from purecc.launch.server import Server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--front-end-root",
        type=Path,
        help="a folder with another frontend than the host's own: `static` of an unpacked wheel of comfyui-frontend-package",
    )


@pytest.fixture(scope="session")
def layout() -> Layout:
    """Which ComfyUI and Python: the launcher's, run by the Python that runs pytest."""
    chosen = choose_layout(python=sys.executable)
    if not (chosen.comfyui / "main.py").is_file():
        pytest.fail("There is no ComfyUI in .local/ yet: `python run.py test` sets it up.", pytrace=False)
    return chosen


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh ComfyUI base directory (models, input, output, temp, user) with this pack in its custom_nodes."""
    folder = tmp_path_factory.mktemp("comfyui")
    make_base(folder, PROJECT)
    return folder


@pytest.fixture(scope="session")
def server(layout: Layout, base: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The real server, on the CPU, for the whole session. `server.client` talks to it, `server.log_text()` is its log."""
    frontend = request.config.getoption("--front-end-root")
    extra = ("--front-end-root", str(frontend.resolve())) if frontend else ()
    with Server(layout, base, device="cpu", extra=extra) as running:
        yield running
